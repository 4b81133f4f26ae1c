"""What the leader does about the members, for as long as it leads.

It lets learners vote when they have caught up, follows managers that moved, keeps the managers'
status in their nodes' rows, and steps aside when its own log no longer moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
import structlog

from manager.consensus.changes import CAUGHT_UP_ENTRIES, MembershipChanges, MemberStatus
from manager.consensus.driver import RaftDriver
from manager.store.store import Store, commit_with_retry
from manager.store.view import View
from shoal.errors import SwarmError
from shoal.model.objects import Node
from shoal.model.plan import CHANGES_MAX, Change, update
from shoal.model.types import ManagerStatus

PERIOD_S = 0.25
WEDGED_S = 30.0
"""A leader whose oldest proposal waits that long lets another one lead."""
TRANSFER_PERIOD_S = 60.0

_log = structlog.get_logger()


class MembersKeeper:
    """Runs on the leader only."""

    def __init__(
        self,
        driver: RaftDriver,
        changes: MembershipChanges,
        store: Store,
        addresses: Mapping[int, str],
    ) -> None:
        """addresses: where members say they can be reached."""
        self._driver = driver
        self._changes = changes
        self._store = store
        self._addresses = addresses

    async def run(self) -> None:
        """Keep the members, for ever."""
        while True:
            for status in self._changes.members():
                await self._attend(status)
            try:
                await commit_with_retry(self._store, self._status_changes)
            except SwarmError as error:
                _log.warning("managers.status_not_written", reason=error.message)
            await asyncio.sleep(PERIOD_S)

    async def _attend(self, status: MemberStatus) -> None:
        member = status.member
        address = self._addresses.get(member.raft_id, member.address)
        try:
            if member.raft_id == self._driver.raft.id:
                address = self._driver.replica.me.address
            if address != member.address:
                await self._changes.add_learner(msgspec.structs.replace(member, address=address))
            if _may_vote(status):
                await self._changes.promote(member.raft_id)
        except SwarmError as error:
            _log.warning("raft.member_not_changed", member=member.node_id, reason=error.message)

    def _status_changes(self, view: View) -> list[Change]:
        wanted: dict[str, ManagerStatus] = {
            one.member.node_id: ManagerStatus(
                raft_id=one.member.raft_id,
                address=one.member.address,
                leader=one.is_leader,
                reachable=one.is_reachable,
            )
            for one in self._changes.members()
        }
        return status_changes(view, wanted)[:CHANGES_MAX]


class WedgeWatch:
    """Gives leadership away when proposals are not applied, or the disk is full. Leader only."""

    def __init__(self, driver: RaftDriver, changes: MembershipChanges) -> None:
        self._driver = driver
        self._changes = changes

    async def run(self) -> None:
        """Look for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            since_s = self._driver.oldest_proposal_s
            waiting_s = 0.0 if since_s is None else loop.time() - since_s
            if waiting_s < WEDGED_S and not self._driver.disk_full:
                continue
            _log.error(
                "raft.wedged",
                waiting_s=round(waiting_s, 1),
                disk_full=self._driver.disk_full,
                applied=self._driver.replica.applied,
                committed=self._driver.raft.committed,
                last=self._driver.raft.last_index,
            )
            try:
                await self._changes.hand_over()
            except SwarmError as error:
                _log.error("raft.not_handed_over", reason=error.message)
            await asyncio.sleep(TRANSFER_PERIOD_S)


def _may_vote(status: MemberStatus) -> bool:
    behind = status.behind
    return (
        not status.is_voter
        and status.is_reachable
        and behind is not None
        and behind <= CAUGHT_UP_ENTRIES
    )


def status_changes(view: View, wanted: Mapping[str, ManagerStatus]) -> list[Change]:
    """Rows of nodes whose manager's status is not what it should be. wanted: by node id."""
    return [
        update(node.replaced(manager_status=wanted.get(node.id)))
        for node in _managers(view, wanted)
        if node.manager_status != wanted.get(node.id)
    ]


def _managers(view: View, wanted: Mapping[str, ManagerStatus]) -> list[Node]:
    """Nodes that are managers, or are taken for some. A bounded number of rows, not all of them."""
    ids = {*wanted, *(node.id for node in view.nodes if node.manager_status is not None)}
    found = (view.nodes.get(node_id) for node_id in sorted(ids))
    return [node for node in found if node is not None]
