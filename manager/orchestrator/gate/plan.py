"""Services that depend on others wait for them: the first tasks, and updates, begin in order.

A service is *held* from its creation, or from a change of its task template, until each service
that it depends on has all that it wants in the state that was asked for, made from its newest
template. What has begun is never held again: tasks that end are replaced, rollbacks go back, and
scaling works whatever became of the others meanwhile. While a service is held its older tasks are
kept up; one that ends is replaced from the newer template.

A dependency that is gone holds nobody: it will not come. Nothing is remembered: whether a service
has begun is read from its tasks and its update status.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.orchestrator.ground import Ground
from manager.orchestrator.slots import Slot, service_slots
from manager.orchestrator.update.dirty import is_dirty
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import DependencyCondition, TaskState
from shoal.model.modes import concurrency, is_global, is_job, is_of_this_iteration
from shoal.model.objects import Service, Task
from shoal.model.specs import ReplicatedJobMode, ReplicatedMode
from shoal.model.types import ServiceDependency

LOOK_AGAIN_NS = 1_000_000_000
"""That a task was started makes no service dirty, and neither does that a dependency is gone."""

_WORDS = {
    DependencyCondition.STARTED: "to be started",
    DependencyCondition.HEALTHY: "to run and be healthy",
    DependencyCondition.COMPLETED: "to complete",
}


def is_held(view: View, service: Service) -> bool:
    """Whether the service waits for another one before it begins."""
    if not service.spec.depends_on or _has_begun(view, service):
        return False
    return any(not is_met(view, one) for one in service.spec.depends_on)


def advance(draft: Draft, service: Service, *, now_ns: int) -> bool:
    """Whether the service is held; it is then looked at again a moment later."""
    held = is_held(draft.view, service)
    if held:
        draft.wake(now_ns + LOOK_AGAIN_NS)
    return held


def waits_of(view: View, service: Service) -> Iterator[str]:
    """A line for each service that this one waits for."""
    if is_held(view, service):
        for one in service.spec.depends_on:
            if not is_met(view, one):
                done, wanted = _progress(view, one)
                of = f": {done} of {wanted} tasks" if wanted else ""
                yield f"waits for service {one.service} {_WORDS[one.condition]}{of}"


def followers(view: View, service_ids: Iterable[str]) -> set[str]:
    """Services that depend on one of these."""
    found = (view.services.get(service_id) for service_id in service_ids)
    names = {one.spec.annotations.name.lower() for one in found if one is not None}
    return {
        service.id
        for service in view.services
        if service.spec.depends_on
        and any(one.service.lower() in names for one in service.spec.depends_on)
    }


def is_met(view: View, dependency: ServiceDependency) -> bool:
    """Whether nothing of a dependency is waited for any more."""
    done, wanted = _progress(view, dependency)
    return done >= wanted


def _progress(view: View, dependency: ServiceDependency) -> tuple[int, int]:
    """How many tasks are as far as they are to be, of how many."""
    service = view.services.by_name(dependency.service)
    if service is None or service.pending_delete:
        return 0, 0
    slots = service_slots(view, service)
    wanted = _wanted(view, service, slots, dependency.condition)
    if not is_job(service.spec.mode) and _is_outdated(view, service):
        return 0, max(wanted, 1)
    return sum(_is_there(view, service, slot, dependency.condition) for slot in slots), wanted


def _wanted(view: View, service: Service, slots: list[Slot], condition: DependencyCondition) -> int:
    mode = service.spec.mode
    if is_global(mode):
        return len(Ground(view, service).node_ids())
    if isinstance(mode, ReplicatedJobMode):
        if condition is DependencyCondition.COMPLETED:
            return mode.total_completions
        return min(concurrency(mode), mode.total_completions)
    return mode.replicas if isinstance(mode, ReplicatedMode) else len(slots)


def _is_there(view: View, service: Service, slot: Slot, condition: DependencyCondition) -> bool:
    tasks = [task for task in slot.tasks if _is_current(view, service, task)]
    completed = any(task.status.state is TaskState.COMPLETE for task in tasks)
    if completed and (is_job(service.spec.mode) or not _runs_again(tasks)):
        return True
    match condition:
        case DependencyCondition.STARTED:
            return any(map(_was_started, tasks))
        case DependencyCondition.HEALTHY:
            running = (task for task in tasks if task.status.state is TaskState.RUNNING)
            return any(is_wanted(task) for task in running)
        case DependencyCondition.COMPLETED:
            return False


def _was_started(task: Task) -> bool:
    """Whether its program has begun, whatever became of it."""
    container = task.status.container
    if is_terminal(task):
        return container is not None and container.started_at_ns > 0
    return task.status.state >= TaskState.STARTING


def _runs_again(tasks: list[Task]) -> bool:
    """Whether what completed was put in its place anew: its restart policy says `any`."""
    return any(is_wanted(task) and task.status.state < TaskState.COMPLETE for task in tasks)


def _is_current(view: View, service: Service, task: Task) -> bool:
    """Whether no update will replace it; what a job's iteration has made is never replaced."""
    return is_job(service.spec.mode) or not is_dirty(view, service, task)


def _is_outdated(view: View, service: Service) -> bool:
    """Whether tasks that an update is to replace are still wanted."""
    tasks = view.tasks_of_service(service.id).values()
    return any(is_wanted(task) and not _is_current(view, service, task) for task in tasks)


def _has_begun(view: View, service: Service) -> bool:
    tasks = view.tasks_of_service(service.id).values()
    if is_job(service.spec.mode):
        return any(is_of_this_iteration(service, task) for task in tasks)
    if not tasks:
        return False
    return service.update_status is not None or not _is_outdated(view, service)
