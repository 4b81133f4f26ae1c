"""A cluster's network in anonymous namespaces: a router, a client and nodes, each with a thread.

Every `Machine` is a thread that lives in its own network namespace and runs an event loop there, so
a `NodeNetwork` opened on it makes all its sockets in that namespace. Nothing has a name on the
machine: when the threads end the kernel removes everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import select
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from tests.support.patience import FACTOR
from worker.network import netns
from worker.network.api import (
    Attachment,
    NetworkSettings,
    Peer,
    PortReport,
    PublishedPort,
)
from worker.network.node import NodeNetwork

T = TypeVar("T")
DEADLINE_S = 40.0 * FACTOR
CLIENT = "203.0.113.10"
CLIENT_ROUTER = "203.0.113.254"
UNDERLAY_ROUTER = "198.51.100.254"
CLIENT6 = "2001:db8:113::10"
CLIENT6_ROUTER = "2001:db8:113::ff"
UNDERLAY6_ROUTER = "2001:db8:51::ff"
TCP_PORT = 80
UDP_PORT = 53
_CLONE_NEWNET = 0x40000000


class Machine:
    """A namespace with a thread and an event loop in it."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.tid = 0
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        self.shell("ip link set lo up")

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on this machine."""
        return self.submit(work).result(DEADLINE_S)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on this machine."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Callable[[], T]) -> T:
        """Run a blocking function on this machine."""

        async def call() -> T:
            return work()

        return self.wait(call())

    def shell(self, *lines: str) -> str:
        """Run command lines on this machine; their output."""

        def call() -> str:
            return "".join(
                subprocess.run(
                    line.split(), check=True, stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S
                ).stdout
                for line in lines
            )

        return self.run(call)

    def stop(self) -> None:
        """End the thread; its namespace follows."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)

    def _live(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(_CLONE_NEWNET) == 0
        self.tid = threading.get_native_id()
        loop = asyncio.new_event_loop()
        self._loop = loop
        self._ready.set()
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


class Node(Machine):
    """A machine that is a node of the cluster."""

    def __init__(self, index: int, run_dir: Path) -> None:
        super().__init__()
        self.address = f"198.51.100.{index}"
        self.address6 = f"2001:db8:51::{index}"
        self.settings = NetworkSettings(
            index=index,
            subnet=f"10.240.{4 * index}.0/22",
            underlay_address=self.address,
            run_dir=str(run_dir),
        )
        self.network_or_none: NodeNetwork | None = None

    @property
    def network(self) -> NodeNetwork:
        assert self.network_or_none is not None
        return self.network_or_none

    @property
    def peer(self) -> Peer:
        return Peer(
            f"n{self.settings.index}",
            self.settings.index,
            self.address,
            self.settings.subnet,
            ipv6=self.settings.ipv6,
            ipv6_addresses=(self.address6,),
        )

    def open(self, settings: NetworkSettings | None = None) -> None:
        self.network_or_none = self.wait(NodeNetwork.open(settings or self.settings))

    def close(self, *, remove: bool = False) -> None:
        if self.network_or_none is not None:
            self.wait(self.network.close(remove=remove))
            self.network_or_none = None

    def set_ports(self, *ports: PublishedPort) -> PortReport:
        return self.wait(self.network.set_ports(ports))


class Task:
    """A task: a namespace on a node with a TCP and a UDP server that tell who they saw."""

    def __init__(self, task_id: str, node: Node, attachment: Attachment, servers: Machine) -> None:
        self.task_id = task_id
        self.node = node
        self.attachment = attachment
        self._servers = servers
        self._closers: list[Callable[[], Awaitable[None]]] = []

    @property
    def address(self) -> str:
        return self.attachment.address

    def inside(self, work: Callable[[], T]) -> T:
        """Run a function in the task's namespace, on the node's thread."""

        def call() -> T:
            with netns.entered(Path(self.attachment.netns_path)):
                return work()

        return self.node.run(call)

    def serve(self) -> None:
        """Start the servers; sockets stay in the task's namespace, wherever they are served."""
        for tcp, udp in self.inside(_server_sockets):
            self._servers.wait(self._start(tcp, udp))

    def stop(self) -> None:
        """Stop the servers; open connections are cut."""
        closers, self._closers = self._closers, []

        async def end() -> None:
            for closer in closers:
                await closer()

        self._servers.wait(end())

    async def _start(self, tcp: socket.socket, udp: socket.socket) -> None:
        writers: set[asyncio.StreamWriter] = set()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.add(writer)
            peer = writer.get_extra_info("peername")
            with contextlib.suppress(ConnectionError):
                while await reader.readline():
                    writer.write(f"{self.task_id} {peer[0]}\n".encode())
                    await writer.drain()
            writers.discard(writer)
            writer.close()

        server = await asyncio.start_server(answer, sock=tcp)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _UdpAnswer(self.task_id), sock=udp
        )

        async def close() -> None:
            server.close()
            transport.close()
            for writer in list(writers):
                writer.transport.abort()
            await asyncio.sleep(0)

        self._closers.append(close)


class _UdpAnswer(asyncio.DatagramProtocol):
    def __init__(self, name: str) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(f"{self._name} {addr[0]}\n".encode(), addr)


def _server_sockets() -> list[tuple[socket.socket, socket.socket]]:
    """TCP and UDP, for each family apart: both see addresses as they are."""
    found: list[tuple[socket.socket, socket.socket]] = []
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        tcp = socket.create_server((anywhere, TCP_PORT), family=family, backlog=128)
        udp = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        udp.bind((anywhere, UDP_PORT))
        udp.setblocking(False)
        found.append((tcp, udp))
    return found


