"""Which nodes may run a task, and why the others may not.

Filters run in Swarm's order, and the first that refuses a node is the one the explanation counts.
The first three look at node and spec alone; the others at what is on the node at this moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from manager.scheduler.company import Company
from manager.scheduler.constraints import (
    Constraint,
    node_matches,
    normal_architecture,
    parse_constraints,
)
from manager.scheduler.usage import Usage, host_ports
from manager.store.view import View
from shoal.errors import InvalidArgument
from shoal.model.defaults import is_encrypted
from shoal.model.devices import missing
from shoal.model.enums import NodeAvailability, NodeMembership, NodeState
from shoal.model.objects import Node, Task
from shoal.model.specs import ContainerSpec
from shoal.model.types import DeviceMapping, Placement, Platform

READY = "ready"
KEPT = "kept"
RESOURCES = "resources"
PLATFORM = "platform"
CONSTRAINT = "constraint"
ENCRYPTION = "encryption"
DEVICE = "device"
HOST_PORT = "host_port"
MAX_REPLICAS = "max_replicas"

_TEXTS: dict[str, Callable[[int], str]] = {
    READY: lambda n: f"{n} {_nodes(n)} not available for new tasks",
    KEPT: lambda n: f"room kept for more important tasks on {n} {_nodes(n)}",
    RESOURCES: lambda n: f"insufficient resources on {n} {_nodes(n)}",
    PLATFORM: lambda n: f"unsupported platform on {n} {_nodes(n)}",
    CONSTRAINT: lambda n: f"scheduling constraints not satisfied on {n} {_nodes(n)}",
    ENCRYPTION: lambda n: (
        f"no WireGuard (CONFIG_WIREGUARD) for encrypted networks on {n} {_nodes(n)}"
    ),
    DEVICE: lambda n: f"devices missing on {n} {_nodes(n)}",
    HOST_PORT: lambda n: f"host-mode port already in use on {n} {_nodes(n)}",
    MAX_REPLICAS: lambda n: "max replicas per node limit exceed",
}


class Pipeline:
    """The filters for one kind of task: equal spec, equal endpoint."""

    def __init__(self, task: Task, view: View) -> None:
        placement = task.spec.placement
        self._view = view
        self._service_id = task.service_id
        self._resources = task.spec.resources.reservations
        self._platforms = placement.platforms
        self.company = Company(view, task)
        self._constraints = constraints_of(placement)
        self._encrypts = any(
            is_encrypted(view.networks.get(wish.target)) for wish in task.spec.networks
        )
        self._devices = devices_of(task)
        self._ports = host_ports(task.endpoint)
        self._max_replicas = placement.max_replicas

    def refusal(self, usage: Usage, copies: int) -> str:
        """Name of the first filter that refuses the node; "" when none does.

        copies: wanted tasks of the service on the node, without the one that is to be replaced.
        """
        if not is_ready(usage.node):
            return READY
        if usage.giving_way and is_kept(self._view, self._service_id, usage):
            return KEPT
        if not usage.has_room(self._resources):
            return RESOURCES
        if not fits_platforms(usage.node, self._platforms):
            return PLATFORM
        if self._constraints is None or not node_matches(usage.node, self._constraints):
            return CONSTRAINT
        if not self.company.fits(usage):
            return CONSTRAINT
        if self._encrypts and not usage.node.description.network_keys:
            return ENCRYPTION
        if self._devices and missing(usage.node.description, self._devices):
            return DEVICE
        if self._ports and not usage.can_publish(self._ports):
            return HOST_PORT
        if self._max_replicas and copies >= self._max_replicas:
            return MAX_REPLICAS
        return ""


def is_kept(view: View, service_id: str, usage: Usage) -> bool:
    """Whether somebody of the service's rank or above is being stopped there for others.

    Else the successor of who gives way would take the very room, and have to give way again.
    """
    own = view.services.get(service_id)
    rank = 0 if own is None else own.spec.priority
    services = {task.service_id for task in usage.giving_way}
    found = (view.services.get(one) for one in services)
    return any(service is not None and service.spec.priority >= rank for service in found)


def devices_of(task: Task) -> tuple[DeviceMapping, ...]:
    """The devices that the task's container is to get by their paths."""
    runtime = task.spec.runtime
    return runtime.devices if isinstance(runtime, ContainerSpec) else ()


def explain(refusals: Mapping[str, int]) -> str:
    """Why no node fits, in Swarm's words: the filter that refused most nodes first."""
    order = list(_TEXTS)
    counted = sorted(
        ((count, name) for name, count in refusals.items() if name and count),
        key=lambda item: (-item[0], order.index(item[1])),
    )
    if not counted:
        return "no suitable node"
    return f"no suitable node ({'; '.join(_TEXTS[name](count) for count, name in counted)})"


def count_refusals(names: Iterable[str]) -> Counter[str]:
    """Number of nodes by the filter that refused them."""
    return Counter(name for name in names if name)


def is_ready(node: Node) -> bool:
    """Whether the node takes new tasks."""
    return (
        node.status.state is NodeState.READY
        and node.spec.availability is NodeAvailability.ACTIVE
        and node.spec.membership is NodeMembership.ACCEPTED
    )


def fits_placement(node: Node, placement: Placement) -> bool:
    """Whether platform and constraints of a placement hold for a node."""
    constraints = constraints_of(placement)
    if constraints is None or not node_matches(node, constraints):
        return False
    return fits_platforms(node, placement.platforms)


def constraints_of(placement: Placement) -> tuple[Constraint, ...] | None:
    """The parsed constraints; None for those the control API would have refused: no node fits."""
    if not placement.constraints:
        return ()
    try:
        return parse_constraints(placement.constraints)
    except InvalidArgument:
        return None


def wishes_of(placement: Placement) -> list[tuple[tuple[Constraint, ...], bool]]:
    """Constraints that should hold (True) or should not (False) where there is a choice.

    Those that cannot be read are left out: a wish keeps no task from running.
    """
    texts = [(one.prefer or one.avoid, not one.avoid) for one in placement.preferences]
    parsed = [
        (constraints_of(Placement(constraints=(text,))), liked) for text, liked in texts if text
    ]
    return [(constraints, liked) for constraints, liked in parsed if constraints is not None]


def fits_platforms(node: Node, platforms: Sequence[Platform]) -> bool:
    """Whether the node has one of these platforms; none given: any will do."""
    own = node.description.platform
    return not platforms or any(
        (not wish.os or wish.os.lower() == own.os.lower())
        and (
            not wish.architecture
            or normal_architecture(wish.architecture) == normal_architecture(own.architecture)
        )
        for wish in platforms
    )


def _nodes(count: int) -> str:
    return "node" if count == 1 else "nodes"
