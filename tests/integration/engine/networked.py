"""A node with a network of its own, a client outside of it, and containers to talk to.

Both are network namespaces joined by one link; nothing has a name on the machine, and what the node
leaves in its namespace shows in `leftovers`.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from tests.integration.engine.daemon import DEADLINE_S, EngineNode
from tests.integration.engine.seeded import seed
from worker.network import netns

T = TypeVar("T")
CLIENT = "203.0.113.10"
CLIENT6 = "2001:db8:7::10"
NODE = "203.0.113.1"
NODE6 = "2001:db8:7::1"


class NetworkedNode(EngineNode):
    """An `EngineNode` in a namespace of its own, with `busybox`."""

    def __init__(self) -> None:
        super().__init__()
        self.node_ns = self.isolate()
        self.client_ns = self.node_ns.with_name("client")
        try:
            with netns.fresh(self.client_ns):
                _shell("ip link set lo up")
            self._join()
            seed(self)
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        with netns.entered(self.node_ns):
            _shell(f"ip link add ext0 type veth peer name ext0 netns {self.client_ns}",
                   f"ip addr add {NODE}/24 dev ext0", f"ip -6 addr add {NODE6}/64 dev ext0 nodad",
                   "ip link set ext0 up")  # fmt: skip
        with netns.entered(self.client_ns):
            _shell(f"ip addr add {CLIENT}/24 dev ext0",
                   f"ip -6 addr add {CLIENT6}/64 dev ext0 nodad",
                   "ip link set ext0 up")  # fmt: skip

    def close(self) -> None:
        """As an `EngineNode`, and the namespaces with all that is in them."""
        netns.drop(self.client_ns)
        super().close()

    def leftovers(self) -> list[str]:
        """Devices and tables of ours in the node's namespace."""
        with netns.entered(self.node_ns):
            links = _shell("ip -o link").splitlines()
            tables = _shell("nft list tables").splitlines()
        names = [line.split(":")[1].strip().split("@")[0] for line in links]
        return [one for one in names if one not in {"lo", "ext0"}] + tables

    def shell(self, *lines: str) -> str:
        """Run command lines in the node's network."""
        with netns.entered(self.node_ns):
            return _shell(*lines)

    def on_node(self, call: Callable[[], T]) -> T:
        """Run something in the node's network."""
        with netns.entered(self.node_ns):
            return call()

    def outside(self, call: Callable[[], T]) -> T:
        """Run something where the client is."""
        with netns.entered(self.client_ns):
            return call()


def talk(address: str, port: int, said: bytes = b"") -> bytes:
    """What a TCP server says; b"" when it cannot be reached."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while data := connection.recv(4096):
                answer += data
            return answer
    except OSError:
        return b""


def datagram(address: str, port: int, said: bytes) -> bytes:
    """What a UDP server answers; b"" when it does not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(2)
        try:
            sender.sendto(said, (address, port))
            return sender.recv(4096)
        except OSError:
            return b""


@contextmanager
def echo(sandbox: str) -> Iterator[None]:
    """A UDP server on port 53 of a container, for one datagram."""
    with netns.entered(Path(sandbox)):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("0.0.0.0", 53))

    def serve() -> None:
        said, sender = server.recvfrom(4096)
        server.sendto(said, sender)

    server.settimeout(DEADLINE_S)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE_S)
        server.close()


class Upstream:
    """A name server outside that knows one name; it notes the source ports it was asked from."""

    def __init__(self, udp: socket.socket, tcp: socket.socket) -> None:
        self.ports: set[int] = set()
        self.asked: list[str] = []
        self._sockets = udp, tcp
        self._over = threading.Event()
        for one in self._sockets:
            one.settimeout(0.2)
        self._threads = [
            threading.Thread(target=self._serve_udp, args=(udp,)),
            threading.Thread(target=self._serve_tcp, args=(tcp,)),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for one in self._sockets:
            one.close()

    def _serve_udp(self, udp: socket.socket) -> None:
        while not self._over.is_set():
            try:
                wire, sender = udp.recvfrom(4096)
            except TimeoutError:
                continue
            self.ports.add(sender[1])
            udp.sendto(self._answer(wire, udp=True), sender)

    def _serve_tcp(self, tcp: socket.socket) -> None:
        while not self._over.is_set():
            try:
                connection, _ = tcp.accept()
            except TimeoutError:
                continue
            with connection:
                length = int.from_bytes(connection.recv(2), "big")
                answer = self._answer(connection.recv(length), udp=False)
                connection.sendall(len(answer).to_bytes(2, "big") + answer)

    def _answer(self, wire: bytes, *, udp: bool) -> bytes:
        query = dns.message.from_wire(wire)
        name = query.question[0].name
        self.asked.append(name.to_text())
        reply = dns.message.make_response(query)
        if name.to_text() == "big.example.":
            if udp:
                reply.flags |= dns.flags.TC
            else:
                many = [f"198.51.100.{number}" for number in range(1, 200)]
                reply.answer.append(dns.rrset.from_text_list(name, 5, "IN", "A", many))
        elif name.to_text() == "outside.example.":
            reply.answer.append(dns.rrset.from_text(name, 5, "IN", "A", "198.51.100.7"))
        else:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply.to_wire()


@contextmanager
def upstream(node: NetworkedNode) -> Iterator[Upstream]:
    """A name server at the client's address."""

    def bind() -> tuple[socket.socket, socket.socket]:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind((CLIENT, 53))
        tcp = socket.create_server((CLIENT, 53))
        return udp, tcp

    made = Upstream(*node.outside(bind))
    try:
        yield made
    finally:
        made.close()


def _shell(*lines: str) -> str:
    return "".join(
        subprocess.run(
            line.split(), check=True, capture_output=True, text=True, timeout=DEADLINE_S
        ).stdout
        for line in lines
    )
