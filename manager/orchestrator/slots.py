"""The slots of a service: its tasks sorted into the places they fill, oldest first.

A place is a number, or with a global service a node; those of a job belong to one iteration of it.

Everything the planners know about the past is read from here, that is from stored tasks, so a new
leader decides as the old one would have. Tasks with desired state REMOVE are on their way out and
belong to no slot any more.
"""

from __future__ import annotations

from manager.store.overlay import Overlay
from manager.store.view import View
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import NodeAvailability, NodeState, ReturnAction, TaskState
from shoal.model.modes import is_global, is_of_this_iteration
from shoal.model.objects import Service, Task
from shoal.model.row import Row
from shoal.model.types import Endpoint

_ENDED_BY_ITSELF = frozenset({TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED})
_NOT_YET_STORED_NS = 1 << 63

Place = tuple[int, str]
"""Number and node of a slot; one of the two says nothing."""


class Slot(Row, frozen=True):
    """One place of a service. `tasks` is never empty, oldest first.

    number: 0 where the place is the node `node_id`, as with all places of a global service.
    """

    number: int
    tasks: tuple[Task, ...]
    node_id: str = ""

    @property
    def place(self) -> Place:
        """What tells it from the service's others."""
        return self.number, self.node_id

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

    @property
    def completed(self) -> bool:
        """Whether a task of it completed: what a job asks for, whatever became of the others."""
        return any(task.status.state is TaskState.COMPLETE for task in self.tasks)

    @property
    def handed_over(self) -> tuple[Task, ...]:
        """Wanted tasks that go on only until a wanted one, which takes over from them, runs."""
        if len(self.tasks) == 1:  # the common case: this is asked of every slot, again and again
            return ()
        wanted = self.wanted
        over = {task.replaces_task_id for task in wanted if task.takes_over}
        return tuple(task for task in wanted if task.id in over)

    def streak(self, of: Task) -> tuple[Task, ...]:
        """The newest tasks in a row, up to `of`, that were made from the same spec version."""
        tasks = self.tasks[: self.tasks.index(of) + 1]
        start = len(tasks)
        while start and tasks[start - 1].spec_version == of.spec_version:
            start -= 1
        return tasks[start:]


def place_of(service: Service, task: Task) -> Place:
    """The place of a task of the service."""
    return (0, task.node_id) if is_global(service.spec.mode) else (task.slot, "")


def service_slots(view: View, service: Service) -> list[Slot]:
    """The slots in use of a service, by place; of a job those of its present iteration."""
    if isinstance(view, Overlay):
        return list(view.derived(service, lambda: _slots(view, service)))
    return _slots(view, service)


def _slots(view: View, service: Service) -> list[Slot]:
    tasks_by_place: dict[Place, list[Task]] = {}
    for task in view.tasks_of_service(service.id).values():
        if task.desired_state < TaskState.REMOVE and is_of_this_iteration(service, task):
            tasks_by_place.setdefault(place_of(service, task), []).append(task)
    return [
        Slot(number=number, node_id=node_id, tasks=tuple(sorted(tasks, key=age_key)))
        for (number, node_id), tasks in sorted(tasks_by_place.items())
    ]


def age_key(task: Task) -> tuple[int, str]:
    """Sorts tasks by age, those that are not stored yet last."""
    return (task.meta.created_at_ns or _NOT_YET_STORED_NS, task.id)


def ended_by_itself(task: Task) -> bool:
    """Whether the task ended without being asked to."""
    return task.status.state in _ENDED_BY_ITSELF


def ended_at_ns(task: Task) -> int:
    """When a manager learnt of the task's state; the agent's own time where none is known."""
    return task.status.applied_at_ns or task.status.timestamp_ns


def run_time_ns(task: Task) -> int:
    """How long the container of an ended task ran, nanoseconds; 0 when it never started."""
    container = task.status.container
    if container is None or not container.started_at_ns:
        return 0
    finished_at_ns = container.finished_at_ns or task.status.timestamp_ns
    return max(0, finished_at_ns - container.started_at_ns)


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
    if len(slot.tasks) == 1:
        return None
    handed_over = slot.handed_over
    wanted = [task for task in slot.wanted if task not in handed_over]
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
