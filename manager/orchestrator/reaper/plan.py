"""Delete what nobody needs any more.

Deleted are: tasks marked REMOVE that do not run; tasks given up before they had a node; dead tasks
beyond the history limit of their slot; removed services whose tasks are gone. A task whose node
left the cluster, or has been DOWN for a day, is ORPHANED. Of the revisions of services the newest
are kept, those of removed services go. Kept, whatever the limit: tasks not answered yet, the last
task of a finished slot and those of a job that completed (they show that the work was done),
attempts that max_attempts still counts, and what a running update still judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.orchestrator import revisions
from manager.orchestrator.restart.policy import attempts_of
from manager.orchestrator.slots import Slot, age_key, service_slots
from manager.orchestrator.update.plan import is_updating
from manager.orchestrator.update.progress import made_by
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_terminal, is_wanted, task_history_retention_limit
from shoal.model.enums import NodeState, TaskState
from shoal.model.modes import is_job
from shoal.model.objects import Service, Task
from shoal.model.plan import Plan
from shoal.model.types import RestartPolicy

ORPHAN_AFTER_NS = 24 * 3600 * 1_000_000_000


def plan(view: View, service_ids: Iterable[str], *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Clean up after these services, which may be gone already. `ids` is not used."""
    del ids
    draft = Draft(view)
    for service_id in sorted(service_ids):
        advance(draft, service_id, now_ns=now_ns)
    return draft.plan()


def advance(draft: Draft, service_id: str, *, now_ns: int) -> None:
    """Write the clean-up of one service into a draft."""
    view = draft.view
    service = view.services.get(service_id)
    for task in sorted(view.tasks_of_service(service_id).values(), key=age_key):
        _orphan(draft, task, now_ns=now_ns)
    for task in sorted(view.tasks_of_service(service_id).values(), key=age_key):
        if _is_disposable(task) and draft.room(task):
            draft.remove(task)
    if service is None:
        revisions.sweep(draft, service_id)
        return
    revisions.trim(draft, service)
    if service.pending_delete:
        _remove_service(draft, service)
        return
    limit = task_history_retention_limit(view.cluster)
    if limit >= 0:
        for slot in service_slots(view, service):
            _trim(draft, service, slot, limit)


def _orphan(draft: Draft, task: Task, *, now_ns: int) -> None:
    """Give up a task whose node will not tell how it ended."""
    if not task.node_id or is_terminal(task):
        return
    node = draft.view.nodes.get(task.node_id)
    if node is not None:
        if node.status.state is not NodeState.DOWN:
            return
        # The row of a node that is DOWN changes seldom, so its last change dates the failure.
        at_ns = node.meta.updated_at_ns + ORPHAN_AFTER_NS
        if now_ns < at_ns:
            draft.wake(at_ns)
            return
    if draft.room(task):
        status = task.status.replaced(
            state=TaskState.ORPHANED,
            timestamp_ns=now_ns,
            applied_at_ns=now_ns,
            message="the node is gone" if node is None else "the node has been down for 24 hours",
        )
        draft.update(task.with_status(status))


def _is_disposable(task: Task) -> bool:
    state = task.status.state
    if task.desired_state >= TaskState.REMOVE:
        return state < TaskState.ASSIGNED or state >= TaskState.COMPLETE
    return not is_wanted(task) and state < TaskState.ASSIGNED


def _remove_service(draft: Draft, service: Service) -> None:
    """Remove a service when at most tasks on nodes that are DOWN are left of it.

    Those follow when their node returns, or after a day; the name is free at once.
    """
    view = draft.view
    for task in view.tasks_of_service(service.id).values():
        node = view.nodes.get(task.node_id)
        if node is None or node.status.state is not NodeState.DOWN:
            return
    if draft.room(service):
        draft.remove(service)


def _trim(draft: Draft, service: Service, slot: Slot, limit: int) -> None:
    """Delete the oldest dead tasks of a slot beyond the limit."""
    dead = [task for task in slot.tasks if is_terminal(task) and not is_wanted(task)]
    if len(dead) <= limit:
        return
    needed = _needed(service, slot)
    for task in dead[: len(dead) - limit]:
        if task.id not in needed and draft.room(task):
            draft.remove(task)


def _needed(service: Service, slot: Slot) -> set[str]:
    """Ids of dead tasks that decisions still depend on."""
    newest = slot.newest
    needed = {newest.id}
    policy = newest.spec.restart or RestartPolicy()
    if policy.max_attempts:
        needed.update(task.id for task in attempts_of(slot, newest)[-(policy.max_attempts + 1) :])
    if is_job(service.spec.mode):
        done = (task.id for task in slot.tasks if task.status.state is TaskState.COMPLETE)
        needed.update(done)
    if is_updating(service):
        needed.update(task.id for task in made_by(service, slot)[:1])
    return needed
