"""The one loop that turns plans into commits.

It holds no decisions: it gathers what became dirty, lets `plan_round` decide on one view, commits
the result as one entry, and sleeps until something changes, a timer of the agenda is due, or the
resync period is over (a safety net: everything is dirty again). A conflict means that somebody
else was faster; the same keys are planned again on the newer view.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import structlog

from manager.reconcile.agenda import Agenda
from manager.reconcile.dirty import EVERYTHING
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
        agenda = Agenda()
        with self._store.watch() as watcher:
            while True:
                dirty = agenda.take(self._clock.now_ns())
                if dirty:
                    await self._round(agenda, dirty)
                    _note_commits(agenda, watcher.take_ready())
                else:
                    await self._wait(agenda, watcher)

    async def _round(self, agenda: Agenda, dirty: Dirty) -> None:
        with PLAN_SECONDS.time():
            plan = plan_round(self._store.view, dirty, now_ns=self._clock.now_ns(), ids=self._ids)
        for note in plan.notes:
            _write(note)
        if not plan.changes:
            agenda.finish(dirty, plan)
            await asyncio.sleep(0)  # a long agenda must not keep the others from running
            return
        ROUNDS.inc()
        try:
            await self._store.commit(plan.changes)
        except SwarmError as error:
            if not error.retryable:
                _log.error("reconcile.refused", reason=error.message)
            agenda.add(dirty)
            await asyncio.sleep(0 if error.retryable else RETRY_PAUSE_S)
        else:
            agenda.finish(dirty, plan)

    async def _wait(self, agenda: Agenda, watcher: Watcher) -> None:
        timeout_s = RESYNC_PERIOD_S
        wake_at_ns = agenda.wake_at_ns
        if wake_at_ns is not None:
            timeout_s = min(timeout_s, max(0, wake_at_ns - self._clock.now_ns()) / NS_PER_S)
        try:
            async with asyncio.timeout(timeout_s):
                first = await watcher.next()
        except TimeoutError:
            if timeout_s == RESYNC_PERIOD_S:
                agenda.add(EVERYTHING)
            return
        _note_commits(agenda, [first, *watcher.take_ready()])


def _note_commits(agenda: Agenda, commits: list[Commit]) -> None:
    for commit in commits:
        for event in commit.events:
            agenda.add(dirty_from_event(event.action, event.old, event.object))


def _write(note: Note) -> None:
    _log.info(note.event, **dict(note.fields))


def _random_ids() -> Iterator[str]:
    while True:
        yield new_id()
