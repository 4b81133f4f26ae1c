"""What a container gets: interfaces, published ports, hosts lines, what the resolver is told."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import InvalidArgument
from worker.network.local import plan
from worker.network.local.api import (
    ContainerNetworking,
    Endpoint,
    EndpointSpec,
    IpamPool,
    LocalNetwork,
    PortBinding,
)
from worker.network.local.files import Holding
from worker.network.local.options import completed, default_bridge

BRIDGE = default_bridge("b" * 64, 1, "172.17.0.0/16")


def network(name: str, **fields: Any) -> LocalNetwork:
    wanted = LocalNetwork(id=name[0] * 64, name=name, created_at_ns=1, **fields)
    return completed(wanted, [BRIDGE], [])


N1 = network("n1", pools=(IpamPool(subnet="10.1.0.0/24"),))
SHUT = network("shut", pools=(IpamPool(subnet="10.2.0.0/24"),), internal=True)
SIX = network(
    "xsix", pools=(IpamPool(subnet="10.3.0.0/24"), IpamPool(subnet="fd00::/64")), enable_ipv6=True
)
NETWORKS = {one.id: one for one in (BRIDGE, N1, SHUT, SIX)}


def place(net: LocalNetwork, *siblings: Endpoint, **spec: Any) -> Endpoint:
    return plan.endpoint(
        net, "c" * 64, EndpointSpec(**spec), identifier="e" * 64,
        others=[one for one in siblings if one.network_id == net.id], siblings=siblings,
    )  # fmt: skip


def wanted(**fields: Any) -> ContainerNetworking:
    return ContainerNetworking(
        container="c" * 64, name="web", hostname="box", networks=(), **fields
    )


def holding(*endpoints: Endpoint, **fields: Any) -> Holding:
    return Holding(wanted=wanted(**fields), endpoints=endpoints, host_links=())


def test_interfaces_are_numbered_with_gaps_filled():
    first, second = place(N1), place(SHUT, place(N1))
    assert (first.interface, second.interface) == ("eth0", "eth1")
    assert place(SIX, second).interface == "eth0"
    assert (first.ipv4_address, first.mac_address) == ("10.1.0.2", "02:42:0a:01:00:02")


def test_both_families():
    found = place(SIX, ipv6_address="fd00::5")
    assert (found.ipv4_address, found.ipv6_address, found.ipv6_prefix) == (
        "10.3.0.2",
        "fd00::5",
        64,
    )
    assert (found.gateway, found.ipv6_gateway) == ("10.3.0.1", "fd00::1")


@pytest.mark.parametrize(
    ("net", "spec", "text"),
    [
        (BRIDGE, {"aliases": ("al",)}, "alias is supported only"),
        (BRIDGE, {"ipv4_address": "172.17.0.9"}, "user defined networks only"),
        (N1, {"ipv6_address": "fd00::5"}, "no configured subnet contains"),
        (N1, {"mac_address": "02:42"}, "invalid MAC address"),
        (N1, {"mac_address": "01:00:5e:00:00:01"}, "it is a group's"),
        (N1, {"driver_options": {"a": "b"}}, "driver option a"),
        (N1, {"link_local_addresses": ("10.0.0.1",)}, "not a link-local address"),
    ],
)
def test_wishes_that_cannot_be(net: LocalNetwork, spec: dict[str, Any], text: str):
    with pytest.raises(InvalidArgument, match=text):
        place(net, **spec)


def test_ports_come_in_where_it_leads_outside():
    shut = place(SHUT)
    way = plan.leading((shut, place(N1, shut)), NETWORKS)
    assert way is not None
    assert way.network_name == "n1"
    assert plan.leading((shut,), NETWORKS) is None
    asked = wanted(ports=(PortBinding(container_port=80, host_port=8080),))
    assert plan.bindings(asked, None, NETWORKS) == ()
    (binding,) = plan.bindings(asked, way, NETWORKS)
    (found,) = plan.published((binding,), way)
    assert (found.host_address, found.host_port, found.address, found.port) == (
        "", 8080, "10.1.0.2", 80,
    )  # fmt: skip


def test_published_in_every_family_there_is():
    way = place(SIX)
    every = PortBinding(container_port=80, host_port=1)
    assert [one.address for one in plan.published((every,), way)] == ["10.3.0.2", "fd00::2"]
    shown = plan.shown_ports((every,), way, node_has_ipv6=False)
    assert [one.host_address for one in shown] == ["", "::"]
    four = PortBinding(container_port=80, host_port=1, host_address="127.0.0.1")
    assert [one.address for one in plan.published((four,), way)] == ["10.3.0.2"]
    six = PortBinding(container_port=80, host_port=1, host_address="::1")
    assert [one.address for one in plan.published((six,), way)] == ["fd00::2"]


@pytest.mark.parametrize(
    ("address", "protocol", "four", "both"),
    [
        ("", "tcp", "10.1.0.2", "fd00::2"),
        ("::", "udp", "10.1.0.2", "fd00::2"),
        ("::1", "tcp", "10.1.0.2", "fd00::2"),
        ("2001:db8::1", "tcp", "10.1.0.2", None),
        ("127.0.0.1", "tcp", None, None),
        ("", "sctp", None, None),
    ],
)
def test_what_the_relay_serves(address: str, protocol: str, four: str | None, both: str | None):
    """For a container with IPv4 alone, and for one that rules lead to over IPv6."""
    port = PortBinding(container_port=80, host_port=1, host_address=address, protocol=protocol)
    for network, expected in ((N1, four), (SIX, both)):
        found = plan.relayed((port,), place(network))
        assert found == ([(port, expected)] if expected else [])
        assert plan.relayed((port,), None) == []
    shown = plan.shown_ports((port,), place(N1), node_has_ipv6=True)
    assert len(shown) == (1 if address or protocol == "sctp" else 2)


def test_what_the_hosts_file_says():
    linked = place(BRIDGE, links=(("d" * 64, "data"),))
    database = plan.endpoint(
        BRIDGE, "d" * 64, EndpointSpec(), identifier="f" * 64, others=[linked], siblings=[]
    )
    other = Holding(
        wanted=ContainerNetworking(
            container="d" * 64, name="db", hostname="dbhost", networks=()
        ),
        endpoints=(database,), host_links=(),
    )  # fmt: skip
    lines = plan.hosts(wanted(), (linked, place(SIX, linked)), {"d" * 64: other})
    assert lines == (
        ("172.17.0.3", "data dbhost db"), ("172.17.0.2", "box"), ("10.3.0.2", "box"),
        ("fd00::2", "box"),
    )  # fmt: skip


def test_what_the_resolver_is_told():
    bridge = place(BRIDGE)
    assert plan.client(holding(bridge), NETWORKS, "/ns", ()) is None
    named = place(N1, bridge, aliases=("al", "web"), links=(("d" * 64, "data"),))
    client = plan.client(holding(bridge, named), NETWORKS, "/ns", ("192.0.2.1",))
    assert client is not None
    (told,) = client.places
    assert told.names == ("web", "al", "c" * 12, "box")
    assert told.links == (("data", "d" * 64),)
    assert (client.servers, client.forwards) == (("192.0.2.1",), True)
    inner = plan.client(holding(place(SHUT), dns_servers=("192.0.2.9",)), NETWORKS, "/ns", ())
    assert inner is not None
    assert (inner.servers, inner.forwards) == (("192.0.2.9",), False)
