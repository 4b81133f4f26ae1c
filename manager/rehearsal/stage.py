"""A cluster that nobody sees: the planners, the log's rules and obedient agents on a copy.

Changes are applied as a committed entry is, planned as the leader's loop does, and carried out by
`agents`; while a service is in motion, the clock goes on to the next moment at which a planner
asked to be woken. So what comes to pass here is what comes to pass in the cluster, if nothing fails
and nobody else changes anything. No clock is read: `is_over` says when there is no more time.

The clock goes on by a fixed step whenever agents have done something, since no two things that
follow each other may happen at one time. `waited_ns` counts only what was asked for: delays,
monitoring.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from manager.orchestrator.update.plan import is_updating
from manager.reconcile.agenda import Agenda
from manager.reconcile.dirty import dirty_from_event
from manager.reconcile.plan import plan_round
from manager.rehearsal.agents import next_report
from manager.rehearsal.outcome import Moment
from manager.store.apply import Commit, apply_entry
from manager.store.tables import Tables
from manager.store.view import View
from shoal.model.defaults import is_terminal
from shoal.model.enums import ActionKind, TaskState
from shoal.model.objects import StoreAction, StoreEntry, Task
from shoal.model.plan import Change, update

STEP_NS = 100_000_000
ROUNDS_MAX = 5_000
"""Rounds of planning; a rehearsal that needs more is broken off."""

Build = Callable[[View], Sequence[Change]]
"""What one call would write, decided on the view: as `commit_with_retry` takes it."""
Audience = Callable[[Commit, Moment], None]
"""Is told every commit, and when it is."""


class Stage:
    """One rehearsal. The tables become its own: they are written to."""

    def __init__(
        self,
        tables: Tables,
        *,
        now_ns: int,
        ids: Iterator[str],
        audience: Audience,
        is_over: Callable[[], bool],
    ) -> None:
        """is_over: asked before every round; the rehearsal is broken off when it says so."""
        self.tables = tables
        self.now_ns = now_ns
        self.waited_ns = 0
        self.rounds = 0
        self.is_complete = True
        self._ids = ids
        self._audience = audience
        self._is_over = is_over
        self._agenda = Agenda()
        self._busy: set[str] = {task.id for task in tables.tasks}
        """Tasks whose agents may have something to do."""

    def write(self, build: Build) -> Commit:
        """Make one change, as the control API would. Raises what that would answer."""
        return self._commit(build(self.tables))

    def play(self, service_ids: Collection[str], *, until_ns: int = 0) -> None:
        """Go on until everything has come to rest.

        service_ids: whose delays and monitoring are sat out; until_ns: so are all that end by then.
        """
        while self._plan():
            if self._act():
                continue
            wake_at_ns = self._agenda.wake_at_ns
            if wake_at_ns is None:
                return
            if wake_at_ns > until_ns and not any(map(self._is_in_motion, service_ids)):
                return
            self.waited_ns += max(0, wake_at_ns - self.now_ns)
            self.now_ns = max(self.now_ns, wake_at_ns)

    def _plan(self) -> bool:
        """Plan until nothing is left to decide at this moment; False: there was no time for it."""
        while dirty := self._agenda.take(self.now_ns):
            self.is_complete = self.rounds < ROUNDS_MAX and not self._is_over()
            if not self.is_complete:
                return False
            self.rounds += 1
            done = plan_round(self.tables, dirty, now_ns=self.now_ns, ids=self._ids)
            self._commit(done.changes)
            self._agenda.finish(dirty, done)
        return True

    def _act(self) -> bool:
        """Let every agent do its next step; whether any had one."""
        reports: list[Task] = []
        then_ns = self.now_ns + STEP_NS
        for task_id in sorted(self._busy):
            task = self.tables.tasks.get(task_id)
            report = None if task is None else next_report(self.tables, task, now_ns=then_ns)
            if report is not None:
                reports.append(report)
        self._busy.clear()
        if reports:
            self.now_ns = then_ns
        self._commit(map(update, reports))
        return bool(reports)

    def _commit(self, changes: Iterable[Change]) -> Commit:
        entry = StoreEntry(actions=tuple(map(_action, changes)), proposed_at_ns=self.now_ns)
        if not entry.actions:
            return Commit(version=self.tables.version, events=())
        commit = apply_entry(self.tables, entry, self.tables.version + 1)
        for event in commit.events:
            self._agenda.add(dirty_from_event(event.action, event.old, event.object))
            if isinstance(event.object, Task):
                self._busy.add(event.object.id)
        self._audience(commit, Moment(self.now_ns, self.waited_ns))
        return commit

    def _is_in_motion(self, service_id: str) -> bool:
        """Whether an update is under way, or a task waits until it may start."""
        service = self.tables.services.get(service_id)
        if service is not None and is_updating(service):
            return True
        return any(
            task.desired_state is TaskState.READY and not is_terminal(task)
            for task in self.tables.tasks_of_service(service_id).values()
        )


def _action(change: Change) -> StoreAction:
    expected = 0 if change.kind is ActionKind.CREATE else change.object.meta.version.index
    return StoreAction(kind=change.kind, object=change.object, expected_version=expected)