class Connection:
    """A TCP connection of a client that asks who answers."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def ask(self) -> tuple[str, str]:
        """(task, client address as the task sees it)."""
        self.sock.sendall(b"?\n")
        return _parse(_read_line(self.sock))

    def close(self) -> None:
        self.sock.close()


def connect(
    address: str, port: int, *, source: tuple[str, int] | None = None, timeout_s: float = 20.0
) -> Connection:
    """Connect from the calling thread's namespace."""
    sock = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        if source is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(source)
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return Connection(sock)


def ask_tcp(address: str, port: int, *, timeout_s: float = 20.0) -> tuple[str, str]:
    """One request on a connection of its own: (task, client address as seen)."""
    connection = connect(address, port, timeout_s=timeout_s)
    try:
        return connection.ask()
    finally:
        connection.close()


def ask_udp(address: str, port: int, *, timeout_s: float = 20.0) -> tuple[str, str]:
    """One datagram and its answer: (task, client address as seen)."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect((address, port))
        sock.send(b"?")
        return _parse(sock.recv(1000))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([sock], [], [], 20.0)
        if not readable:
            raise TimeoutError("no answer")
        part = sock.recv(1000)
        if not part:
            raise ConnectionResetError("closed by the task")
        line += part
    return line


def _parse(line: bytes) -> tuple[str, str]:
    task, client = line.decode().split()
    return task, client


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


class Lab:
    """Router, client, three nodes, and a machine that serves the tasks' sockets."""

    def __init__(self, directory: Path) -> None:
        self.stack = contextlib.ExitStack()
        self.router = self._machine(Machine())
        self.client = self._machine(Machine())
        self.servers = self._machine(Machine())
        self.nodes: list[Node] = []
        self.tasks: list[Task] = []
        self.router.shell(
            "ip link add br0 type bridge",
            f"ip addr add {UNDERLAY_ROUTER}/24 dev br0",
            f"ip addr add {UNDERLAY6_ROUTER}/64 dev br0 nodad",
            "ip link set br0 up",
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        )
        self.cable(self.client, "c0", f"{CLIENT}/24", CLIENT_ROUTER)
        self.router.shell(
            f"ip addr add {CLIENT_ROUTER}/24 dev c0",
            f"ip addr add {CLIENT6_ROUTER}/64 dev c0 nodad",
        )
        _reach6(self.client, f"{CLIENT6}/64", CLIENT6_ROUTER)
        for index in (1, 2, 3):
            node = Node(index, directory / f"n{index}")
            self._machine(node)
            self.cable(node, f"p{index}", f"{node.address}/24", UNDERLAY_ROUTER)
            self.router.shell(f"ip link set p{index} master br0")
            _reach6(node, f"{node.address6}/64", UNDERLAY6_ROUTER)
            self.nodes.append(node)

    @property
    def peers(self) -> list[Peer]:
        return [node.peer for node in self.nodes]

    def open(self) -> None:
        for node in self.nodes:
            node.open()
            self.stack.callback(node.close, remove=True)
            node.wait(node.network.set_peers(self.peers))

    def start(self, task_id: str, node: Node) -> Task:
        """Attach a task to a node and start its servers."""
        attachment = node.wait(node.network.attach(task_id))
        task = Task(task_id, node, attachment, self.servers)
        self.tasks.append(task)
        task.serve()
        return task

    def publish(self, *ports: PublishedPort) -> None:
        """Publish on every node; every node must accept."""
        for node in self.nodes:
            assert node.set_ports(*ports).errors == {}

    def close(self) -> None:
        for task in self.tasks:
            task.stop()
        self.stack.close()

    def _machine(self, machine: Machine) -> Any:
        self.stack.callback(machine.stop)
        return machine

    def cable(self, machine: Machine, port: str, address: str, gateway: str) -> None:
        """Connect a machine's eth0 to the router's port of that name."""
        self.router.shell(
            f"ip link add {port} type veth peer name eth0 netns {machine.tid}",
            f"ip link set {port} up",
        )
        machine.shell(
            f"ip addr add {address} dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {gateway}",
        )


def _reach6(machine: Machine, address: str, gateway: str) -> None:
    machine.shell(
        f"ip addr add {address} dev eth0 nodad", f"ip -6 route add default via {gateway} dev eth0"
    )


@contextlib.contextmanager
def running_lab(directory: Path) -> Iterator[Lab]:
    lab = Lab(directory)
    try:
        lab.open()
        yield lab
    finally:
        lab.close()


def tcp(published: int, tasks: Sequence[Task], **options: Any) -> PublishedPort:
    return PublishedPort(
        protocol="tcp",
        published_port=published,
        target_port=TCP_PORT,
        endpoints=tuple(task.address for task in tasks),
        **options,
    )


def udp(published: int, tasks: Sequence[Task], **options: Any) -> PublishedPort:
    return PublishedPort(
        protocol="udp",
        published_port=published,
        target_port=UDP_PORT,
        endpoints=tuple(task.address for task in tasks),
        **options,
    )


def reopen(lab: Lab, node: Node, **changes: Any) -> None:
    """Open a closed node's network again, as an agent that starts does."""
    node.open(msgspec.structs.replace(node.settings, **changes))
    node.wait(node.network.set_peers(lab.peers))
    for task in lab.tasks:
        if task.node is node:
            node.wait(node.network.adopt(task.task_id, task.address))
    assert node.wait(node.network.sweep()) == []
