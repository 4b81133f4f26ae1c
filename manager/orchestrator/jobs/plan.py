"""Jobs: as many completions as were asked for, no more at once than allowed, none twice.

What was done is read from the stored tasks of the job's present iteration: a slot is done when one
of its tasks completed, whoever led the cluster then and whatever became of the others. A slot whose
attempts are used up failed for good, and no other slot makes up for it. Tasks of earlier iterations
are removed; what follows one in its slot waits until its container has stopped.

A job that is done, or failed for good, is removed when its time to live after that is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.orchestrator.ground import Ground
from manager.orchestrator.restart.policy import may_replace
from manager.orchestrator.slots import (
    Slot,
    age_key,
    ended_at_ns,
    is_stopping,
    place_of,
    service_slots,
)
from manager.orchestrator.tasks import new_task
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_terminal
from shoal.model.enums import TaskState
from shoal.model.modes import concurrency, is_job, is_of_this_iteration
from shoal.model.objects import Service
from shoal.model.plan import Plan
from shoal.model.specs import ReplicatedJobMode
from shoal.model.types import JobStatus


def plan(view: View, service_ids: Iterable[str], *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Drive these jobs."""
    draft = Draft(view)
    for service_id in sorted(service_ids):
        service = draft.view.services.get(service_id)
        if service is not None and not service.pending_delete:
            drop_earlier(draft, service)
            advance(draft, service, now_ns=now_ns, ids=ids)
    return draft.plan()


def drop_earlier(draft: Draft, service: Service) -> None:
    """Mark the tasks of earlier iterations for removal."""
    if not is_job(service.spec.mode):
        return
    for task in sorted(draft.view.tasks_of_service(service.id).values(), key=age_key):
        is_earlier = not is_of_this_iteration(service, task)
        if is_earlier and task.desired_state < TaskState.REMOVE and draft.room(task):
            draft.update(task.with_desired_state(TaskState.REMOVE))


def advance(draft: Draft, service: Service, *, now_ns: int, ids: Iterator[str]) -> None:
    """Write the next tasks of one job into a draft, or its removal when its time is over."""
    mode = service.spec.mode
    if not is_job(mode):
        return
    slots = service_slots(draft.view, service)
    if isinstance(mode, ReplicatedJobMode):
        _fill(draft, service, mode, slots, now_ns=now_ns, ids=ids)
        slots = service_slots(draft.view, service)
    _expire(draft, service, slots, now_ns=now_ns)


def is_open(slot: Slot, ground: Ground) -> bool:
    """Whether work in the slot is under way, or will be when the delay after a failure is over."""
    if slot.completed:
        return False
    return bool(slot.wanted) or (ground.takes(slot) and may_replace(slot, slot.newest))


def finished_at_ns(view: View, service: Service, slots: Iterable[Slot]) -> int | None:
    """When the last of the job's slots was done or failed for good; None: work is left."""
    mode, slots, ground = service.spec.mode, list(slots), Ground(view, service)
    if any(is_open(slot, ground) for slot in slots):
        return None
    if isinstance(mode, ReplicatedJobMode):
        missing = len(slots) < mode.total_completions
    else:
        known = {slot.node_id for slot in slots}
        missing = not known or not known.issuperset(ground.node_ids())
    if missing:
        return None
    begun_at_ns = (service.job_status or JobStatus()).last_execution_at_ns
    return max([begun_at_ns, *(_settled_at_ns(slot) for slot in slots)])


def _settled_at_ns(slot: Slot) -> int:
    if slot.completed:
        return min(
            ended_at_ns(task) for task in slot.tasks if task.status.state is TaskState.COMPLETE
        )
    return max((ended_at_ns(task) for task in slot.tasks if is_terminal(task)), default=0)


def _fill(
    draft: Draft,
    service: Service,
    mode: ReplicatedJobMode,
    slots: list[Slot],
    *,
    now_ns: int,
    ids: Iterator[str],
) -> None:
    """Begin with as many further slots as may run beside those that are open."""
    used = {slot.number for slot in slots}
    ground = Ground(draft.view, service)
    free = concurrency(mode) - sum(is_open(slot, ground) for slot in slots)
    left = [number for number in range(mode.total_completions) if number not in used]
    tasks = draft.view.tasks_of_service(service.id).values()
    stopping = {place_of(service, task) for task in tasks if is_stopping(draft.view, task)}
    for number in left[: max(0, free)]:
        if not draft.room(new=1):
            return
        place = (number, "")
        task = new_task(
            draft.view,
            service,
            place=place,
            task_id=next(ids),
            now_ns=now_ns,
            waits=place in stopping,
            start_after_ns=now_ns if place in stopping else 0,
        )
        draft.create(task)


def _expire(draft: Draft, service: Service, slots: list[Slot], *, now_ns: int) -> None:
    ttl_ns = service.spec.ttl_after_finish_ns
    done_at_ns = None if ttl_ns is None else finished_at_ns(draft.view, service, slots)
    if ttl_ns is None or done_at_ns is None:
        return
    if now_ns < done_at_ns + ttl_ns:
        draft.wake(done_at_ns + ttl_ns)
    elif draft.room(service):
        draft.remove(service)
        draft.note("job.expired", service_id=service.id, name=service.spec.annotations.name)
