"""Laws of the IPv6 addresses that stand for IPv4 ones."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.network.api import PublishedPort
from worker.network.core import Reach
from worker.network.twins import PREFIX, twin, twin_subnet

ADDRESSES = st.ip_addresses(v=4).map(str)


@given(ADDRESSES)
def test_a_twin_ends_with_its_address_and_says_who_made_it(address: str) -> None:
    found = ipaddress.IPv6Address(twin(address))
    assert found in PREFIX
    assert found.packed[12:] == ipaddress.IPv4Address(address).packed
    assert str(found) == twin(address), "one spelling, or what is found would differ"
    assert found.is_private
    assert bytes.fromhex("fd") + b"Shoal" == found.packed[:6]


@given(ADDRESSES, st.integers(8, 29), ADDRESSES)
def test_twins_are_in_the_twins_of_the_subnets_of_their_addresses(
    start: str, length: int, address: str
) -> None:
    subnet = ipaddress.ip_network(f"{start}/{length}", strict=False)
    inside = ipaddress.IPv4Address(address) in subnet
    assert (ipaddress.ip_address(twin(address)) in ipaddress.ip_network(twin_subnet(str(subnet)))) \
        is inside  # fmt: skip


def test_what_is_no_address_has_no_twin() -> None:
    for wrong in ("", "10.0.0", "fd53::1", "10.0.0.1/8"):
        with pytest.raises((ValueError, OSError)):
            twin(wrong)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([22, 24, 29])), max_size=8),
    st.lists(st.integers(0, 61 * 1024 - 1), max_size=20),
)
def test_a_port_is_served_over_ipv6_where_its_tasks_have_twins(
    places: list[tuple[int, int]], tasks: list[int]
) -> None:
    base = int(ipaddress.IPv4Address("10.240.0.0"))
    subnets = [f"{ipaddress.IPv4Address(base + index * 1024)}/{length}" for index, length in places]
    addresses = tuple(str(ipaddress.IPv4Address(base + number)) for number in tasks)
    port = PublishedPort(
        protocol="tcp", published_port=80, target_port=8080, endpoints=addresses, sticky=True
    )
    view = Reach(subnets).view(port)
    networks = [ipaddress.IPv4Network(subnet) for subnet in subnets]
    assert view.endpoints == tuple(
        twin(address)
        for address in addresses
        if any(ipaddress.IPv4Address(address) in network for network in networks)
    )
    assert (view.published_port, view.target_port, view.sticky) == (80, 8080, True)
