"""The enforcer: tasks whose node changed so that they may not be there any more are rejected.

Looked at are nodes that take tasks (DRAIN is the orchestrator's business, PAUSE leaves all in
place). A task is judged by the placement it was made with; those of global services, which a node
that does not fit is to be without, are the orchestrator's business too. Of tasks that together
reserve more than the node now has, the youngest go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.scheduler.filters import fits_placement, is_ready
from manager.scheduler.usage import Usage
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import TaskState
from shoal.model.modes import is_global
from shoal.model.objects import Node, Task
from shoal.model.plan import Plan
from shoal.model.types import Resources

ERROR = "assigned node no longer meets constraints"


def plan(view: View, node_ids: Iterable[str], *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Reject what may not stay on these nodes."""
    del ids
    draft = Draft(view)
    for node_id in sorted(node_ids):
        advance(draft, node_id, now_ns=now_ns)
    return draft.plan()


def advance(draft: Draft, node_id: str, *, now_ns: int) -> None:
    """Write the rejections of one node into a draft."""
    node = draft.view.nodes.get(node_id)
    if node is None or not is_ready(node):
        return
    tasks = [
        task
        for task in draft.view.tasks_of_node(node_id).values()
        if not is_terminal(task) and task.status.state >= TaskState.ASSIGNED
    ]
    tasks.sort(key=lambda task: (is_wanted(task), task.meta.created_at_ns, task.id))
    usage = Usage(node, ())
    for task in tasks:
        if is_wanted(task) and not _may_stay(draft.view, node, usage, task):
            _reject(draft, task, now_ns=now_ns)
        else:
            usage.add(task)


def _may_stay(view: View, node: Node, usage: Usage, task: Task) -> bool:
    service = view.services.get(task.service_id)
    anywhere = service is None or not is_global(service.spec.mode)
    if anywhere and not fits_placement(node, task.spec.placement):
        return False
    reserved = task.spec.resources.reservations
    if not usage.has_room(Resources(nano_cpus=reserved.nano_cpus,
                                    memory_bytes=reserved.memory_bytes)):  # fmt: skip
        return False
    return usage.still_has(task.assigned_generic_resources)


def _reject(draft: Draft, task: Task, *, now_ns: int) -> None:
    if draft.room(task):
        status = task.status.replaced(
            state=TaskState.REJECTED,
            timestamp_ns=now_ns,
            applied_at_ns=now_ns,
            message="task rejected by constraint enforcer",
            error=ERROR,
        )
        draft.update(task.with_status(status))
        draft.note("task.rejected", task_id=task.id, node_id=task.node_id)
