"""Published ports over IPv6 of containers that have IPv4 alone, and of those that have both."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.engine.networked import (
    CLIENT6,
    NODE,
    NODE6,
    NetworkedNode,
    datagram,
    echo,
    talk,
)
from tests.integration.engine.seeded import ask, ok, refused, until

pytestmark = pytest.mark.root
MAKE_NODE = NetworkedNode
HELLO = ("nc", "-ll", "-p", "80", "-e", "hostname")
ECHO = ("nc", "-ll", "-p", "80", "-e", "cat")


@pytest.fixture(autouse=True)
def nothing_left(node: NetworkedNode) -> Iterator[None]:
    yield
    found = ok(node, "ps", "-aq").split()
    if found:
        ok(node, "rm", "-f", *found)
    ok(node, "network", "prune", "-f")
    until(lambda: not listening(node))


def run(node: NetworkedNode, name: str, *options: str, command: tuple[str, ...] = HELLO) -> None:
    ok(node, "run", "-d", "--name", name, "-h", name, *options, "busybox", *command)


def listening(node: NetworkedNode) -> list[str]:
    """Sockets of the node that wait for strangers over IPv6."""
    return node.shell("ss -6Hltn").splitlines()


def relay(node: NetworkedNode) -> int:
    """The process; waits until it is there."""
    path = node.run / "relay.pid"
    until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


@contextmanager
def connected(node: NetworkedNode, port: int) -> Iterator[socket.socket]:
    """A client outside, over IPv6."""
    with node.outside(lambda: socket.create_connection((NODE6, port), timeout=40)) as found:
        yield found


def test_a_container_with_ipv4_alone_is_reached_over_ipv6(node: NetworkedNode):
    run(node, "web", "-p", "8080:80")
    until(lambda: node.outside(lambda: talk(NODE, 8080)) == b"web\n")
    assert node.on_node(lambda: talk("::1", 8080)) == b"web\n"
    assert node.on_node(lambda: talk(NODE6, 8080)) == b"web\n"
    assert node.outside(lambda: talk(NODE6, 8080)) == b"web\n"
    first = relay(node)
    run(node, "more", "-p", "8081:80", "-p", "[::1]:8082:80", "-p", "127.0.0.1:8083:80")
    until(lambda: node.on_node(lambda: talk("::1", 8082)) == b"more\n")
    assert node.outside(lambda: talk(NODE6, 8081)) == b"more\n"
    assert node.outside(lambda: talk(NODE6, 8082)) == b""
    assert node.on_node(lambda: talk("::1", 8083)) == b""
    assert relay(node) == first, "one for the node"


def test_a_container_with_both_is_reached_at_the_loopback_address_too(node: NetworkedNode):
    ok(node, "network", "create", "--ipv6", "--subnet", "2001:db8:8::/64", "six")
    run(node, "web", "--network", "six", "-p", "8080:80")
    until(lambda: node.outside(lambda: talk(NODE6, 8080)) == b"web\n")
    assert node.on_node(lambda: talk("::1", 8080)) == b"web\n"


def test_bytes_go_both_ways_and_each_direction_ends_by_itself(node: NetworkedNode):
    run(node, "web", "-p", "8080:80", command=ECHO)
    until(lambda: node.outside(lambda: talk(NODE, 8080, b"x")) == b"x")
    said = os.urandom(4 << 20)
    with connected(node, 8080) as client:
        assert converse(client, said) == said


def converse(client: socket.socket, said: bytes) -> bytes:
    """Say something without blocking, and end this side; all that comes back."""
    client.setblocking(False)
    rest, heard = memoryview(said), bytearray()
    while True:
        try:
            data = client.recv(1 << 20)
            if not data:
                return bytes(heard)
            heard += data
        except BlockingIOError:
            pass
        try:
            if rest:
                rest = rest[client.send(rest) :]
                if not rest:
                    client.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass


def test_a_port_nobody_listens_on_in_the_container_is_broken_off(node: NetworkedNode):
    run(node, "web", "-p", "8080:81")
    with connected(node, 8080) as client, pytest.raises(ConnectionResetError):
        client.recv(1)


def test_datagrams_come_back_from_where_they_were_sent_to(node: NetworkedNode):
    run(node, "names", "-p", "5353:53/udp", command=("sleep", "600"))
    sandbox = ask(node, "GET", "/containers/names/json")[1]["NetworkSettings"]["SandboxKey"]
    node.shell(f"ip -6 addr add {NODE6}9/64 dev ext0 nodad")
    for address in (NODE6, f"{NODE6}9"):
        with echo(sandbox):
            assert node.outside(lambda address=address: datagram(address, 5353, b"x")) == b"x"
    with echo(sandbox):
        assert node.on_node(lambda: datagram("::1", 5353, b"y")) == b"y"


def test_a_relay_that_is_killed_is_started_again_and_keeps_its_ports(node: NetworkedNode):
    run(node, "web", "-p", "8080:80")
    until(lambda: node.outside(lambda: talk(NODE6, 8080)) == b"web\n")
    before = relay(node)
    os.kill(before, signal.SIGKILL)
    with connected(node, 8080) as client:  # it waits for the next one
        assert client.recv(100) == b"web\n"
    until(lambda: relay(node) != before)
    assert "8080 failed: port is already allocated" in refused(
        node, "run", "-d", "-p", "8080:80", "busybox", "true"
    )


def test_a_worker_that_is_killed_cuts_no_connection(node: NetworkedNode):
    run(node, "web", "-p", "8080:80", command=ECHO)
    run(node, "gone", "-p", "8090:80")
    until(lambda: node.outside(lambda: talk(NODE, 8080, b"x")) == b"x")
    with connected(node, 8080) as client:
        client.sendall(b"before")
        assert client.recv(100) == b"before"
        known = relay(node)
        node.stop(signal.SIGKILL)
        client.sendall(b"meanwhile")
        assert client.recv(100) == b"meanwhile"
        Path(node.socket).unlink(missing_ok=True)
        node.start()
        client.sendall(b"after")
        assert client.recv(100) == b"after"
    assert relay(node) == known
    assert node.outside(lambda: talk(NODE6, 8090)) == b"gone\n"
    ok(node, "rm", "-f", "gone")
    assert node.outside(lambda: talk(NODE6, 8090)) == b""
    run(node, "next", "-p", "8090:80")
    until(lambda: node.outside(lambda: talk(NODE6, 8090)) == b"next\n")
    assert node.outside(lambda: talk(CLIENT6, 8090)) == b""


def test_the_relay_ends_with_what_needs_it(node: NetworkedNode):
    run(node, "web", "-p", "8080:80")
    pid = relay(node)
    ok(node, "rm", "-f", "web")
    until(lambda: not listening(node))
    node.stop()
    until(lambda: not os.path.exists(f"/proc/{pid}"))
    assert not (node.run / "relay.sock").exists()
    node.start()
