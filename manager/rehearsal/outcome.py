"""What came to pass in a rehearsal, read from its commits: tasks made, replaced, stopped, placed.

A *batch* is what begins at one moment of the rehearsal: slots of a rolling update that are replaced
together, say. The batches of a service are numbered from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from manager.store.apply import Commit, StoreEvent
from manager.store.view import View, is_unassigned
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import TaskState
from shoal.model.objects import Service, Task
from shoal.model.row import Row


class Moment(Row, frozen=True):
    """When something happens: by the clock of the rehearsal, and after how much of waiting."""

    now_ns: int
    waited_ns: int = 0


class MadeTask(Row, frozen=True):
    """A task that is made, as it is at the end; its id is not the one that it will have.

    replaces: the task of before that ran in its slot. gone: it is given up again before the end.
    waited_ns: delays and monitoring that come before it.
    """

    task: Task
    batch: int = 0
    waited_ns: int = 0
    replaces: Task | None = None
    gone: bool = False


class EndedTask(Row, frozen=True):
    """A task that is told to stop, as it was before. has_heir: another takes over its slot."""

    task: Task
    has_heir: bool = False


class ServiceOutcome(Row, frozen=True):
    """What becomes of one service.

    before: None where it is new. asked: as the changes left it, None where they remove it or are
    about others. after: at the end, None where it is gone.
    """

    service_id: str
    before: Service | None = None
    asked: Service | None = None
    after: Service | None = None
    made: tuple[MadeTask, ...] = ()
    ended: tuple[EndedTask, ...] = ()
    placed: tuple[Task, ...] = ()
    """Tasks of before that waited for a node and get one, as they are at the end."""

    @property
    def is_taken_back(self) -> bool:
        """Whether the update fails, and what was asked for is not in force at the end."""
        asked, after = self.asked, self.after
        return asked is not None and after is not None and after.spec != asked.spec

    @property
    def effects(self) -> tuple[object, ...]:
        """What tells it from other outcomes for the same service, without the ids of new tasks."""
        made = sorted((one.task.slot, one.task.node_id, one.gone) for one in self.made)
        placed = sorted((task.id, task.node_id) for task in self.placed)
        return tuple(made), tuple(sorted(one.task.id for one in self.ended)), tuple(placed)


class Recorder:
    """Takes down what is committed on a stage; bounded by what the stage does."""

    def __init__(self) -> None:
        self._services: dict[str, Service | None] = {}
        self._live: dict[str, Task] = {}
        """Tasks of before that were to run, as they were when something first became of them."""
        self._seen: set[str] = set()
        self._made: dict[str, tuple[Task, Moment]] = {}
        self._ended: dict[str, Task] = {}
        self._placed: dict[str, Task] = {}

    def note(self, commit: Commit, moment: Moment) -> None:
        """Take down one commit."""
        for event in commit.events:
            row = event.subject
            if isinstance(row, Service):
                old = event.old if isinstance(event.old, Service) else None
                self._services.setdefault(row.id, old)
            elif isinstance(row, Task) and row.service_id:
                self._note_task(event, row, moment)

    def outcomes(self, view: View) -> dict[str, ServiceOutcome]:
        """Every service that something became of. view: the state at the end."""
        made_by_service = _by_service(task for task, _ in self._made.values())
        ended_by_service = _by_service(self._ended.values())
        placed_by_service = _by_service(self._placed.values())
        ids = {*self._services, *made_by_service, *ended_by_service, *placed_by_service}
        return {
            service_id: self._outcome(
                view,
                service_id,
                made_by_service.get(service_id, []),
                ended_by_service.get(service_id, []),
            ).replaced(placed=tuple(sorted(placed_by_service.get(service_id, []), key=_order)))
            for service_id in sorted(ids)
        }

    def _note_task(self, event: StoreEvent, row: Task, moment: Moment) -> None:
        old = event.old if isinstance(event.old, Task) else None
        if old is None:
            self._made[row.id] = row, moment
        elif row.id in self._made:
            self._made[row.id] = row, self._made[row.id][1]
        elif row.id not in self._seen:
            self._seen.add(row.id)
            if is_wanted(old) and not is_terminal(old):
                self._live[row.id] = old
        before = self._live.get(row.id)
        if before is None:
            return
        if _is_given_up(event, row):
            self._ended.setdefault(row.id, before)
            self._placed.pop(row.id, None)
        elif is_unassigned(before) and not is_unassigned(row):
            self._placed[row.id] = row

    def _outcome(
        self, view: View, service_id: str, made: list[Task], ended: list[Task]
    ) -> ServiceOutcome:
        after = view.services.get(service_id)
        moments = {task.id: self._made[task.id][1] for task in made}
        batches = _ranks(moment.now_ns for moment in moments.values())
        replaced = {task.replaces_task_id for task in made}
        return ServiceOutcome(
            service_id=service_id,
            before=self._services.get(service_id, after),
            after=after,
            made=tuple(
                MadeTask(
                    task=task,
                    batch=batches[moments[task.id].now_ns],
                    waited_ns=moments[task.id].waited_ns,
                    replaces=self._ended.get(task.replaces_task_id),
                    gone=view.tasks.get(task.id) is None or not is_wanted(task),
                )
                for task in sorted(made, key=lambda one: (moments[one.id].now_ns, *_order(one)))
            ),
            ended=tuple(
                EndedTask(task=task, has_heir=task.id in replaced)
                for task in sorted(ended, key=_order)
            ),
        )


def _is_given_up(event: StoreEvent, task: Task) -> bool:
    """Whether a task that was to run shall not any more; work that was done is not given up."""
    if task.status.state is TaskState.COMPLETE:
        return False
    return event.object is None or not is_wanted(task) or is_terminal(task)


def _by_service(tasks: Iterable[Task]) -> Mapping[str, list[Task]]:
    found: dict[str, list[Task]] = {}
    for task in tasks:
        found.setdefault(task.service_id, []).append(task)
    return found


def _ranks(times: Iterable[int]) -> dict[int, int]:
    return {time_ns: rank for rank, time_ns in enumerate(sorted(set(times)), 1)}


def _order(task: Task) -> tuple[int, str, str]:
    return task.slot, task.node_id, task.id
