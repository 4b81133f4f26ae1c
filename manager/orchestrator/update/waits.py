"""What a rolling update waits for, in words: for `service explain`.

Read from the same rows by the same rules as `plan.advance`, which decides; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from manager.orchestrator.ground import Ground
from manager.orchestrator.slots import service_slots
from manager.orchestrator.update.deadline import held_up_at_ns
from manager.orchestrator.update.plan import config_of, is_updating, monitor_ns_of
from manager.orchestrator.update.progress import SlotProgress, progress_of
from manager.store.view import View
from shoal.model.defaults import UPDATE_WAITS
from shoal.model.enums import UpdateState
from shoal.model.objects import Service, Task
from shoal.model.types import UpdateConfig, UpdateStatus

SLOTS_MAX = 20
"""Slots that are named one by one."""
_SECOND_NS = 1_000_000_000


def waits_of(view: View, service: Service, *, now_ns: int) -> tuple[str, ...]:
    """What the update or rollback of a service waits for; nothing when none is under way."""
    status = service.update_status or UpdateStatus()
    if status.state in {UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED}:
        return (f"{status.message}: it goes on with `service update --resume`, or another change",)
    if not is_updating(service):
        return ()
    ground = Ground(view, service)
    slots = [progress_of(view, service, slot) for slot in service_slots(view, service)]
    taking = [one for one in slots if ground.takes(one.slot)]
    hindrance = status.message.partition(UPDATE_WAITS)[2]
    if hindrance:
        return (_numbers(taking), f"no slot is begun: {hindrance}")
    config = config_of(service)
    return (
        _numbers(taking),
        *_steps(view, taking, config, since_ns=status.started_at_ns, now_ns=now_ns),
    )


def _numbers(slots: Sequence[SlotProgress]) -> str:
    due = sum(one.is_due for one in slots)
    on_the_way = sum(one.is_on_the_way for one in slots)
    done = len(slots) - due - on_the_way
    return f"{done} of {len(slots)} slots done, {on_the_way} on the way, {due} not begun"


def _steps(
    view: View, slots: Sequence[SlotProgress], config: UpdateConfig, *, since_ns: int, now_ns: int
) -> Iterator[str]:
    on_the_way = [one for one in slots if one.is_on_the_way]
    for one in on_the_way[:SLOTS_MAX]:
        yield f"{_place(view, one)}: {_standing(one.current[-1])}"
        at_ns = held_up_at_ns(one, config, since_ns=since_ns)
        if at_ns is not None:
            left_s = _seconds(max(0, at_ns - now_ns))
            yield f"{_place(view, one)}: counts as failed in {left_s} s unless it makes progress"
    if len(on_the_way) > SLOTS_MAX:
        yield f"{len(on_the_way) - SLOTS_MAX} more slots on the way"
    made = [one.done_at_ns or 0 for one in slots if one.made and not one.is_on_the_way]
    last_ns = max(made, default=0)
    if any(one.is_due for one in slots):
        if config.parallelism and last_ns + config.delay_ns > now_ns:
            left_s = _seconds(last_ns + config.delay_ns - now_ns)
            yield f"the delay between slots: {left_s} s left"
        elif config.parallelism and on_the_way:
            yield f"at most {config.parallelism} at a time (parallelism)"
    elif not on_the_way and last_ns + monitor_ns_of(config) > now_ns:
        left_s = _seconds(last_ns + monitor_ns_of(config) - now_ns)
        yield f"all slots are done, they are watched for another {left_s} s (monitor)"


def _place(view: View, one: SlotProgress) -> str:
    if not one.slot.node_id:
        return f"slot {one.slot.number}"
    node = view.nodes.get(one.slot.node_id)
    return f"node {(node and node.description.hostname) or one.slot.node_id}"


def _standing(task: Task) -> str:
    why = task.status.error or task.status.message
    return f"task {task.id} is {task.status.state.name.lower()}" + (f": {why}" if why else "")


def _seconds(duration_ns: int) -> int:
    return -(-duration_ns // _SECOND_NS)
