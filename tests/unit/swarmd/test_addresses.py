"""Which addresses a node takes, from what its user wrote and what the machine has."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from swarmd.addresses import (
    HostPort,
    InterfaceAddress,
    detect,
    join_host_port,
    resolve,
    split_host_port,
)
from swarmd.interfaces import machine_addresses


def on(interface: str, address: str, *, up: bool = True) -> InterfaceAddress:
    return InterfaceAddress(interface, ipaddress.ip_address(address), up)


LO = on("lo", "127.0.0.1")
ETH0 = on("eth0", "192.0.2.7")
ETH1 = on("eth1", "198.51.100.7")
V6 = on("eth0", "2001:db8::7")
LINK_LOCAL = on("eth0", "fe80::1")
DOCKER = on("docker0", "172.17.0.1")
DOWN = on("eth9", "203.0.113.9", up=False)
MACHINE = (LO, ETH0, V6, LINK_LOCAL, DOCKER, DOWN)


def resolved(advertise: str = "", listen: str = "", data: str = "", machine=MACHINE):
    found = resolve(advertise, listen, data, machine=machine)
    return found.listen.render(), found.advertise.render(), str(found.data_path)


@pytest.mark.parametrize(
    ("advertise", "listen", "data", "expected"),
    [
        ("", "", "", ("0.0.0.0:2377", "192.0.2.7:2377", "192.0.2.7")),
        ("", "0.0.0.0:4000", "", ("0.0.0.0:4000", "192.0.2.7:4000", "192.0.2.7")),
        ("", "10.0.0.1", "", ("10.0.0.1:2377", "10.0.0.1:2377", "10.0.0.1")),
        ("eth0", "", "", ("0.0.0.0:2377", "192.0.2.7:2377", "192.0.2.7")),
        ("eth0:9", "", "", ("0.0.0.0:2377", "192.0.2.7:9", "192.0.2.7")),
        ("10.9.8.7", "0.0.0.0:4", "", ("0.0.0.0:4", "10.9.8.7:4", "10.9.8.7")),
        ("10.9.8.7:5", "", "eth0", ("0.0.0.0:2377", "10.9.8.7:5", "192.0.2.7")),
        ("2001:db8::1", "[::]:7", "", ("[::]:7", "[2001:db8::1]:7", "2001:db8::1")),
        ("[2001:db8::1]:8", "", "", ("0.0.0.0:2377", "[2001:db8::1]:8", "2001:db8::1")),
        ("", "lo", "", ("127.0.0.1:2377", "127.0.0.1:2377", "127.0.0.1")),
    ],
)
def test_addresses_follow_from_what_is_written(advertise, listen, data, expected):
    assert resolved(advertise, listen, data) == expected


@pytest.mark.parametrize(
    ("advertise", "listen", "data", "words"),
    [
        ("nosuch", "", "", ("advertise address", "nosuch", "eth0")),
        ("0.0.0.0:1", "", "", ("advertise address", "non-zero")),
        ("[::]", "", "", ("advertise address", "non-zero")),
        ("10.0.0.1:0", "", "", ("advertise address", "65535")),
        ("10.0.0.1:99999", "", "", ("65535",)),
        ("10.0.0.1:x", "", "", ("'x'",)),
        ("[::1", "", "", ("[IPV6]",)),
        (":5", "", "", ("no host",)),
        ("10.0.0.1", "host.example", "", ("listen address", "host.example")),
        ("10.0.0.1", "", "eth0:5", ("data path address", "--data-path-port")),
        ("10.0.0.1", "", "0.0.0.0", ("data path address", "non-zero")),
        ("10.0.0.1", "", "nosuch", ("data path address", "nosuch")),
    ],
)
def test_what_cannot_be_is_refused_by_name(advertise, listen, data, words):
    with pytest.raises(InvalidArgument) as caught:
        resolved(advertise, listen, data)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ((LO, LINK_LOCAL, DOCKER, DOWN), ("could not find", "--advertise-addr")),
        ((), ("could not find",)),
        ((ETH0, ETH1), ("192.0.2.7 on eth0", "198.51.100.7 on eth1", "--advertise-addr")),
        ((ETH0, on("eth0", "192.0.2.8")), ("interface eth0", "192.0.2.7 and 192.0.2.8")),
    ],
)
def test_detection_never_guesses(machine, words):
    with pytest.raises(InvalidArgument) as caught:
        detect(machine)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_ipv6_is_taken_where_there_is_no_ipv4():
    assert detect((LO, V6, LINK_LOCAL)) == V6.address


def test_an_interface_with_two_addresses_is_ambiguous():
    with pytest.raises(InvalidArgument, match="more than one"):
        resolved("eth0", machine=(ETH0, on("eth0", "192.0.2.8")))


@given(host=st.ip_addresses(), port=st.integers(1, 65535))
def test_what_is_rendered_is_read_again(host, port):
    text = HostPort(host, port).render()
    assert split_host_port("address", text) == (str(host), port)
    assert join_host_port(*split_host_port("address", text)) == text


def test_the_kernel_is_asked():
    """The loopback device has its address on every Linux machine."""
    found = machine_addresses()
    assert on("lo", "127.0.0.1") in found
