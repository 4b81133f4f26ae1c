"""What hand-overs wait for, in words: for `service explain`.

Read from the same rows by the same rules as `plan.advance`, which decides; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator

from manager.orchestrator.handover.linger import linger_until_ns, lingers
from manager.orchestrator.restart.policy import may_replace
from manager.orchestrator.slots import Slot, ended_by_itself, service_slots
from manager.store.view import View
from shoal.model.modes import is_job
from shoal.model.objects import Service, Task

TASKS_MAX = 20
"""Tasks that are named one by one."""
_SECOND_NS = 1_000_000_000


def hand_overs_of(view: View, service: Service, *, now_ns: int) -> tuple[str, ...]:
    """A line for each task that goes on for a while, the longest list cut short."""
    lines = [
        line
        for slot in service_slots(view, service)
        for line in _of_slot(view, service, slot, now_ns=now_ns)
    ]
    if service.rebalance_moves:
        lines.append("rebalancing: more is moved when the moves under way have ended, if need be")
    more = len(lines) - TASKS_MAX
    return (*lines[:TASKS_MAX], *((f"{more} more tasks",) if more > 0 else ()))


def _of_slot(view: View, service: Service, slot: Slot, *, now_ns: int) -> Iterator[str]:
    leaving = [
        task
        for task in slot.wanted
        if task in slot.handed_over or lingers(view, service, task, now_ns=now_ns)
    ]
    others = [task for task in slot.wanted if task not in leaving]
    for task in leaving:
        node = view.nodes.get(task.node_id)
        name = (node and node.description.hostname) or task.node_id
        until = ""
        if lingers(view, service, task, now_ns=now_ns):
            left_s = -(-(linger_until_ns(view, task) - now_ns) // _SECOND_NS)
            until = f", or for {left_s} s, until the drain's deadline"
        why = _reason(service, slot, task, others)
        yield f"slot {slot.number}: task {task.id} stays on {name} {why}{until}"


def _reason(service: Service, slot: Slot, leaving: Task, others: list[Task]) -> str:
    if others:
        new = others[-1]
        said = new.status.error or new.status.message
        standing = new.status.state.name.lower() + (f": {said}" if said else "")
        return f"until task {new.id}, {standing}, runs"
    if is_job(service.spec.mode):
        return "until its work is done"
    if ended_by_itself(slot.newest) and not may_replace(slot, slot.newest):
        return "as every attempt elsewhere that the restart policy allows has failed"
    if not may_replace(slot, leaving):
        return "until it ends: its restart policy lets it run once only"
    return "until another is made"
