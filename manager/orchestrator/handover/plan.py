"""Hand-over: a task goes on serving until another of its slot runs elsewhere, then it stops.

Two tasks of the slot are wanted meanwhile; the younger one says so itself (`takes_over`), so a new
leader goes on where the old one stopped. It may fail as often as its restart policy allows, with
the policy's pauses: the older one serves on. Who begins one: a node that is emptied (`linger`), of
whose tasks each running one is handed over. The task of a job is not: it ends its work or is
stopped at the deadline, for to begin the work a second time meanwhile would help nobody.

A hand-over that has lost its cause, and whose task found no node so far, is called off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.orchestrator.handover.linger import lingers
from manager.orchestrator.restart.policy import may_replace, turn_after_ns
from manager.orchestrator.slots import Slot, ended_by_itself, place_of, service_slots
from manager.orchestrator.tasks import new_task
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_terminal
from shoal.model.enums import TaskState
from shoal.model.modes import is_job
from shoal.model.objects import Service, Task
from shoal.model.plan import Plan


def plan(view: View, service_ids: Iterable[str], *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Begin and end the hand-overs of these services."""
    draft = Draft(view)
    for service_id in sorted(service_ids):
        service = draft.view.services.get(service_id)
        if service is not None:
            advance(draft, service, now_ns=now_ns, ids=ids)
    return draft.plan()


def advance(draft: Draft, service: Service, *, now_ns: int, ids: Iterator[str]) -> None:
    """Write the hand-overs of one service into a draft."""
    if service.pending_delete or is_job(service.spec.mode):
        return
    if not _has_any(draft.view, service, now_ns=now_ns):
        return
    for slot in service_slots(draft.view, service):
        leaving = [
            task
            for task in slot.wanted
            if task in slot.handed_over or lingers(draft.view, service, task, now_ns=now_ns)
        ]
        others = [task for task in slot.wanted if task not in leaving]
        if not leaving or any(is_terminal(task) for task in others):
            continue  # what ended is answered first
        if any(task.status.state is TaskState.RUNNING for task in others):
            _stop(draft, leaving)
        elif others:
            _call_off(draft, service, leaving, others, now_ns=now_ns)
        else:
            _begin(draft, service, slot, leaving[-1], now_ns=now_ns, ids=ids)


def _has_any(view: View, service: Service, *, now_ns: int) -> bool:
    """Whether there is anything to do: most services have no task that is handed over."""
    return any(
        task.takes_over or lingers(view, service, task, now_ns=now_ns)
        for task in view.tasks_of_service(service.id).values()
    )


def _stop(draft: Draft, leaving: list[Task]) -> None:
    if draft.room(*leaving):
        for task in leaving:
            draft.update(task.with_desired_state(TaskState.SHUTDOWN))


def _call_off(
    draft: Draft, service: Service, leaving: list[Task], others: list[Task], *, now_ns: int
) -> None:
    """Remove tasks that no node takes and whose predecessors may stay where they are."""
    if any(lingers(draft.view, service, task, now_ns=now_ns) for task in leaving):
        return
    for task in others:
        homeless = task.status.state < TaskState.ASSIGNED and bool(task.status.error)
        if task.takes_over and homeless and draft.room(task):
            draft.update(task.with_desired_state(TaskState.REMOVE))


def _begin(
    draft: Draft,
    service: Service,
    slot: Slot,
    leaving: Task,
    *,
    now_ns: int,
    ids: Iterator[str],
) -> None:
    """Make the task that takes over, after the pause that a failed attempt before it asks for."""
    before = slot.newest
    start_after_ns = 0
    if ended_by_itself(before):
        if not may_replace(slot, before):
            return  # its attempts are used up: the older task serves until the deadline
        if before.start_after_ns > now_ns:
            draft.wake(before.start_after_ns)
            return
        start_after_ns = turn_after_ns(before, now_ns=now_ns)
    elif not may_replace(slot, leaving):
        return
    if draft.room(new=1):
        task = new_task(
            draft.view,
            service,
            place=place_of(service, leaving),
            task_id=next(ids),
            now_ns=now_ns,
            waits=start_after_ns > now_ns,
            start_after_ns=start_after_ns,
            replaces=leaving,
            takes_over=True,
        )
        draft.create(task)
        draft.note("task.handed_over", task_id=leaving.id, to=task.id, service_id=service.id)
