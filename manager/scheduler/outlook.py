"""What a service could not get even if nothing else ran: told when it is created or changed.

A warning, not a refusal: nodes may join, return or be labelled later. All nodes that were let in
count, with all they have, whatever they do at the moment; so what is said here stays true until
the nodes are others. What they have left is `service explain`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from manager.scheduler.company import spelled
from manager.scheduler.constraints import Constraint, Operator, company_of, node_matches
from manager.scheduler.filters import (
    CONSTRAINT,
    DEVICE,
    ENCRYPTION,
    PLATFORM,
    RESOURCES,
    constraints_of,
    fits_platforms,
)
from manager.scheduler.usage import Usage
from manager.store.view import View
from shoal.model.defaults import is_encrypted
from shoal.model.devices import missing
from shoal.model.enums import NodeMembership, PublishMode
from shoal.model.objects import Node
from shoal.model.specs import ContainerSpec, ReplicatedJobMode, ReplicatedMode, ServiceSpec
from shoal.model.types import Placement, PortConfig, Resources

_NANO = 1_000_000_000
_MIB = 1 << 20


def warnings(view: View, spec: ServiceSpec) -> tuple[str, ...]:
    """Why tasks of this service would wait, on the nodes that the cluster has. Pure.

    Cost: O(nodes x constraints). The spec has been validated, its networks are ids.
    """
    nodes = [node for node in view.nodes if node.spec.membership is NodeMembership.ACCEPTED]
    encrypts = any(is_encrypted(view.networks.get(one.target)) for one in spec.task.networks)
    constraints = constraints_of(spec.task.placement)
    refusals = [frozenset(_refusals(spec, node, constraints, encrypts)) for node in nodes]
    usable = [node for node, refused in zip(nodes, refusals, strict=True) if not refused]
    found = [*_company(view, spec)]
    if nodes and not usable:
        found += _nowhere(spec, nodes, refusals)
    elif nodes:
        found += _too_many(spec, usable)
    return tuple(found)


def _refusals(
    spec: ServiceSpec, node: Node, constraints: Sequence[Constraint] | None, encrypts: bool
) -> Iterator[str]:
    """The filters that an empty node would not pass; constraints on other services always pass."""
    task, description = spec.task, node.description
    if not Usage(node, ()).has_room(task.resources.reservations):
        yield RESOURCES
    if not fits_platforms(node, task.placement.platforms):
        yield PLATFORM
    if constraints is None or not node_matches(node, constraints):
        yield CONSTRAINT
    if encrypts and not description.network_keys:
        yield ENCRYPTION
    if isinstance(task.runtime, ContainerSpec) and missing(description, task.runtime.devices):
        yield DEVICE


def _nowhere(spec: ServiceSpec, nodes: list[Node], refusals: list[frozenset[str]]) -> Iterator[str]:
    """What is wrong with all nodes; when it is something else with each, that."""
    common = frozenset.intersection(*refusals)
    if not common:
        yield (
            "no node of the cluster meets everything that the service asks for at once: "
            + "; ".join(_counted(refusals))
        )
    if RESOURCES in common:
        yield from _scarce(spec.task.resources.reservations, nodes)
    if CONSTRAINT in common:
        yield from _unmet(spec.task.placement, nodes)
    texts = {
        PLATFORM: "no node of the cluster has a platform of the image",
        ENCRYPTION: "no node of the cluster has keys for encrypted networks (CONFIG_WIREGUARD)",
        DEVICE: "no node of the cluster has all devices that the service asks for",
    }
    yield from (text for name, text in texts.items() if name in common)


def _counted(refusals: list[frozenset[str]]) -> Iterator[str]:
    for name in (RESOURCES, PLATFORM, CONSTRAINT, ENCRYPTION, DEVICE):
        count = sum(name in refused for refused in refusals)
        if count:
            yield f"{name} on {count} of {len(refusals)}"


def _scarce(wish: Resources, nodes: list[Node]) -> Iterator[str]:
    """Reservations above what any node has; said of each that is."""
    most_cpus = max(node.description.resources.nano_cpus for node in nodes)
    most_bytes = max(node.description.resources.memory_bytes for node in nodes)
    found = []
    if wish.nano_cpus > most_cpus:
        found.append(
            f"reserve-cpu: no node of the cluster has {wish.nano_cpus / _NANO:.9g} CPUs, the most "
            f"is {most_cpus / _NANO:.9g}"
        )
    if wish.memory_bytes > most_bytes:
        found.append(
            f"reserve-memory: no node of the cluster has {wish.memory_bytes / _MIB:.6g} MiB, the "
            f"most is {most_bytes / _MIB:.6g} MiB"
        )
    usages = [Usage(node, ()) for node in nodes]
    for piece in wish.generic:
        most = max(usage.left_of(piece.kind) for usage in usages)
        if piece.count > most:
            found.append(
                f"generic-resource: no node of the cluster has {piece.kind}={piece.count}, the "
                f"most is {most}"
            )
    yield from found or ["no node of the cluster has all that is to be reserved at once"]


def _unmet(placement: Placement, nodes: list[Node]) -> Iterator[str]:
    """Constraints that hold on no node; when each holds on some, all together."""
    constraints = constraints_of(placement)
    if constraints is None:
        yield "the constraints cannot be read by this version"
        return
    found = [
        f"constraint {text!r}: no node of the cluster meets it"
        for text, one in zip(placement.constraints, constraints, strict=True)
        if not any(node_matches(node, [one]) for node in nodes)
    ]
    yield from found or ["no node of the cluster meets all constraints at once"]


def _company(view: View, spec: ServiceSpec) -> Iterator[str]:
    """Names of services that are to be there and are none."""
    names = {one.spec.annotations.name.lower() for one in view.services}
    for constraint in company_of(spec.task.placement.constraints):
        exact = constraint.operator in (Operator.EQUAL, Operator.IN)
        named = exact and constraint.key.lower() == "service.name"
        if named and not names & {value.lower() for value in constraint.values}:
            yield f"constraint {spelled(constraint)!r}: there is no such service yet: tasks wait"


def _too_many(spec: ServiceSpec, nodes: list[Node]) -> Iterator[str]:
    match spec.mode:
        case ReplicatedMode(replicas=replicas):
            wanted = replicas
        case ReplicatedJobMode(max_concurrent=at_once, total_completions=total):
            wanted = at_once or total
        case _:
            return
    places = sum(_places(spec, node, wanted) for node in nodes)
    if places < wanted:
        yield (
            f"replicas: {places} of {wanted} tasks fit on the cluster's nodes at once, with "
            "nothing else on them"
        )


def _places(spec: ServiceSpec, node: Node, most: int) -> int:
    """How many tasks of the service an empty node takes."""
    wish, own = spec.task.resources.reservations, node.description.resources
    usage = Usage(node, ())
    bounds: Iterable[int] = (
        most,
        spec.task.placement.max_replicas or most,
        own.nano_cpus // wish.nano_cpus if wish.nano_cpus else most,
        own.memory_bytes // wish.memory_bytes if wish.memory_bytes else most,
        *(usage.left_of(piece.kind) // piece.count for piece in wish.generic if piece.count),
        1 if any(map(_is_on_the_host, spec.endpoint.ports)) else most,
    )
    return min(bounds)


def _is_on_the_host(port: PortConfig) -> bool:
    return port.publish_mode is PublishMode.HOST and bool(port.published_port)
