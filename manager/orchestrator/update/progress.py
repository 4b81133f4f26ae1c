"""Where a rolling update stands, read from the stored tasks of each slot.

An update keeps no memory of its own. In every slot the streak of newest tasks with the service's
spec version tells what the update did there: its first task is the one the update made, its end
by itself soon after the start is a failure, the first of them to run (or to end) is the moment the
slot was done.
"""

from __future__ import annotations

from manager.orchestrator.slots import (
    Slot,
    ended_at_ns,
    ended_by_itself,
    kept_original,
    run_time_ns,
)
from manager.orchestrator.update.dirty import has_other_endpoint, is_dirty
from manager.store.view import View
from shoal.model.defaults import is_terminal
from shoal.model.enums import TaskState
from shoal.model.objects import Service, Task
from shoal.model.row import Row


class SlotProgress(Row, frozen=True):
    """One slot as the update sees it.

    `outdated`: wanted tasks that are out of date, or the last task of a finished slot that is.
    `current`: wanted tasks that are up to date. `made`: tasks of this version that replaced one
    of another, and what followed them; empty when the update did not touch the slot. `held_up`:
    the new one, when it makes no progress (`update.deadline`).
    """

    slot: Slot
    outdated: tuple[Task, ...]
    current: tuple[Task, ...]
    made: tuple[Task, ...]
    held_up: Task | None = None

    @property
    def is_on_the_way(self) -> bool:
        """Whether what the update made here has neither run nor ended by now."""
        return bool(self.made and self.current) and self.done_at_ns is None

    @property
    def is_due(self) -> bool:
        """Whether the update still has to begin with this slot.

        Where its own task ended by itself it did what it could: the restart policy decides. Where
        that was stopped, the user had changed their mind in between, and it begins again.
        """
        if not self.outdated or self.current:
            return False
        return not self.made or not ended_by_itself(self.made[-1])

    @property
    def done_at_ns(self) -> int | None:
        """When the first task that is up to date ran, or one the update made ended; None: not yet.

        It need not be of the update's making: one that a change passed by and came back to runs on.
        """
        times = [
            ended_at_ns(task)
            for task in self.made + self.current
            if task.status.state is TaskState.RUNNING or ended_by_itself(task)
        ]
        return min(times, default=None)

    def failure(self, *, monitor_ns: int, since_ns: int) -> Task | None:
        """The task the update made here, when it ended within `monitor_ns` after its start.

        since_ns: ends before this time belong to an earlier update.
        """
        first = next((task for task in self.made if ended_by_itself(task)), None)
        if first is None or ended_at_ns(first) < since_ns:
            return None
        ran_before = any(
            task.status.state is TaskState.RUNNING for task in self.made[: self.made.index(first)]
        )
        return None if ran_before or run_time_ns(first) > monitor_ns else first


def progress_of(view: View, service: Service, slot: Slot) -> SlotProgress:
    """Judge one slot."""
    outdated: list[Task] = []
    current: list[Task] = []
    original = kept_original(service, slot)
    handed_over = slot.handed_over
    for task in slot.wanted or (slot.newest,):
        if task is original:
            continue  # whether it stays is the restart planner's to say
        if is_dirty(view, service, task):
            outdated.append(task)
        elif task not in handed_over and not is_terminal(task):
            current.append(task)
    return SlotProgress(
        slot=slot, outdated=tuple(outdated), current=tuple(current), made=made_by(service, slot)
    )


def made_by(service: Service, slot: Slot) -> tuple[Task, ...]:
    """Tasks of the service's present version that an update put into the slot, oldest first."""
    start = len(slot.tasks)
    while start and _is_of_this_version(service, slot.tasks[start - 1]):
        start -= 1
    made = slot.tasks[start:]
    return made if made and made[0].replaces_task_id else ()


def _is_of_this_version(service: Service, task: Task) -> bool:
    return task.spec_version == service.spec_version and not has_other_endpoint(service, task)
