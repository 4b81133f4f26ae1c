"""Restart supervision: answer ended and displaced tasks, let replacements start.

A replacement is made in the same commit that gives up the old task. It waits with desired state
READY, so its image is there when the delay has passed and the old container has stopped; then it
is raised to RUNNING. Both times are in the store (`start_after_ns`), so they survive a new leader.
A task whose node is DOWN or gone is replaced at once, unless the service's disconnect policy says
otherwise (`absence`). What runs on a node that is emptied with a deadline stays for that long
(`handover`). A slot of a global service is its node: while that takes no tasks, ended ones are
given up, and replaced when it does again. A slot of a job that has completed is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.orchestrator.ground import Ground
from manager.orchestrator.handover.linger import linger_until_ns, lingers
from manager.orchestrator.restart.absence import absence_of, returned
from manager.orchestrator.restart.policy import START_WAIT_NS, may_replace, turn_after_ns
from manager.orchestrator.slots import (
    Slot,
    age_key,
    ended_by_itself,
    is_stopping,
    place_of,
    service_slots,
)
from manager.orchestrator.tasks import new_task
from manager.orchestrator.update.dirty import is_dirty
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_terminal
from shoal.model.enums import TaskState
from shoal.model.modes import goal_of, is_job
from shoal.model.objects import Service, Task
from shoal.model.plan import Plan


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
    if service.pending_delete:
        return
    ground = Ground(draft.view, service)
    for slot in service_slots(draft.view, service):
        if is_job(service.spec.mode) and slot.completed:
            _rest(draft, slot)
        elif not _reunite(draft, service, slot, now_ns=now_ns):
            _answer(draft, service, slot, ground, now_ns=now_ns, ids=ids)
    start_waiting(draft, service, now_ns=now_ns)


def start_waiting(draft: Draft, service: Service, *, now_ns: int) -> None:
    """Raise the replacements of a service whose time has come to what its tasks are to reach."""
    tasks = draft.view.tasks_of_service(service.id).values()
    waiting = [
        task for task in tasks if task.desired_state is TaskState.READY and not is_terminal(task)
    ]
    if waiting:
        blocked = {place_of(service, task) for task in tasks if is_stopping(draft.view, task)}
        for task in sorted(waiting, key=age_key):
            is_blocked = place_of(service, task) in blocked
            _start(draft, task, goal_of(service.spec.mode), blocked=is_blocked, now_ns=now_ns)


def _rest(draft: Draft, slot: Slot) -> None:
    """Let go of what would do the work of a completed slot once more."""
    others = [task for task in slot.wanted if task.status.state is not TaskState.COMPLETE]
    if others and draft.room(*others):
        for task in others:
            draft.update(task.with_desired_state(TaskState.SHUTDOWN))


def _answer(
    draft: Draft, service: Service, slot: Slot, ground: Ground, *, now_ns: int, ids: Iterator[str]
) -> None:
    """Give up the tasks of a slot that ended or must leave, and replace what they did."""
    view = draft.view
    absence = absence_of(view, service, slot, now_ns=now_ns)
    if absence.awaited:
        draft.wake(absence.until_ns)
    staying = [task for task in slot.wanted if lingers(view, service, task, now_ns=now_ns)]
    for task in staying:
        draft.wake(linger_until_ns(view, task))
    original = absence.returning if absence.returning is not slot.newest else None
    wanted = [task for task in slot.wanted if task is not original]
    lost = [
        task
        for task in wanted
        if task not in absence.awaited
        and task not in staying
        and (is_terminal(task) or ground.must_leave(task))
    ]
    if not lost:
        head = slot.newest  # nothing of it runs any more: finished, unless the policy says go on
        if wanted and not (ended_by_itself(head) and _is_uncovered(view, service, head, wanted)):
            return
    else:
        head = max(lost, key=lambda task: not is_dirty(view, service, task))
    gone = {task.id for task in lost}
    kept = [task for task in wanted if task.id not in gone]
    replaced = _is_uncovered(view, service, head, kept) and may_replace(slot, head)
    if not replaced and head is not slot.newest and ended_by_itself(slot.newest):
        # What is lost needs no answer, but it covered for the newest task, which may need one now.
        head = slot.newest
        replaced = _is_uncovered(view, service, head, kept) and may_replace(slot, head)
    replaced = replaced and ground.takes(slot)
    if replaced and ended_by_itself(head) and head.start_after_ns > now_ns:
        # It ended before its turn (no image, say). A replacement made now would be prepared now,
        # and so fail without any pause: it is made when the turn has come.
        draft.wake(head.start_after_ns)
        replaced = False
    given_up = [task for task in lost if task is not absence.returning]
    if not given_up and not replaced:
        return
    if not draft.room(*given_up, new=int(replaced)):
        return
    for task in given_up:
        draft.update(task.with_desired_state(TaskState.SHUTDOWN))
    if replaced:
        draft.create(_replacement(view, service, head, now_ns=now_ns, task_id=next(ids)))
    draft.note(
        "task.replaced" if replaced else "task.given_up",
        task_id=head.id,
        service_id=service.id,
        state=head.status.state.name,
    )


def _reunite(draft: Draft, service: Service, slot: Slot, *, now_ns: int) -> bool:
    """Let go of what replaced a task that is found to run on; whether that was done.

    What replaced it leaves the slot altogether, so that the original is the newest task again.
    """
    found = returned(draft.view, service, slot)
    if found is None:
        return False
    original, believed_at_ns = found
    if now_ns < believed_at_ns:
        draft.wake(believed_at_ns)
        return False
    others = [task for task in slot.wanted if task is not original]
    if not draft.room(*others):
        return False
    for task in others:
        draft.update(task.with_desired_state(TaskState.REMOVE))
    draft.note("task.returned", task_id=original.id, service_id=service.id)
    return True


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
        start_after_ns = turn_after_ns(head, now_ns=now_ns)
    return new_task(
        view,
        service,
        place=place_of(service, head),
        task_id=task_id,
        now_ns=now_ns,
        waits=True,
        start_after_ns=start_after_ns,
        replaces=head,
    )


def _start(draft: Draft, task: Task, goal: TaskState, *, blocked: bool, now_ns: int) -> None:
    """Raise a waiting task; `blocked`: a container that was in its slot before may still run."""
    if now_ns < task.start_after_ns:
        draft.wake(task.start_after_ns)
        return
    patience_ns = max(task.start_after_ns, task.meta.created_at_ns) + START_WAIT_NS
    if blocked and now_ns < patience_ns:
        draft.wake(patience_ns)
        return
    if draft.room(task):
        draft.update(task.with_desired_state(goal))
