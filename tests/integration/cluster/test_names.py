"""What a service's --dns options do, and how its tasks' questions get out of the cluster."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.reversename
import dns.rrset
import pytest

from tests.integration.cluster.lab import Lab, eventually
from worker.network import netns

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

ANSWERED = "198.51.100.7"
MANY = 60
"""Addresses that do not fit into 512 bytes."""
WAIT_S = 20.0
LOOK_S = 0.1
"""How soon the server sees that it is to end."""
NOT_FOUND = 3
"""Exit code of swarmctl."""


class Outside:
    """A name server in a node's network namespace: what it was asked, and from which ports.

    It knows every name. `big.` has more addresses than a datagram holds.
    """

    def __init__(self, udp: socket.socket, tcp: socket.socket) -> None:
        self.asked: list[tuple[str, str, int]] = []
        """Transport, name and port of the sender."""
        self._udp, self._tcp = udp, tcp
        self._stop = threading.Event()
        works = (self._datagram, self._stream)
        self._threads = [threading.Thread(target=self._repeat, args=(work,)) for work in works]
        for sock in (udp, tcp):
            sock.settimeout(LOOK_S)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Idempotent."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for sock in (self._udp, self._tcp):
            sock.close()

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                work()

    def _datagram(self) -> None:
        wire, sender = self._udp.recvfrom(4096)
        self._udp.sendto(self._answer("udp", wire, sender[1]), sender)

    def _stream(self) -> None:
        connection, sender = self._tcp.accept()
        with connection, connection.makefile("rb") as source:
            wire = source.read(int.from_bytes(source.read(2), "big"))
            reply = self._answer("tcp", wire, sender[1])
            connection.sendall(len(reply).to_bytes(2, "big") + reply)

    def _answer(self, transport: str, wire: bytes, port: int) -> bytes:
        query = dns.message.from_wire(wire)
        name = query.question[0].name
        self.asked.append((transport, name.to_text(omit_final_dot=True), port))
        reply = dns.message.make_response(query, recursion_available=True)
        big = name.labels[0] == b"big"
        addresses = [f"198.51.100.{number}" for number in range(MANY)] if big else [ANSWERED]
        if big and transport == "udp":
            reply.flags |= dns.flags.TC
        else:
            reply.answer.append(dns.rrset.from_text_list(name, 5, "IN", "A", addresses))
        return reply.to_wire()


@contextmanager
def an_outside_server(lab: Lab, node: str) -> Iterator[Outside]:
    """On port 53 of a node's own address."""
    place = (lab.addresses[node], 53)
    with netns.entered(Path(f"/run/netns/shoal-{lab.name}-{node}")), ExitStack() as undo:
        udp = undo.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        udp.bind(place)
        tcp = undo.enter_context(socket.create_server(place))
        undo.pop_all()
    outside = Outside(udp, tcp)
    try:
        yield outside
    finally:
        outside.close()


