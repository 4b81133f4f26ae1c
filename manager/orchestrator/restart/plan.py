"""Restart supervision: answer ended and displaced tasks, let replacements start.

A replacement is made in the same commit that gives up the old task. It waits with desired state
READY, so its image is there when the delay has passed and the old container has stopped; then it
is raised to RUNNING. Both times are in the store (`start_after_ns`), so they survive a new leader.
A task whose node is DOWN or gone is replaced at once: there is nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.orchestrator.restart.policy import START_WAIT_NS, may_replace
from manager.orchestrator.slots import (
    Slot,
    age_key,
    ended_at_ns,
    ended_by_itself,
    is_stopping,
    node_is_invalid,
    service_slots,
)
from manager.orchestrator.tasks import new_task
from manager.orchestrator.update.dirty import is_dirty
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_terminal, restart_delay_ns
from shoal.model.enums import TaskState
from shoal.model.objects import Service, Task
from shoal.model.plan import Plan
from shoal.model.specs import ReplicatedMode


def plan(view: View, service_ids: Iterable[str], *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Replace and start tasks of these services."""
    draft = Draft(view)
    for service_id in sorted(service_ids):
        service = draft.view.services.get(service_id)
        if service is not None:
            advance(draft, service, now_ns=now_ns, ids=ids)
    return draft.plan()


def advance(draft: Draft, service: Service, *, now_ns: int, ids: Iterator[str]) -> None:
    """Write the restarts of one service into a draft."""
    if service.pending_delete or not isinstance(service.spec.mode, ReplicatedMode):
        return
    for slot in service_slots(draft.view, service):
        _answer(draft, service, slot, now_ns=now_ns, ids=ids)
    start_waiting(draft, service, now_ns=now_ns)


def start_waiting(draft: Draft, service: Service, *, now_ns: int) -> None:
    """Raise the replacements of a service whose time has come to desired state RUNNING."""
    tasks = draft.view.tasks_of_service(service.id).values()
    waiting = [
        task for task in tasks if task.desired_state is TaskState.READY and not is_terminal(task)
    ]
    if waiting:
        blocked = {task.slot for task in tasks if is_stopping(draft.view, task)}
        for task in sorted(waiting, key=age_key):
            _start(draft, task, blocked=task.slot in blocked, now_ns=now_ns)


def _answer(draft: Draft, service: Service, slot: Slot, *, now_ns: int, ids: Iterator[str]) -> None:
    """Give up the tasks of a slot that ended or must leave, and replace what they did."""
    view = draft.view
    wanted = slot.wanted
    lost = [task for task in wanted if is_terminal(task) or node_is_invalid(view, task)]
    if not lost:
        if wanted:
            return
        head = slot.newest  # nothing runs here any more: finished, unless the policy says go on
    else:
        head = max(lost, key=lambda task: not is_dirty(view, service, task))
    gone = {task.id for task in lost}
    kept = [task for task in wanted if task.id not in gone]
    replaced = _is_uncovered(view, service, head, kept) and may_replace(slot, head)
    if replaced and ended_by_itself(head) and head.start_after_ns > now_ns:
        # It ended before its turn (no image, say). A replacement made now would be prepared now,
        # and so fail without any pause: it is made when the turn has come.
        draft.wake(head.start_after_ns)
        replaced = False
    if not lost and not replaced:
        return
    if not draft.room(*lost, new=int(replaced)):
        return
    for task in lost:
        draft.update(task.with_desired_state(TaskState.SHUTDOWN))
    if replaced:
        draft.create(_replacement(view, service, head, now_ns=now_ns, task_id=next(ids)))
    draft.note(
        "task.replaced" if replaced else "task.given_up",
        task_id=head.id,
        service_id=service.id,
        state=head.status.state.name,
    )


def _is_uncovered(view: View, service: Service, head: Task, kept: list[Task]) -> bool:
    """Whether the slot would miss what `head` did.

    While an update starts the new task before it stops the old one, both are wanted: the loss of
    the old one needs no answer, that of the new one does.
    """
    if not kept:
        return True
    return not is_dirty(view, service, head) and all(is_dirty(view, service, task) for task in kept)


def _replacement(view: View, service: Service, head: Task, *, now_ns: int, task_id: str) -> Task:
    start_after_ns = now_ns
    if head.desired_state is TaskState.READY:
        # It never ran: the next one waits for what is left of its delay, and then its own.
        start_after_ns = max(start_after_ns, head.start_after_ns)
    if ended_by_itself(head):
        delay_ns = restart_delay_ns(head.spec.restart)
        base_ns = min(now_ns, ended_at_ns(head) or now_ns)
        start_after_ns = max(now_ns, max(base_ns, head.start_after_ns) + delay_ns)
    return new_task(
        view,
        service,
        slot=head.slot,
        task_id=task_id,
        now_ns=now_ns,
        desired=TaskState.READY,
        start_after_ns=start_after_ns,
        replaces=head,
    )


def _start(draft: Draft, task: Task, *, blocked: bool, now_ns: int) -> None:
    """Raise a waiting task; `blocked`: a container that was in its slot before may still run."""
    if now_ns < task.start_after_ns:
        draft.wake(task.start_after_ns)
        return
    patience_ns = max(task.start_after_ns, task.meta.created_at_ns) + START_WAIT_NS
    if blocked and now_ns < patience_ns:
        draft.wake(patience_ns)
        return
    if draft.room(task):
        draft.update(task.with_desired_state(TaskState.RUNNING))
