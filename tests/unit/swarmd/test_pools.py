"""Pools of networks' subnets: what init takes and refuses, and what the allocator makes of it."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.allocator.networks.subnets import Subnets
from manager.ca.core import new_cluster_secrets
from shoal.errors import InvalidArgument, ResourceExhausted
from shoal.ids import ClusterId, NodeId
from shoal.model.objects import Network
from shoal.model.specs import NetworkSpec
from shoal.model.types import Annotations
from swarmd.addresses import HostPort, NodeAddresses
from swarmd.core import InitWish, NewNode, first_entry, plan_init
from swarmd.pools import POOLS_MAX, SUBNET_LENGTH_MAX
from tests.support.planning import Cell

NOW_NS = 1_700_000_000_000_000_000
WHO = NewNode(NodeId("n" * 25), ClusterId("c" * 25), "node-1")
ADDRESSES = NodeAddresses(
    listen=HostPort(ipaddress.ip_address("0.0.0.0"), 2377),
    advertise=HostPort(ipaddress.ip_address("192.0.2.7"), 2377),
    data_path=ipaddress.ip_address("192.0.2.7"),
)
SECRETS = new_cluster_secrets(now_ns=NOW_NS)


def plan(*pools: str, length: int = 0, mesh: str = ""):
    wish = InitWish(
        default_address_pools=pools, default_address_pool_mask_length=length, ingress_pool=mesh
    )
    return plan_init(wish, ADDRESSES)


def subnets_of(plan, count: int) -> list[str]:
    """The subnets that the first networks of a cluster made so are given."""
    cell = Cell(action.object for action in first_entry(plan, WHO, SECRETS, now_ns=0).actions)
    subnets, found = Subnets(cell.tables), []
    for number in range(count):
        spec = NetworkSpec(annotations=Annotations(name=f"n{number}"))
        network = subnets.allocated(Network(id=f"n{number}", spec=spec))
        found += [config.subnet for config in network.ipam.configs]
    return found


def test_networks_get_subnets_of_the_pools_in_turn():
    found = plan("10.20.0.0/25", "172.20.0.0/26", length=26)
    assert found.default_address_pools == ("10.20.0.0/25", "172.20.0.0/26")
    assert subnets_of(found, 3) == ["10.20.0.0/26", "10.20.0.64/26", "172.20.0.0/26"]
    with pytest.raises(ResourceExhausted, match=r"no subnet of /26 is free in 10\.20"):
        subnets_of(found, 4)


def test_a_length_alone_is_that_of_the_default_pool():
    assert subnets_of(plan(length=28), 2) == ["10.0.0.0/28", "10.0.0.16/28"]


def test_host_bits_are_no_error_as_in_swarm():
    assert plan("10.20.1.9/16").default_address_pools == ("10.20.0.0/16",)


def test_subnets_are_given_around_the_mesh():
    found = plan("10.0.0.0/13", length=14, mesh="10.0.0.0/14")
    assert subnets_of(found, 1) == ["10.4.0.0/14"]


@pytest.mark.parametrize(
    ("pools", "length", "text"),
    [
        (["10.20.0.0/16"], 30, "subnet size is out of range: 30"),
        ([], 33, "subnet size is out of range: 33"),
        (
            ["10.20.0.0/25"],
            0,
            'invalid CIDR: "10.20.0.0/25". Subnet size is too small for pool: 24',
        ),
        (["10.0.0.0/8", "10.20.0.0/20"], 16, "too small for pool: 16"),
        (["10.20.0.0/33"], 0, "invalid base pool 10.20.0.0/33"),
        (["ten"], 0, "invalid base pool ten"),
        (["10.20.0.0"], 0, "write ADDRESS/LENGTH"),
        (["fd00::/16"], 0, "must be of IPv4"),
        (["127.0.0.0/8"], 0, "no host can have"),
        (["224.0.0.0/4"], 0, "no host can have"),
        (["0.0.0.0/0"], 0, "no host can have"),
        (["10.241.0.0/16"], 0, "lies in the routing mesh's pool 10.240.0.0/12"),
        (["10.20.0.0/16"] * (POOLS_MAX + 1), 0, f"at most {POOLS_MAX}"),
    ],
)
def test_what_breaks_a_rule_is_refused(pools, length, text):
    with pytest.raises(InvalidArgument) as caught:
        plan(*pools, length=length)
    assert text in str(caught.value)


POOLS = st.builds(
    lambda number, prefix: str(ipaddress.ip_network((number, prefix), strict=False)),
    st.integers(10 << 24, (11 << 24) - 1),
    st.integers(8, 26),
)


@given(pools=st.lists(POOLS, max_size=4), length=st.integers(16, SUBNET_LENGTH_MAX))
def test_what_is_taken_gives_subnets_of_its_own_outside_the_mesh(pools, length):
    try:
        found = plan(*pools, length=length, mesh="10.64.0.0/12")
    except InvalidArgument:
        return
    try:
        given_out = [ipaddress.ip_network(one) for one in subnets_of(found, 3)]
    except ResourceExhausted:
        return
    whole = [ipaddress.ip_network(one) for one in found.default_address_pools]
    mesh = ipaddress.ip_network("10.64.0.0/12")
    for place, one in enumerate(given_out):
        assert one.prefixlen == length
        assert any(one.subnet_of(pool) for pool in whole)
        assert not one.overlaps(mesh)
        assert not any(one.overlaps(other) for other in given_out[:place])
