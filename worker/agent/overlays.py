"""From a task's row to its place on overlay networks, and what the managers tell of them: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal.errors import InvalidArgument
from shoal.model.objects import Task
from worker.network.api import Attachment, Peer
from worker.network.overlay.api import (
    OverlayEndpoint,
    OverlayLink,
    OverlayNetwork,
    OverlayService,
    OverlayState,
    TaskPlace,
)

OverlayItem = OverlayNetwork | OverlayService | OverlayEndpoint
OverlayKey = tuple[type[OverlayItem], str, str]
"""Kind, network id, and the id of the service or task."""


def key_of(item: OverlayItem) -> OverlayKey:
    """Under which an item is replaced and removed."""
    match item:
        case OverlayService():
            return OverlayService, item.network_id, item.service_id
        case OverlayEndpoint():
            return OverlayEndpoint, item.network_id, item.task_id
        case OverlayNetwork():
            return OverlayNetwork, item.network_id, ""


def state_of(items: Mapping[OverlayKey, OverlayItem], peers: Iterable[Peer]) -> OverlayState:
    """All items as one wish, among these nodes."""
    found, nodes = tuple(items.values()), tuple(peers)
    return OverlayState(
        networks=tuple(one for one in found if isinstance(one, OverlayNetwork)),
        services=tuple(one for one in found if isinstance(one, OverlayService)),
        endpoints=tuple(one for one in found if isinstance(one, OverlayEndpoint)),
        nodes={peer.node_id: peer.address for peer in nodes},
        lost=frozenset(peer.node_id for peer in nodes if peer.lost),
        keys={peer.node_id: dict(peer.keys) for peer in nodes if peer.keys},
    )


def place_of(task: Task, attachment: Attachment) -> TaskPlace | None:
    """A task's place on its networks; None when it is on none.

    Its interfaces are eth1 and so on, in the order of the row: eth0 leads to the node.
    Raises: InvalidArgument when it has no address on one of them.
    """
    links = []
    for number, one in enumerate(task.networks, 1):
        if not one.addresses:
            raise InvalidArgument(
                f"task {task.id}: it has no address on network {one.network_id}; see the "
                "managers' logs"
            )
        links.append(
            OverlayLink(
                network_id=one.network_id, interface=f"eth{number}", addresses=one.addresses
            )
        )
    if not links:
        return None
    return TaskPlace(
        task_id=task.id,
        netns_path=attachment.netns_path,
        uplink=attachment.interface,
        links=tuple(links),
        servers=task.container.dns.nameservers,
        publishes=task.endpoint is not None and bool(task.endpoint.ports),
    )


def addresses_of(place: TaskPlace) -> tuple[str, ...]:
    """The addresses by which others of its networks know a task, without masks."""
    return tuple(address.partition("/")[0] for link in place.links for address in link.addresses)
