"""Laws of subnets and addresses: nothing overlaps, nothing is given twice."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument, PermissionDenied, ResourceExhausted
from worker.network.local import addresses
from worker.network.local.api import IpamPool

subnets4 = st.builds(
    lambda number, prefix: ipaddress.IPv4Network((number, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)


@given(st.lists(subnets4, max_size=40))
def test_a_default_avoids_everything(taken: list[ipaddress.IPv4Network]):
    try:
        chosen = addresses.default_subnet(taken)
    except ResourceExhausted:
        return
    assert chosen.is_private
    assert not any(chosen.overlaps(other) for other in taken)


def test_the_defaults_come_in_order_and_end():
    taken: list[ipaddress.IPv4Network] = []
    for _ in range(15 + 16):
        taken.append(addresses.default_subnet(taken))
    assert str(taken[0]) == "172.17.0.0/16"
    assert str(taken[14]) == "172.31.0.0/16"
    assert str(taken[15]) == "192.168.0.0/20"
    with pytest.raises(ResourceExhausted, match="--subnet"):
        addresses.default_subnet(taken)


def test_ipv6_defaults_follow_from_the_network():
    one, other = addresses.default_subnet6("1" * 64), addresses.default_subnet6("2" * 64)
    assert one == addresses.default_subnet6("1" * 64)
    assert not one.overlaps(other)
    assert one.subnet_of(ipaddress.IPv6Network("fd00::/8"))


@given(st.integers(26, 29), st.data())
def test_every_address_is_given_once_until_there_is_none(prefix: int, data: st.DataObject):
    subnet = ipaddress.IPv4Network(f"10.1.0.0/{prefix}")
    aux = str(data.draw(st.sampled_from([*subnet.hosts()])))
    pool = addresses.checked_pool(IpamPool(subnet=str(subnet), reserved={"x": aux}))
    used: set[str] = set()
    for _ in range(subnet.num_addresses - 4):  # network, broadcast, gateway, aux
        address = addresses.free_address(pool, used, "n1")
        assert ipaddress.IPv4Address(address) in subnet
        assert address not in used | {pool.gateway, aux}
        used.add(address)
    with pytest.raises(ResourceExhausted, match="no available IPv4 addresses"):
        addresses.free_address(pool, used, "n1")


def test_a_range_bounds_what_is_given():
    pool = addresses.checked_pool(IpamPool(subnet="10.1.0.0/24", ip_range="10.1.0.128/30"))
    assert pool.gateway == "10.1.0.128"
    first = addresses.free_address(pool, (), "n1")
    assert first == "10.1.0.129"
    with pytest.raises(ResourceExhausted):
        addresses.free_address(pool, (first, "10.1.0.130", "10.1.0.131"), "n1")


@pytest.mark.parametrize(
    ("pool", "text"),
    [
        (IpamPool(subnet="10.1.0.1/24"), "has host bits set"),
        (IpamPool(subnet="10.1.0.0/31"), "too small"),
        (IpamPool(subnet="10.1.0.0/24", gateway="10.2.0.1"), "no matching subnet for 10.2.0.1"),
        (IpamPool(subnet="10.1.0.0/24", ip_range="10.2.0.0/25"), "not within the subnet"),
        (IpamPool(subnet="10.1.0.0/24", ip_range="fd00::/64"), "not within the subnet"),
        (IpamPool(subnet="10.1.0.0/24", reserved={"a": "nonsense"}), "aux-address"),
    ],
)
def test_pools_that_cannot_be(pool: IpamPool, text: str):
    with pytest.raises(InvalidArgument, match=text):
        addresses.checked_pool(pool)


def test_overlaps_are_refused_within_a_family():
    four, six = IpamPool(subnet="10.1.0.0/24"), IpamPool(subnet="fd00::/64")
    addresses.check_overlaps((four, six), [ipaddress.ip_network("10.2.0.0/16")])
    with pytest.raises(PermissionDenied, match="Pool overlaps"):
        addresses.check_overlaps((four,), [ipaddress.ip_network("10.0.0.0/8")])
    with pytest.raises(PermissionDenied, match="Pool overlaps"):
        addresses.check_overlaps((four, four), [])


def test_addresses_somebody_asks_for():
    pools = (addresses.checked_pool(IpamPool(subnet="10.1.0.0/24")),)
    assert addresses.fixed_address(pools, "10.1.0.9", (), "ip") == ("10.1.0.9", 24)
    for wanted in ("10.1.0.1", "10.1.0.0", "10.1.0.8"):
        with pytest.raises(PermissionDenied, match="already in use"):
            addresses.fixed_address(pools, wanted, ("10.1.0.8",), "ip")
    with pytest.raises(InvalidArgument, match="no configured subnet contains"):
        addresses.fixed_address(pools, "10.2.0.1", (), "ip")
    for wanted in ("ten", "fe80::1%eth0", "10.1.0.9 } flush ruleset"):
        with pytest.raises(InvalidArgument, match="invalid IP address"):
            addresses.fixed_address(pools, wanted, (), "ip")


def test_a_mac_follows_from_the_address():
    assert addresses.mac_of("172.17.0.2") == "02:42:ac:11:00:02"
