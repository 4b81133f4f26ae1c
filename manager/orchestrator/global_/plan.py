"""Global services and jobs: a slot for every node that fits, none for a node that is gone.

New tasks come with their node; the scheduler only checks that there is room. What has to leave a
node, or ended there, is answered by `manager.orchestrator.restart`, and so is a node that takes
tasks again: its slot has a past, by which the restart policy judges. Completed tasks of a job stay
when their node goes: they show that its work was done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.orchestrator.ground import Ground
from manager.orchestrator.slots import Slot, service_slots
from manager.orchestrator.tasks import new_task
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.enums import TaskState
from shoal.model.modes import is_global, is_job
from shoal.model.objects import Service, Task
from shoal.model.plan import Plan


def plan(view: View, service_ids: Iterable[str], *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Give these services a task on every node that fits."""
    draft = Draft(view)
    for service_id in sorted(service_ids):
        service = draft.view.services.get(service_id)
        if service is not None and not service.pending_delete:
            advance(draft, service, now_ns=now_ns, ids=ids)
    return draft.plan()


def advance(draft: Draft, service: Service, *, now_ns: int, ids: Iterator[str]) -> None:
    """Write the missing and the superfluous slots of one service into a draft."""
    if not is_global(service.spec.mode):
        return
    slots = service_slots(draft.view, service)
    for slot in slots:
        if draft.view.nodes.get(slot.node_id) is None:
            _forget(draft, service, slot)
    used = {slot.node_id for slot in slots}
    for node_id in Ground(draft.view, service).node_ids():
        if node_id not in used:
            if not draft.room(new=1):
                return
            place = (0, node_id)
            draft.create(
                new_task(draft.view, service, place=place, task_id=next(ids), now_ns=now_ns)
            )


def _forget(draft: Draft, service: Service, slot: Slot) -> None:
    """Have the tasks of a node that is gone removed."""

    def shows_work(task: Task) -> bool:
        return is_job(service.spec.mode) and task.status.state is TaskState.COMPLETE

    for task in slot.tasks:
        if not shows_work(task) and draft.room(task):
            draft.update(task.with_desired_state(TaskState.REMOVE))
