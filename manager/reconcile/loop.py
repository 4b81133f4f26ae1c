"""The one loop that turns plans into commits.

It holds no decisions: it gathers what became dirty, lets `plan_round` decide on one view, commits
the result as one entry, and sleeps until something changes, a timer of the agenda is due, or the
resync period is over (a safety net: everything is dirty again). A conflict means that somebody
else was faster; the same keys are planned again on the newer view. A plan that is too large for a
log entry is made again with fewer changes; any other refusal is tried again after a growing pause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import structlog

from manager.reconcile.agenda import Agenda
from manager.reconcile.dirty import EVERYTHING
from manager.reconcile.metrics import PLAN_SECONDS, PREEMPTED, ROUNDS
from manager.reconcile.plan import Dirty, dirty_from_event, plan_round
from manager.scheduler.preempt import PREEMPTED_NOTE
from manager.store.store import Commit, Store, TransactionTooLarge, Watcher
from shoal.aio.backoff import Backoff
from shoal.clock import NS_PER_S, Clock
from shoal.errors import SequenceConflict, SwarmError
from shoal.ids import new_id
from shoal.model.plan import CHANGES_MAX, Note

RESYNC_PERIOD_S = 300.0
RETRY_PAUSE_MAX_S = 5.0
REST_FACTOR = 2
REST_MAX_S = 0.25
"""After a round that changed nothing: so many times as long as it took, and no longer than this.

Thousands of tasks that report one after the other are looked at a few times, not once for each."""
CHANGES_MIN = 4
"""A step of one slot: smaller transactions are not tried."""

_log = structlog.get_logger()


class ReconcileLoop:
    """Runs on the leader only."""

    def __init__(self, store: Store, clock: Clock, *, changes_max: int = CHANGES_MAX) -> None:
        """changes_max: more are not planned for one transaction."""
        self._limit_max = changes_max
        self._store = store
        self._clock = clock
        self._ids = _random_ids()
        self._limit = changes_max
        self._backoff = Backoff(max_s=RETRY_PAUSE_MAX_S)

    async def run(self) -> None:
        """Reconcile for ever. Raises FailedPrecondition when the watch fell behind: start anew."""
        agenda = Agenda()
        resync_at_s = self._clock.monotonic_s() + RESYNC_PERIOD_S
        with self._store.watch() as watcher:
            while True:
                if self._clock.monotonic_s() >= resync_at_s:
                    resync_at_s = self._clock.monotonic_s() + RESYNC_PERIOD_S
                    agenda.add(EVERYTHING)
                dirty = agenda.take(self._clock.now_ns())
                if dirty:
                    await self._round(agenda, dirty)
                    _note_commits(agenda, watcher.take_ready())
                else:
                    await self._wait(agenda, watcher, resync_at_s)

    async def _round(self, agenda: Agenda, dirty: Dirty) -> None:
        began_s = self._clock.monotonic_s()
        with PLAN_SECONDS.time():
            plan = plan_round(
                self._store.view,
                dirty,
                now_ns=self._clock.now_ns(),
                ids=self._ids,
                limit=self._limit,
            )
        for note in plan.notes:
            _write(note)
        if not plan.changes:
            agenda.finish(dirty, plan)
            took_s = self._clock.monotonic_s() - began_s
            await asyncio.sleep(min(REST_FACTOR * took_s, REST_MAX_S))
            return
        ROUNDS.inc()
        try:
            await self._store.commit(plan.changes)
        except SequenceConflict:
            agenda.add(dirty)
        except TransactionTooLarge as error:
            agenda.add(dirty)
            await self._shrink(error)
        except SwarmError as error:
            agenda.add(dirty)
            await self._pause(error)
        else:
            agenda.finish(dirty, plan)
            PREEMPTED.inc(sum(note.event == PREEMPTED_NOTE for note in plan.notes))
            self._limit = min(self._limit * 2, self._limit_max)
            self._backoff.reset()

    async def _shrink(self, error: SwarmError) -> None:
        """The specs are too large for that many changes in one entry: fewer the next time."""
        if self._limit == CHANGES_MIN:
            await self._pause(error)
        self._limit = max(self._limit // 2, CHANGES_MIN)

    async def _pause(self, error: SwarmError) -> None:
        _log.error("reconcile.refused", reason=error.message)
        await asyncio.sleep(self._backoff.next_s(0))

    async def _wait(self, agenda: Agenda, watcher: Watcher, resync_at_s: float) -> None:
        timeout_s = max(0.0, resync_at_s - self._clock.monotonic_s())
        wake_at_ns = agenda.wake_at_ns
        if wake_at_ns is not None:
            timeout_s = min(timeout_s, max(0, wake_at_ns - self._clock.now_ns()) / NS_PER_S)
        try:
            async with asyncio.timeout(timeout_s):
                first = await watcher.next()
        except TimeoutError:
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
