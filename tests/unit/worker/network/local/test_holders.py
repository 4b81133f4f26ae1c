"""Port numbers held on loopback by real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from shoal.errors import FailedPrecondition, InvalidArgument, Unimplemented
from worker.network.local.api import PortBinding
from worker.network.local.holders import Holders, has_sctp

LOOPBACK = "127.0.0.1"


@pytest.fixture
def holders() -> Iterator[Holders]:
    made = Holders()
    yield made
    made.close()


def asked(port: int = 0, end: int = 0, protocol: str = "tcp", address: str = LOOPBACK):
    return PortBinding(
        container_port=80, protocol=protocol, host_address=address, host_port=port,
        host_port_end=end,
    )  # fmt: skip


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_number_is_held_once_and_given_back(holders: Holders, protocol: str):
    (held,) = holders.hold_all([asked(protocol=protocol)])
    assert held.host_port
    again = asked(held.host_port, protocol=protocol)
    text = f"Bind for {LOOPBACK}:{held.host_port} failed: port is already allocated"
    with pytest.raises(FailedPrecondition, match=text):
        holders.hold_all([again])
    holders.release_all([held])
    assert holders.hold_all([again]) == (held,)


def test_protocols_and_addresses_are_apart(holders: Holders):
    (first,) = holders.hold_all([asked()])
    number = first.host_port
    holders.hold_all([asked(number, protocol="udp"), asked(number, address="127.0.0.2")])
    with pytest.raises(FailedPrecondition, match=r"Bind for 0\.0\.0\.0"):
        holders.hold_all([asked(number, address="")])


def test_all_or_none(holders: Holders):
    (first,) = holders.hold_all([asked()])
    holders.release_all([first])
    with pytest.raises(FailedPrecondition):
        holders.hold_all([asked(first.host_port), asked(first.host_port)])
    assert holders.hold_all([asked(first.host_port)]) == (first,)


def test_the_first_of_a_range_that_is_free_until_none_is(holders: Holders):
    with socket.create_server((LOOPBACK, 0)) as stranger:
        first = stranger.getsockname()[1]
        last = first + 5
        given: list[int] = []

        def take_all() -> None:
            for _ in range(6):
                given.extend(one.host_port for one in holders.hold_all([asked(first, last)]))

        with pytest.raises(FailedPrecondition, match=f"{first}-{last} failed: all ports"):
            take_all()
        assert given == sorted(set(given))
        assert first not in given


def test_what_cannot_be_held(holders: Holders):
    with socket.create_server((LOOPBACK, 0)) as stranger:
        number = stranger.getsockname()[1]
        with pytest.raises(FailedPrecondition, match="address already in use"):
            holders.hold_all([asked(number)])
        assert holders.hold_again([asked(number)]) == ["address already in use"]
    with pytest.raises(InvalidArgument, match="no interface of this node has"):
        holders.hold_all([asked(address="192.0.2.77")])


def test_sctp_where_the_kernel_has_it(holders: Holders):
    if not has_sctp():
        with pytest.raises(Unimplemented, match=r"port 80/sctp: this node's kernel has no SCTP"):
            holders.hold_all([asked(protocol="sctp")])
        return
    (held,) = holders.hold_all([asked(protocol="sctp")])
    with pytest.raises(FailedPrecondition, match="port is already allocated"):
        holders.hold_all([asked(held.host_port, protocol="sctp")])
