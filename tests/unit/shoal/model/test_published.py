"""Which published ports are in each other's way, and where one may answer."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.enums import PortProtocol
from shoal.model.published import (
    address_problem,
    are_at_odds,
    interface_problem,
    is_at_odds,
    name_of,
    place_of,
    weight_of,
)
from shoal.model.types import PortConfig

ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::1")
INTERFACES = ("eth0", "eth1")
PLACES = st.sampled_from(
    [{}, *({"address": one} for one in ADDRESSES), *({"interface": one} for one in INTERFACES)]
)
PORTS = st.builds(
    lambda number, protocol, place: PortConfig(
        target_port=80, published_port=number, protocol=protocol, **place
    ),
    st.sampled_from([8080, 8081]),
    st.sampled_from([PortProtocol.TCP, PortProtocol.UDP]),
    PLACES,
)


def _listens(port: PortConfig, machine: dict[str, set[str]]) -> set[tuple[object, ...]]:
    """Where the port answers on a machine with these addresses by interface."""
    if port.address:
        addresses = {port.address}
    elif port.interface:
        addresses = machine.get(port.interface, set())
    else:
        addresses = set(ADDRESSES)
    return {(port.protocol, port.published_port, one) for one in addresses}


@given(PORTS, PORTS, st.lists(st.sampled_from(INTERFACES), min_size=3, max_size=3))
def test_ports_that_are_not_at_odds_never_meet_on_any_machine(one, other, owners):
    machine: dict[str, set[str]] = {}
    for address, owner in zip(ADDRESSES, owners, strict=True):
        machine.setdefault(owner, set()).add(address)
    assert are_at_odds(one, other) == are_at_odds(other, one)
    if not are_at_odds(one, other):
        assert _listens(one, machine).isdisjoint(_listens(other, machine))


@given(PORTS, PORTS)
def test_ports_that_are_at_odds_meet_on_some_machine(one, other):
    machines = [
        {first: set(ADDRESSES), second: set()}
        for first, second in (INTERFACES, tuple(reversed(INTERFACES)))
    ]
    meet = any(_listens(one, m) & _listens(other, m) for m in machines)
    assert are_at_odds(one, other) == meet
    assert is_at_odds(one, [other]) == meet
    assert not is_at_odds(one, [])


def test_how_people_are_shown_where_a_port_answers():
    port = PortConfig(published_port=8080, target_port=80)
    for place, name, fields in (
        ("*", "8080/tcp", {}),
        ("192.0.2.1", "192.0.2.1:8080/tcp", {"address": "192.0.2.1"}),
        ("[2001:db8::1]", "[2001:db8::1]:8080/tcp", {"address": "2001:db8::1"}),
        ("eth1", "eth1:8080/tcp", {"interface": "eth1"}),
    ):
        assert (place_of(port.replaced(**fields)), name_of(port.replaced(**fields))) == (
            place,
            name,
        )


@pytest.mark.parametrize(
    ("label", "weight"),
    [("1", 1), ("100", 100), ("007", 7), ("0", 1), ("101", 1), ("-2", 1), ("x", 1), ("", 1),
     ("²", 1), ("1" * 5000, 1), (None, 1)],
)  # fmt: skip
def test_weights(label, weight):
    labels = {} if label is None else {"size": label}
    assert weight_of(PortConfig(weight_label="size"), labels) == weight
    assert weight_of(PortConfig(), {"": "7", "size": "7"}) == 1


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("192.0.2.1", ""),
        ("127.0.0.1", ""),
        ("2001:db8::1", ""),
        ("::1", ""),
        ("web", "no IP address"),
        ("192.0.2.1/24", "no IP address"),
        ("192.0.2.01", "no IP address"),
        ("2001:DB8::1", "must be written 2001:db8::1"),
        ("::ffff:192.0.2.1", "must be written 192.0.2.1"),
        ("0.0.0.0", "every address: leave it out"),
        ("::", "every address: leave it out"),
        ("224.0.0.1", "no single node"),
        ("255.255.255.255", "no single node"),
        ("ff02::1", "no single node"),
        ("fe80::1", "another machine on each link"),
        ("2001:db8::1%eth0", "another machine on each link"),
    ],
)
def test_addresses_a_port_may_have(address, why):
    problem = address_problem(address)
    assert (why in problem) if why else not problem


@given(st.ip_addresses().map(str))
def test_any_address_is_judged(address):
    assert address_problem(address) or str(ipaddress.ip_address(address)) == address


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("eth1", ""),
        ("br-0123456789ab", ""),
        ("a" * 16, "longer than the 15 bytes"),
        ("ä" * 8, "longer than the 15 bytes"),
        ("..", "cannot be the name"),
        ("a/b", "cannot be the name"),
        ("eth1:0", "cannot be the name"),
        ("eth 1", "cannot be the name"),
    ],
)
def test_names_of_interfaces(name, why):
    problem = interface_problem(name)
    assert (why in problem) if why else not problem
