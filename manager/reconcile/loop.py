"""The one loop that turns plans into commits.

It holds no decisions: it gathers what became dirty, lets `plan_round` decide on one view, commits
the result as one entry, and sleeps until something changes, a timer of the plan is due, or the
resync period is over (a safety net: everything is dirty again). A conflict means that somebody
else was faster; the same keys are planned again on the newer view.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import structlog

from manager.reconcile.metrics import PLAN_SECONDS, ROUNDS
from manager.reconcile.plan import Dirty, dirty_from_event, plan_round
from manager.store.store import Commit, Store, Watcher
from shoal.clock import NS_PER_S, Clock
from shoal.errors import SwarmError
from shoal.ids import new_id
from shoal.model.plan import Note

RESYNC_PERIOD_S = 300.0
RETRY_PAUSE_S = 0.2

_log = structlog.get_logger()


class ReconcileLoop:
    """Runs on the leader only."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._ids = _random_ids()

    async def run(self) -> None:
        """Reconcile for ever. Raises FailedPrecondition when the watch fell behind: start anew."""
        with self._store.watch() as watcher:
            dirty = Dirty(everything=True)
            while True:
                wake_at_ns = await self._settle(dirty, watcher)
                dirty = await self._wait(watcher, wake_at_ns)

    async def _settle(self, dirty: Dirty, watcher: Watcher) -> int | None:
        """Plan and commit until nothing is left to do now. Result: when to plan again."""
        while True:
            with PLAN_SECONDS.time():
                plan = plan_round(
                    self._store.view, dirty, now_ns=self._clock.now_ns(), ids=self._ids
                )
            for note in plan.notes:
                _write(note)
            if not plan.changes:
                return plan.wake_at_ns
            ROUNDS.inc()
            try:
                await self._store.commit(plan.changes)
            except SwarmError as error:
                if not error.retryable:
                    _log.error("reconcile.refused", reason=error.message)
                await asyncio.sleep(0 if error.retryable else RETRY_PAUSE_S)
            dirty = _merged(dirty, watcher.take_ready())

    async def _wait(self, watcher: Watcher, wake_at_ns: int | None) -> Dirty:
        timeout_s = RESYNC_PERIOD_S
        if wake_at_ns is not None:
            timeout_s = min(timeout_s, max(0, wake_at_ns - self._clock.now_ns()) / NS_PER_S)
        try:
            async with asyncio.timeout(timeout_s):
                first = await watcher.next()
        except TimeoutError:
            return Dirty(everything=True)
        return _merged(Dirty(), [first, *watcher.take_ready()])


def _merged(dirty: Dirty, commits: list[Commit]) -> Dirty:
    for commit in commits:
        for event in commit.events:
            dirty = dirty.union(dirty_from_event(event.action, event.old, event.object))
    return dirty


def _write(note: Note) -> None:
    _log.info(note.event, **dict(note.fields))


def _random_ids() -> Iterator[str]:
    while True:
        yield new_id()
