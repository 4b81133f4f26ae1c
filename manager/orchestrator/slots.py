"""The slots of a service: its tasks sorted into the places they fill, oldest first.

Everything the planners know about the past is read from here, that is from stored tasks, so a new
leader decides as the old one would have. Tasks with desired state REMOVE are on their way out and
belong to no slot any more.
"""

from __future__ import annotations

from collections.abc import Iterable

from manager.store.view import View
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import NodeAvailability, NodeState, ReturnAction, TaskState
from shoal.model.objects import Service, Task
from shoal.model.row import Row
from shoal.model.types import Endpoint

_ENDED_BY_ITSELF = frozenset({TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED})
_NOT_YET_STORED_NS = 1 << 63


class Slot(Row, frozen=True):
    """One place of a service. `tasks` is never empty, oldest first."""

    number: int
    tasks: tuple[Task, ...]

    @property
    def wanted(self) -> tuple[Task, ...]:
        """Tasks that shall run, or ended and are not answered yet."""
        return tuple(task for task in self.tasks if is_wanted(task))

    @property
    def newest(self) -> Task:
        """The task that none other replaces; the youngest of them."""
        replaced = {task.replaces_task_id for task in self.tasks}
        heads = [task for task in self.tasks if task.id not in replaced]
        return (heads or self.tasks)[-1]

    @property
    def running(self) -> bool:
        """Whether a wanted task runs."""
        return any(task.status.state is TaskState.RUNNING for task in self.tasks if is_wanted(task))

    def streak(self, of: Task) -> tuple[Task, ...]:
        """The newest tasks in a row, up to `of`, that were made from the same spec version."""
        tasks = self.tasks[: self.tasks.index(of) + 1]
        start = len(tasks)
        while start and tasks[start - 1].spec_version == of.spec_version:
            start -= 1
        return tasks[start:]


def slots_of(tasks: Iterable[Task]) -> list[Slot]:
    """The slots in use, by number."""
    tasks_by_slot: dict[int, list[Task]] = {}
    for task in tasks:
        if task.desired_state < TaskState.REMOVE:
            tasks_by_slot.setdefault(task.slot, []).append(task)
    for members in tasks_by_slot.values():
        members.sort(key=age_key)
    return [Slot(number=number, tasks=tuple(tasks_by_slot[number]))
            for number in sorted(tasks_by_slot)]  # fmt: skip


def service_slots(view: View, service: Service) -> list[Slot]:
    """The slots of a service, by number."""
    return slots_of(view.tasks_of_service(service.id).values())


def age_key(task: Task) -> tuple[int, str]:
    """Sorts tasks by age, those that are not stored yet last."""
    return (task.meta.created_at_ns or _NOT_YET_STORED_NS, task.id)


def ended_by_itself(task: Task) -> bool:
    """Whether the task ended without being asked to."""
    return task.status.state in _ENDED_BY_ITSELF


def ended_at_ns(task: Task) -> int:
    """When a manager learnt of the task's state; the agent's own time where none is known."""
    return task.status.applied_at_ns or task.status.timestamp_ns


def keeps_original(service: Service, task: Task) -> bool:
    """Whether the task, lost and replaced, is to stay if it is found to run on.

    Only a task that is wanted just as it is: one that is out of date is not worth it.
    """
    policy = service.spec.task.disconnect
    if policy is None or policy.on_return is not ReturnAction.KEEP_ORIGINAL:
        return False
    same = task.spec.replaced(disconnect=policy) == service.spec.task
    return same and (task.endpoint or Endpoint()).spec == service.spec.endpoint


def kept_original(service: Service, slot: Slot) -> Task | None:
    """The task that stays wanted beside its replacement; None where there are not both."""
    wanted = slot.wanted
    if len(wanted) < 2 or not keeps_original(service, wanted[0]):
        return None
    spec = service.spec.task
    same = all(task.spec.replaced(disconnect=spec.disconnect) == spec for task in wanted[1:])
    return wanted[0] if same else None


def node_is_lost(view: View, task: Task) -> bool:
    """Whether the task's node is DOWN or gone from the cluster."""
    if not task.node_id:
        return False
    node = view.nodes.get(task.node_id)
    return node is None or node.status.state is NodeState.DOWN


def node_is_invalid(view: View, task: Task) -> bool:
    """Whether the task must leave its node: it is DOWN, gone, or DRAIN."""
    if not task.node_id:
        return False
    node = view.nodes.get(task.node_id)
    return (
        node is None
        or node.status.state is NodeState.DOWN
        or node.spec.availability is NodeAvailability.DRAIN
    )


def is_stopping(view: View, task: Task) -> bool:
    """Whether a container of this task may still run although it shall not."""
    return (
        not is_wanted(task)
        and not is_terminal(task)
        and task.status.state >= TaskState.ASSIGNED
        and not node_is_lost(view, task)
    )
