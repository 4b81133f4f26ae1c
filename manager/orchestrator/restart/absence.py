"""Tasks on nodes that are DOWN: which are waited for, and which one stays when a node returns.

A task is away while its node is DOWN and is neither gone from the cluster nor to be emptied: its
container may run on. The service's disconnect policy, as it is now, decides: `wait` leaves the
slot alone for a time; `keep-original` leaves the task wanted after it was replaced, so that its
node need not stop it. At most one task of a slot is kept so. A node that returns is believed
about its containers once it has been READY for a moment: what the store says is from before.
"""

from __future__ import annotations

from manager.orchestrator.slots import Slot, keeps_original, kept_original
from manager.orchestrator.update.dirty import is_dirty
from manager.store.view import View
from shoal.model.defaults import disconnect_wait_ns, is_terminal
from shoal.model.enums import DisconnectAction, NodeAvailability, NodeState, TaskState
from shoal.model.objects import Node, Service, Task
from shoal.model.row import Row

RETURN_SETTLE_NS = 5_000_000_000
"""Time in which a node that came back reports what became of its containers."""


class Absence(Row, frozen=True):
    """What the policy says of a slot.

    awaited: tasks that are not answered before `until_ns`. returning: a lost task that stays
    wanted, whoever replaces it.
    """

    awaited: tuple[Task, ...] = ()
    until_ns: int = 0
    returning: Task | None = None


NONE = Absence()


def absence_of(view: View, service: Service, slot: Slot, *, now_ns: int) -> Absence:
    """Judge the tasks of a slot that are away."""
    policy = service.spec.task.disconnect
    if policy is None:
        return NONE
    away = [task for task in slot.wanted if _is_away(view, task)]
    if not away:
        return NONE
    awaited: list[Task] = []
    until_ns = 0
    if policy.action is DisconnectAction.WAIT:
        for task in away:
            at_ns = lost_at_ns(view, task) + disconnect_wait_ns(policy)
            if now_ns < at_ns and not is_dirty(view, service, task):
                awaited.append(task)
                until_ns = min(until_ns or at_ns, at_ns)
    first = slot.wanted[0]
    stays = first in away and first not in awaited and keeps_original(service, first)
    return Absence(awaited=tuple(awaited), until_ns=until_ns, returning=first if stays else None)


def lost_at_ns(view: View, task: Task) -> int:
    """When the task's node was called down; later when the user has changed its row since."""
    node = _node(view, task)
    return 0 if node is None else node.meta.updated_at_ns


def returned(view: View, service: Service, slot: Slot) -> tuple[Task, int] | None:
    """The original that is back and runs beside its replacement, and when it is believed, ns."""
    original = kept_original(service, slot)
    if original is None or original.status.state is not TaskState.RUNNING:
        return None
    node = _node(view, original)
    if node is None or node.status.state is not NodeState.READY:
        return None
    return original, node.meta.updated_at_ns + RETURN_SETTLE_NS


def _is_away(view: View, task: Task) -> bool:
    node = _node(view, task)
    return (
        node is not None
        and node.status.state is NodeState.DOWN
        and node.spec.availability is not NodeAvailability.DRAIN
        and task.status.state >= TaskState.STARTING
        and not is_terminal(task)
    )


def _node(view: View, task: Task) -> Node | None:
    return view.nodes.get(task.node_id) if task.node_id else None
