"""Replicated services: as many slots as the spec asks for, and none of a removed service.

Scaling up fills the lowest free slots. Scaling down gives up slots that do not run first, then
copies on nodes that hold several (where tasks are packed: on nodes that hold few), then higher
slots. A slot whose tasks ended for good under their restart policy still counts: it did its work.
What must leave a node, or ended, is answered by `manager.orchestrator.restart`, which keeps the
slots complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from manager.orchestrator.slots import Slot, age_key, service_slots
from manager.orchestrator.tasks import new_task
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import is_wanted, packs
from shoal.model.enums import TaskState
from shoal.model.objects import Service
from shoal.model.plan import Plan
from shoal.model.specs import ReplicatedMode


def plan(view: View, service_ids: Iterable[str], *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Scale these services to their number of replicas; retire those that are removed."""
    draft = Draft(view)
    for service_id in sorted(service_ids):
        service = draft.view.services.get(service_id)
        if service is None or service.pending_delete:
            retire(draft, service_id)
        else:
            advance(draft, service, now_ns=now_ns, ids=ids)
    return draft.plan()


def retire(draft: Draft, service_id: str) -> None:
    """Mark every task of a removed service for removal."""
    tasks = draft.view.tasks_of_service(service_id).values()
    for task in sorted(tasks, key=age_key):
        if task.desired_state < TaskState.REMOVE and draft.room(task):
            draft.update(task.with_desired_state(TaskState.REMOVE))


def advance(draft: Draft, service: Service, *, now_ns: int, ids: Iterator[str]) -> None:
    """Write the scaling of one service into a draft."""
    mode = service.spec.mode
    if not isinstance(mode, ReplicatedMode):
        return
    slots = service_slots(draft.view, service)
    if len(slots) < mode.replicas:
        _scale_up(draft, service, slots, mode.replicas, now_ns=now_ns, ids=ids)
    elif len(slots) > mode.replicas:
        packed = packs(service.spec.task.placement, draft.view.cluster)
        for slot in by_worth(slots, packed=packed)[mode.replicas :]:
            _remove(draft, slot)


def by_worth(slots: Iterable[Slot], *, packed: bool) -> list[Slot]:
    """Slots in the order in which they are kept: those that scaling down takes come last.

    packed: copies on nodes with many are kept, so that nodes with few become free.
    """
    copies: Counter[str] = Counter()
    places: dict[int, tuple[str, int]] = {}
    ordered = sorted(slots, key=lambda slot: slot.number)
    for slot in ordered:
        if slot.running:
            node_id = next(
                task.node_id for task in slot.wanted if task.status.state is TaskState.RUNNING
            )
            places[slot.number] = node_id, copies[node_id]
            copies[node_id] += 1

    def demerit(slot: Slot) -> tuple[bool, int, str, int]:
        if slot.number not in places:
            return True, 0, "", slot.number
        node_id, index = places[slot.number]
        if packed:
            return False, -copies[node_id], node_id, slot.number
        return False, index, "", slot.number

    return sorted(ordered, key=demerit)


def _scale_up(
    draft: Draft,
    service: Service,
    slots: list[Slot],
    replicas: int,
    *,
    now_ns: int,
    ids: Iterator[str],
) -> None:
    used = {slot.number for slot in slots}
    missing = replicas - len(used)
    number = 0
    while missing and draft.room(new=1):
        number += 1
        if number not in used:
            missing -= 1
            draft.create(
                new_task(draft.view, service, place=(number, ""), task_id=next(ids), now_ns=now_ns)
            )


def _remove(draft: Draft, slot: Slot) -> None:
    """Mark a slot for removal, its past first: a slot with a past alone would be filled again.

    The past may be longer than one round holds; then the wanted tasks go in a later one.
    """
    wanted = slot.wanted
    past = [task for task in slot.tasks if not is_wanted(task)]
    for task in past if wanted else past[:-1]:
        if not draft.room(task):
            return
        draft.update(task.with_desired_state(TaskState.REMOVE))
    last = wanted or tuple(past[-1:])
    if draft.room(*last):
        for task in last:
            draft.update(task.with_desired_state(TaskState.REMOVE))
