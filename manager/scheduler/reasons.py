"""Everything that keeps a task off a node, in words: for `service explain`.

The filters stop at the first refusal, since they run for every node and group of tasks. Here all of
them answer, in the same order, so the first reason is that of the filter which the error of the
task counts. There is a reason exactly when the filters refuse.
"""

from __future__ import annotations

from collections.abc import Iterator

from manager.scheduler.company import Company
from manager.scheduler.constraints import node_matches, parse_constraints, value_of
from manager.scheduler.filters import (
    CONSTRAINT,
    DEVICE,
    ENCRYPTION,
    HOST_PORT,
    KEPT,
    MAX_REPLICAS,
    PLATFORM,
    READY,
    RESOURCES,
    constraints_of,
    devices_of,
    fits_platforms,
    is_kept,
    is_ready,
)
from manager.scheduler.usage import Usage, host_ports
from manager.store.view import View
from shoal.model.defaults import is_encrypted
from shoal.model.devices import missing
from shoal.model.enums import NodeAvailability, NodeMembership, NodeState, TaskState
from shoal.model.objects import Node, Task
from shoal.model.published import is_at_odds, name_of
from shoal.model.row import Row
from shoal.model.types import Placement, Platform, PortConfig, Resources

TEXT_MAX = 200
"""Characters of a reason: values of labels may be longer than anybody wants to read."""
_NANO = 1_000_000_000
_MIB = 1 << 20
_AVAILABILITIES = {NodeAvailability.PAUSE: "pause", NodeAvailability.DRAIN: "drain"}


class Reason(Row, frozen=True):
    """What one filter has against a node."""

    filter: str
    text: str


def reasons(view: View, task: Task, usage: Usage, copies: int) -> tuple[Reason, ...]:
    """All reasons why the task cannot be on the node; none when it can.

    copies: wanted tasks of the service on the node, without the one that is to be replaced.
    """
    found = [
        *placement_reasons(usage.node, task.spec.placement),
        *(Reason(CONSTRAINT, text) for text in Company(view, task).objections(usage)),
        *(Reason(KEPT, text) for text in _kept(view, task, usage)),
        *(Reason(RESOURCES, text) for text in _resources(usage, task.spec.resources.reservations)),
        *(Reason(ENCRYPTION, text) for text in _encryption(view, task, usage.node)),
        *(Reason(DEVICE, text) for text in _devices(task, usage.node)),
        *(Reason(HOST_PORT, text) for text in _host_ports(view, task, usage)),
        *(Reason(MAX_REPLICAS, text) for text in _max_replicas(task, copies)),
    ]
    return tuple(_cut(one) for one in sorted(found, key=lambda one: _ORDER.index(one.filter)))


def placement_reasons(node: Node, placement: Placement) -> tuple[Reason, ...]:
    """Those that lie in the node and the placement alone, whatever else is on the node."""
    found = [
        *(Reason(READY, text) for text in _readiness(node)),
        *(Reason(PLATFORM, text) for text in _platform(node, placement)),
        *(Reason(CONSTRAINT, text) for text in _constraints(node, placement)),
    ]
    return tuple(_cut(one) for one in found)


_ORDER = (READY, KEPT, RESOURCES, PLATFORM, CONSTRAINT, ENCRYPTION, DEVICE, HOST_PORT, MAX_REPLICAS)


def _readiness(node: Node) -> Iterator[str]:
    if is_ready(node):
        return
    if node.spec.membership is not NodeMembership.ACCEPTED:
        yield "the node has not been let in"
    if node.status.state is not NodeState.READY:
        because = f": {node.status.message}" if node.status.message else ""
        yield f"the node is {node.status.state.name.lower()}{because}"
    if node.spec.availability in _AVAILABILITIES:
        yield f"the node's availability is {_AVAILABILITIES[node.spec.availability]}"


def _kept(view: View, task: Task, usage: Usage) -> Iterator[str]:
    if is_kept(view, task.service_id, usage):
        count = len(usage.giving_way)
        yield f"its room is kept for more important tasks: {count} are being stopped for them"


def _resources(usage: Usage, wish: Resources) -> Iterator[str]:
    own = usage.node.description.resources
    if wish.nano_cpus and wish.nano_cpus > usage.nano_cpus:
        left, all_of_it = _cpus(usage.nano_cpus), _cpus(own.nano_cpus)
        yield f"CPUs: {_cpus(wish.nano_cpus)} to be reserved, {left} of {all_of_it} left"
    if wish.memory_bytes and wish.memory_bytes > usage.memory_bytes:
        left, all_of_it = _memory(usage.memory_bytes), _memory(own.memory_bytes)
        yield f"memory: {_memory(wish.memory_bytes)} to be reserved, {left} of {all_of_it} left"
    for kind, wanted in usage.short_of(wish.generic):
        rest = max(usage.left_of(kind), 0)
        yield f"{kind}: {wanted} to be reserved, {rest} left"


def _platform(node: Node, placement: Placement) -> Iterator[str]:
    if not fits_platforms(node, placement.platforms):
        wanted = " or ".join(_spelled(platform) for platform in placement.platforms)
        yield f"the node is {_spelled(node.description.platform)}, the image is for {wanted}"


def _constraints(node: Node, placement: Placement) -> Iterator[str]:
    if constraints_of(placement) is None:
        yield "the constraints cannot be read"
        return
    for text in placement.constraints:
        (constraint,) = parse_constraints([text])
        if not node_matches(node, [constraint]):
            value = value_of(node, constraint.key)
            yield f"{text}: the node has {value!r}" if value else f"{text}: the node has none"


def _encryption(view: View, task: Task, node: Node) -> Iterator[str]:
    if node.description.network_keys:
        return
    for wish in task.spec.networks:
        network = view.networks.get(wish.target)
        if network is not None and is_encrypted(network):
            name = network.spec.annotations.name
            yield f"network {name} is encrypted, the node has no WireGuard (CONFIG_WIREGUARD)"


def _devices(task: Task, node: Node) -> Iterator[str]:
    for path in missing(node.description, devices_of(task)):
        yield f"the node has no device {path}"


def _host_ports(view: View, task: Task, usage: Usage) -> Iterator[str]:
    for port in host_ports(task.endpoint):
        if not usage.can_publish([port]):
            yield f"host-mode port {name_of(port)} is in use by {_holder(view, usage.node, port)}"


def _holder(view: View, node: Node, port: PortConfig) -> str:
    holders = (
        f"task {other.id} of service {other.service_annotations.name or other.service_id}"
        for _, other in sorted(view.tasks_of_node(node.id).items())
        if TaskState.ASSIGNED <= other.status.state <= TaskState.RUNNING
        and is_at_odds(port, host_ports(other.endpoint))
    )
    return next(holders, "a task that is being placed")


def _max_replicas(task: Task, copies: int) -> Iterator[str]:
    most = task.spec.placement.max_replicas
    if most and copies >= most:
        yield f"{copies} of the service's tasks are on the node, at most {most} may be"


def _spelled(platform: Platform) -> str:
    return f"{platform.os or '*'}/{platform.architecture or '*'}"


def _cpus(nano_cpus: int) -> str:
    return f"{nano_cpus / _NANO:.9g}"


def _memory(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.6g} MiB"


def _cut(reason: Reason) -> Reason:
    if len(reason.text) <= TEXT_MAX:
        return reason
    return reason.replaced(text=reason.text[: TEXT_MAX - 1] + "…")