def ask(pid: int, name: str, kind: str = "A", *, tcp: bool = False) -> dns.message.Message:
    """What the resolver of a task says, over UDP as a client without EDNS asks, or over TCP."""
    query = dns.message.make_query(name, kind)
    with netns.entered(Path(f"/proc/{pid}/ns/net")):
        sock = socket.socket(type=socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        with sock:
            sock.settimeout(WAIT_S)
            sock.connect(("127.0.0.11", 53))
            wire = query.to_wire()
            if not tcp:
                sock.send(wire)
                return dns.message.from_wire(sock.recv(4096))
            sock.sendall(len(wire).to_bytes(2, "big") + wire)
            with sock.makefile("rb") as source:
                length = int.from_bytes(source.read(2), "big")
                return dns.message.from_wire(source.read(length))


def texts(reply: dns.message.Message) -> set[str]:
    assert reply.rcode() == dns.rcode.NOERROR
    return {item.to_text() for answer in reply.answer for item in answer}


@pytest.fixture
def asker(lab: Lab) -> Iterator[tuple[int, Outside]]:
    """The first process of a task on a network whose service has name servers of its own."""
    try:
        with an_outside_server(lab, "m1") as outside:
            lab.swarmctl("network", "create", "named")
            lab.swarmctl(
                "service", "create", "--name", "asker", "--network", "name=named,alias=other",
                "--dns", lab.addresses["m1"], "--dns-search", "corp.example",
                "--dns-option", "timeout:3", "--host", "printer:192.0.2.9", "web:1",
            )  # fmt: skip
            (task,) = eventually("it runs", lambda: lab.running("asker"))
            yield int(task["Status"]["ContainerStatus"]["PID"]), outside
    finally:
        lab.swarmctl("service", "rm", "asker", check=False)
        eventually(
            "the network is removed",
            lambda: lab.run("network", "rm", "named", check=False).returncode in (0, NOT_FOUND),
        )


def test_a_service_s_dns_options_are_its_tasks(lab: Lab, asker: tuple[int, Outside]) -> None:
    pid, outside = asker
    resolv_conf = Path(f"/proc/{pid}/root/etc/resolv.conf").read_text().splitlines()
    assert "nameserver 127.0.0.11" in resolv_conf
    assert "search corp.example" in resolv_conf
    assert sum(line.startswith("nameserver") for line in resolv_conf) == 1
    (options,) = (line.split()[1:] for line in resolv_conf if line.startswith("options"))
    assert set(options) == {"timeout:3", "ndots:0"}
    hosts = Path(f"/proc/{pid}/root/etc/hosts").read_text().splitlines()
    assert ["192.0.2.9", "printer"] in [line.split() for line in hosts]
    assert outside.asked == []

    _only_what_nobody_here_is_called_goes_outside(pid, outside)
    _each_question_has_a_port_of_its_own(pid, outside)
    _what_does_not_fit_is_asked_for_again(pid, outside)


def _only_what_nobody_here_is_called_goes_outside(pid: int, outside: Outside) -> None:
    (vip,) = texts(ask(pid, "asker"))
    (own,) = texts(ask(pid, "tasks.asker"))
    assert texts(ask(pid, "other")) == texts(ask(pid, "ASKER.named.")) == {vip}
    for name, kind in (("asker", "AAAA"), ("tasks.other", "AAAA"), ("asker.named", "MX")):
        assert texts(ask(pid, name, kind)) == set(), "known, and without such a record"
    for name, kind in (("nobody", "A"), ("nobody", "AAAA")):
        assert ask(pid, name, kind).rcode() == dns.rcode.NXDOMAIN, "one label is nobody else's"
    (called,) = texts(ask(pid, _reverse(own), "PTR"))
    assert called.startswith("asker.1.")
    assert called.endswith(".named.")
    assert texts(ask(pid, called)) == {own}
    assert texts(ask(pid, _reverse(vip), "PTR")) == {"asker.named."}
    assert outside.asked == []
    # As musl and glibc do with a search domain: the name as it is, then with the domain.
    assert texts(ask(pid, "nobody.corp.example")) == {ANSWERED}
    assert [name for _, name, _ in outside.asked] == ["nobody.corp.example"]


def _each_question_has_a_port_of_its_own(pid: int, outside: Outside) -> None:
    outside.asked.clear()
    for number in range(20):
        assert texts(ask(pid, f"host{number}.example")) == {ANSWERED}
    assert len({port for _, _, port in outside.asked}) >= 15, "a forged answer must guess it"


def _what_does_not_fit_is_asked_for_again(pid: int, outside: Outside) -> None:
    outside.asked.clear()
    short = ask(pid, "big.example")
    assert short.flags & dns.flags.TC, "the server's word that there is more"
    assert len(texts(ask(pid, "big.example", tcp=True))) == MANY
    assert [transport for transport, _, _ in outside.asked] == ["udp", "tcp"]


def _reverse(address: str) -> str:
    return dns.reversename.from_address(address).to_text()
