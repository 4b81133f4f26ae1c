"""Carries out role plans while this manager leads: commits rows, takes members out.

Level-triggered: it looks at every commit that touches a node, and every `LOOK_PERIOD_S`. What fails
is tried again after a growing pause: a demotion that the consensus group cannot afford now is made
when it can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from manager.consensus.changes import MemberStatus
from manager.roles.plan import RolePlan, plan
from manager.store.store import Store, Watcher
from manager.store.view import View
from shoal.aio.backoff import Backoff
from shoal.clock import Clock
from shoal.errors import NotLeader, SequenceConflict, SwarmError
from shoal.model.objects import Cluster, Node
from shoal.model.plan import CHANGES_MAX

LOOK_PERIOD_S = 0.5
REMOVE_RETRY_MAX_S = 5.0
FAREWELL_S = 0.25
"""A leader that is to go leads on for so long: whoever demoted it is told that it is done."""

_log = structlog.get_logger()


class Membership(Protocol):
    """The consensus group, at its leader."""

    def members(self) -> Sequence[MemberStatus]:
        """Everybody in it."""
        ...

    async def remove(self, raft_id: int) -> None:
        """Take a member out for ever. Raises: SwarmError."""
        ...


class RoleLoop:
    """Runs on the leader only. Says in the rows what is in the way of a wish."""

    def __init__(
        self,
        store: Store,
        membership: Membership,
        clock: Clock,
        *,
        refused: dict[str, str] | None = None,
        changes_max: int = CHANGES_MAX,
    ) -> None:
        """refused: why nodes were not let in when they asked, by id; shared with who let them.

        changes_max: more are not put into one transaction.
        """
        self._refused = {} if refused is None else refused
        self._changes_max = changes_max
        self._store = store
        self._membership = membership
        self._clock = clock
        self._short_since_ns: int | None = None
        self._backoff = Backoff(min_s=LOOK_PERIOD_S, max_s=REMOVE_RETRY_MAX_S)
        self._remove_at_s = 0.0
        self._taking_leave = 0

    async def run(self) -> None:
        """Keep roles for ever. Raises FailedPrecondition when the watch fell behind: start anew."""
        with self._store.watch() as watcher:
            while True:
                await self._round()
                await _wait(watcher)

    async def _round(self) -> None:
        now_ns = self._clock.now_ns()
        view, members = self._store.view, self._membership.members()
        self._forget_refusals(view)
        found = plan(
            view,
            members,
            now_ns=now_ns,
            short_since_ns=self._short_since_ns,
            refused=self._refused,
        )
        if not found.is_short:
            self._short_since_ns = None
        elif self._short_since_ns is None:
            self._short_since_ns = now_ns
        await self._commit(found)
        if found.remove and self._clock.monotonic_s() >= self._remove_at_s:
            await self._remove(next(one for one in members if one.member.raft_id == found.remove))

    def _forget_refusals(self, view: View) -> None:
        """Of nodes that are gone, or what they are to be."""
        for node_id in tuple(self._refused):
            node = view.nodes.get(node_id)
            if node is None or node.role is node.spec.desired_role:
                del self._refused[node_id]

    async def _commit(self, found: RolePlan) -> None:
        if not found.changes:
            return
        for note in found.notes:
            _log.info(note.event, **dict(note.fields))
        try:
            await self._store.commit(found.changes[: self._changes_max])
        except SequenceConflict:
            return  # planned again at once: the watch has what came first
        except SwarmError as error:
            _log.warning("roles.not_written", reason=error.message)

    async def _remove(self, status: MemberStatus) -> None:
        raft_id, node_id = status.member.raft_id, status.member.node_id
        if status.is_leader and self._taking_leave != raft_id:
            self._taking_leave = raft_id
            await asyncio.sleep(FAREWELL_S)
            return  # planned anew: the wish may be another one by now
        try:
            await self._membership.remove(raft_id)
        except NotLeader:
            return  # it was this one, which has handed over
        except SwarmError as error:
            pause_s = self._backoff.next_s(spread=0)
            self._remove_at_s = self._clock.monotonic_s() + pause_s
            self._refused[node_id] = error.message
            _log.warning("manager.not_removed", manager=f"{raft_id:x}", reason=error.message)
        else:
            self._backoff.reset()
            self._refused.pop(node_id, None)
            _log.info("manager.removed", manager=f"{raft_id:x}")


async def _wait(watcher: Watcher) -> None:
    """Until a node or the cluster changed, or it is time to look at the members again."""
    try:
        async with asyncio.timeout(LOOK_PERIOD_S):
            while True:
                commits = [await watcher.next(), *watcher.take_ready()]
                for commit in commits:
                    if any(isinstance(event.subject, (Node, Cluster)) for event in commit.events):
                        return
    except TimeoutError:
        return
