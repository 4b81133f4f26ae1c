"""Starts what only a leader does when this manager begins to lead, and stops it when it is over.

Invariants: work of one term has ended before that of the next begins; every commit of the work is
proposed in its own term or refused, also when the work has not noticed yet that it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import structlog

from manager.leadership.interfaces import Consensus, Leadership
from manager.leadership.router import LeaderRouter
from manager.leadership.scope import Scope
from manager.store.apply import Commit
from manager.store.store import Store
from shoal.aio.supervise import Supervisor
from shoal.errors import NotLeader
from shoal.model.objects import StoreEntry

OVER = "this manager does not lead the cluster any more: try again"

_log = structlog.get_logger()


class Term:
    """What the work of one term is given. Its tasks go to `supervisor`, its commits to `store`."""

    def __init__(self, number: int, store: Store, supervisor: Supervisor) -> None:
        self.number = number
        self.store = store
        self.supervisor = supervisor
        self.calls = Scope()


Begin = Callable[[Term], AbstractAsyncContextManager[Mapping[str, Any]]]
"""Starts the work of a term; gives the handlers by method that serve calls meanwhile."""


class TermProposer:
    """Implements `Proposer` for one term."""

    def __init__(self, consensus: Consensus, term: int) -> None:
        self._consensus = consensus
        self._term = term

    async def propose(self, entry: StoreEntry) -> Commit:
        """Commit an entry. Raises: NotLeader when the term is over, and what `Proposer` says."""
        return await self._consensus.propose(entry, term=self._term)


class LeaderWork:
    """Runs for as long as the manager does."""

    def __init__(
        self, consensus: Consensus, store: Store, router: LeaderRouter, begin: Begin
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._router = router
        self._begin = begin
        self._term: Term | None = None

    async def run(self) -> None:
        """Follow the leadership for ever. Raises: InvariantViolation when the work broke one."""
        with self._consensus.leadership.watched(self._leadership_changed):
            while True:
                now = await self._consensus.leadership.until(lambda one: one.here)
                await self._lead(now.term)

    async def _lead(self, number: int) -> None:
        async with AsyncExitStack() as stack:
            supervisor = await stack.enter_async_context(Supervisor())
            store = self._store.through(TermProposer(self._consensus, number))
            term = self._term = Term(number, store, supervisor)
            stack.callback(self._end)
            handlers = await stack.enter_async_context(self._begin(term))
            if not self._leads(number):
                return
            self._router.serve(handlers)
            _log.info("leader.started", term=number)
            await supervisor.guard(self._wait_over(number))
        _log.info("leader.stopped", term=number)

    async def _wait_over(self, number: int) -> None:
        await self._consensus.leadership.until(lambda now: not now.here or now.term != number)

    def _leads(self, number: int) -> bool:
        now = self._consensus.leadership.value
        return now.here and now.term == number

    def _leadership_changed(self, now: Leadership) -> None:
        """At once, not when the task above gets its turn."""
        if self._term is not None and not self._leads(self._term.number):
            self._end()
        self._router.leader_changed(now)

    def _end(self) -> None:
        term, self._term = self._term, None
        if term is not None:
            self._router.pass_on()
            term.calls.end(NotLeader(OVER))
