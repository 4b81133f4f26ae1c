"""From rows and messages to what the overlay networks are asked for."""

from __future__ import annotations

import pytest

from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.errors import InvalidArgument
from shoal.model.types import NetworkAttachment
from tests.unit.worker.agent.support import a_task, task_id
from worker.agent.client import AssignmentsBatch
from worker.agent.overlays import addresses_of, key_of, place_of, state_of
from worker.network.api import Attachment, Peer

LINK = Attachment("t", "/run/netns/t", "10.1.0.2", "10.1.0.1", "eth0")


def decoded(*items: pb.Assignment, remove: bool = False) -> AssignmentsBatch:
    changes = [pb.AssignmentChange(assignment=item, remove=remove) for item in items]
    return AssignmentsBatch(pb.AssignmentsMessage(changes=changes))


NETWORK = pb.Assignment(
    network=pb.OverlayNetwork(
        network_id="n",
        name="net",
        vni=4096,
        subnets=[pb.OverlaySubnet(subnet="10.0.0.0/24", gateway="10.0.0.1")],
        mtu=1400,
        internal=True,
    )
)
SERVICE = pb.Assignment(
    overlay_service=pb.OverlayService(
        network_id="n", service_id="s", name="web", virtual_ips=["10.0.0.2"], aliases=["www"]
    )
)
ENDPOINT = pb.Assignment(
    overlay_endpoint=pb.OverlayEndpoint(
        network_id="n",
        task_id="t",
        service_id="s",
        node_id="node2",
        addresses=["10.0.0.3"],
        names=["web.1"],
        ready=True,
    )
)


def test_what_managers_say_becomes_one_state() -> None:
    batch = decoded(NETWORK, SERVICE, ENDPOINT)
    items = {key_of(item): item for item in batch.overlays}
    peers = [
        Peer("node2", 2, "192.0.2.2", "10.240.8.0/22"),
        Peer("node3", 3, "192.0.2.3", "10.240.12.0/22", lost=True),
    ]
    state = state_of(items, peers)
    (network,), (service,), (endpoint,) = state.networks, state.services, state.endpoints
    assert (network.name, network.vni, network.subnets) == ("net", 4096, ("10.0.0.0/24",))
    assert (network.mtu, network.internal) == (1400, True)
    assert (service.name, service.virtual_ips, service.aliases) == ("web", ("10.0.0.2",), ("www",))
    assert (endpoint.addresses, endpoint.names) == (("10.0.0.3",), ("web.1",))
    assert (endpoint.service_id, endpoint.node_id, endpoint.ready) == ("s", "node2", True)
    assert state.nodes == {"node2": "192.0.2.2", "node3": "192.0.2.3"}
    assert state.lost == {"node3"}


def test_an_item_is_removed_by_its_key_alone() -> None:
    items = {key_of(item): item for item in decoded(NETWORK, SERVICE, ENDPOINT).overlays}
    keys = decoded(
        pb.Assignment(network=pb.OverlayNetwork(network_id="n")),
        pb.Assignment(overlay_service=pb.OverlayService(network_id="n", service_id="s")),
        pb.Assignment(overlay_endpoint=pb.OverlayEndpoint(network_id="n", task_id="t")),
        remove=True,
    )
    assert keys.overlays == []
    assert {key_of(item) for item in keys.removed_overlays} == set(items)


def test_the_place_of_a_task() -> None:
    assert place_of(a_task(), LINK) is None
    networks = (
        NetworkAttachment(network_id="n", addresses=("10.0.0.3/24", "fd00::3/64")),
        NetworkAttachment(network_id="m", addresses=("10.1.0.3/24",)),
    )
    place = place_of(a_task().replaced(networks=networks), LINK)
    assert place is not None
    assert (place.task_id, place.netns_path, place.uplink) == (task_id(1), LINK.netns_path, "eth0")
    assert [(link.network_id, link.interface) for link in place.links] == [
        ("n", "eth1"),
        ("m", "eth2"),
    ]
    assert addresses_of(place) == ("10.0.0.3", "fd00::3", "10.1.0.3")


def test_a_task_without_an_address_on_a_network_is_refused() -> None:
    task = a_task().replaced(networks=(NetworkAttachment(network_id="n"),))
    with pytest.raises(InvalidArgument, match="no address on network n"):
        place_of(task, LINK)
