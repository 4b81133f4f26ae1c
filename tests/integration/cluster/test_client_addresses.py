"""Whom tasks see: the client's own address, whichever node it enters through, over IPv4 and IPv6.

The clients live in network namespaces of their own on the lab's switch; the tasks run a server that
says and logs whom it sees.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path

import pytest

from swarmctl.lab.kernel import netns_names
from swarmctl.lab.plan import address6, name_hash, netns_name, switch_name
from tests.integration.cluster.lab import DEADLINE_S, Lab, eventually
from worker.network.twins import PREFIX

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
SERVICE = "seen"
PORT = 8060
REQUESTS = 300
GATEWAYS = IPv4Network("10.240.0.0/12")

_SERVER = """
import asyncio, socket, sys

def name(peer):
    return peer[0].removeprefix("::ffff:")

class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, peer):
        print("udp", name(peer), flush=True)
        self.transport.sendto(f"{socket.gethostname()} {name(peer)}".encode(), peer)

async def connected(reader, writer):
    peer = writer.get_extra_info("peername")
    print("tcp", name(peer), flush=True)
    writer.write(f"{socket.gethostname()} {name(peer)}".encode())
    await writer.drain()
    writer.close()

async def main():
    loop = asyncio.get_running_loop()
    stream = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.bind(("::", 80))
    datagrams.setblocking(False)
    await loop.create_datagram_endpoint(Datagrams, sock=datagrams)
    await (await asyncio.start_server(connected, sock=stream)).serve_forever()

asyncio.run(main())
"""

# Asks each place so often, and prints as JSON what was answered: container and client.
_CLIENT = """
import json, socket, sys

def ask(protocol, address, port, source_port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as sock:
        sock.settimeout(20)
        if source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", source_port))
        sock.connect((address, port))
        if protocol == "udp":
            sock.send(b"?")
            return sock.recv(1000).decode().split()
        answer = b""
        while part := sock.recv(1000):
            answer += part
        return answer.decode().split()

answers = []
for protocol, address, port, times, source_port in json.loads(sys.argv[1]):
    answers += [ask(protocol, address, port, source_port) for _ in range(times)]
print(json.dumps(answers))
"""

Place = tuple[str, str, int, int, int]
"""Protocol, address, port, how often, the client's port (0: any)."""


class Client:
    """A machine of its own on the lab's switch."""

    def __init__(self, lab: Lab, number: int) -> None:
        self._name = f"shoal-client{number}-{os.getpid()}"
        self._switch = switch_name(lab.name)
        self._port = f"c{number}{name_hash(lab.name)}"
        host = IPv4Address(next(iter(lab.addresses.values())))
        subnet = IPv4Network(f"{host}/24", strict=False)
        self.address = str(subnet[200 + number])
        self.address6 = address6(self.address)

    def plug_in(self) -> None:
        _ip("netns", "add", self._name)
        _ip(
            "-n", self._switch, "link", "add", self._port, "type", "veth",
            "peer", "name", "eth0", "netns", self._name,
        )  # fmt: skip
        _ip("-n", self._switch, "link", "set", self._port, "master", "br0", "up")
        _ip("-n", self._name, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self._name, "address", "add", f"{self.address6}/120", "dev", "eth0", "nodad")
        _ip("-n", self._name, "link", "set", "eth0", "up")

    def unplug(self) -> None:
        if self._name in netns_names():
            _ip("netns", "del", self._name)

    def ask(self, *places: Place) -> list[tuple[str, str]]:
        """Result: (container, client as it saw it) of each answer."""
        return _answers(["ip", "netns", "exec", self._name], places)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=DEADLINE_S)


def _answers(prefix: list[str], places: tuple[Place, ...]) -> list[tuple[str, str]]:
    done = subprocess.run(
        [*prefix, sys.executable, "-I", "-c", _CLIENT, json.dumps(places)],
        capture_output=True, text=True, timeout=3 * DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(container, client) for container, client in json.loads(done.stdout)]


def _mounts() -> list[str]:
    """What an interpreter needs, as in this file system."""
    wanted = ["/usr", "/lib", "/lib64"]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        wanted.append(sys.base_prefix)
    found = [path for path in wanted if Path(path).is_dir()]
    mounts = [f"type=bind,source={os.path.realpath(path)},target={path},readonly" for path in found]
    return [word for mount in mounts for word in ("--mount", mount)]


@pytest.fixture(scope="module")
def seen(lab: Lab) -> Iterator[Lab]:
    """The lab with three tasks that say whom they see, and every node ready to send to them."""
    python = os.path.realpath(sys.executable)
    lab.swarmctl(
        "service", "create", "--name", SERVICE, "--replicas", "3", "--replicas-max-per-node", "1",
        "--publish", f"{PORT}:80/tcp", "--publish", f"{PORT}:80/udp", *_mounts(),
        "web:1", python, "-I", "-c", _SERVER,
    )  # fmt: skip
    at = ("service", "endpoints", SERVICE, "--format")
    try:
        eventually(
            "all places are in force",
            lambda: (
                lab.swarmctl(*at, "{{.State}}").split() == ["ready"] * 6
                and lab.swarmctl(*at, "{{.Behind}}", "--nodes").split() == ["0"] * 3
            ),
        )
        yield lab
    finally:
        lab.swarmctl("service", "rm", SERVICE, check=False)


@pytest.fixture(scope="module")
def clients(seen: Lab) -> Iterator[tuple[Client, Client]]:
    pair = Client(seen, 1), Client(seen, 2)
    try:
        for client in pair:
            client.plug_in()
        yield pair
    finally:
        for client in pair:
            client.unplug()


def _entries(lab: Lab) -> list[str]:
    """Addresses of every node, of both families."""
    return [*lab.addresses.values(), *map(address6, lab.addresses.values())]


def test_each_task_logs_the_client_s_own_address_through_every_node(
    seen: Lab, clients: tuple[Client, Client]
) -> None:
    client = clients[0]
    kinds = [(protocol, a) for protocol in ("tcp", "udp") for a in _entries(seen)]
    answers = client.ask(*((protocol, a, PORT, REQUESTS, 0) for protocol, a in kinds))
    asked = {client.address: 2 * 3 * REQUESTS, client.address6: 2 * 3 * REQUESTS}
    assert Counter(address for _, address in answers) == asked
    assert len({container for container, _ in answers}) == 3
    expected = {
        f"{protocol} {address}": 3 * REQUESTS
        for protocol in ("tcp", "udp")
        for address in (client.address, client.address6)
    }

    def logged() -> dict[str, int]:
        lines = seen.swarmctl("service", "logs", "--raw", SERVICE).splitlines()
        return Counter(line for line in lines if line in expected)

    eventually("everything is logged", lambda: logged() == expected)


def test_one_port_of_a_client_through_two_nodes_and_of_two_clients(
    seen: Lab, clients: tuple[Client, Client]
) -> None:
    for number, client in enumerate(clients):
        for entries in (seen.addresses.values(), map(address6, seen.addresses.values())):
            first, second, _third = entries
            for port in range(5600 + 10 * number, 5604 + 10 * number):
                answers = client.ask(
                    ("udp", first, PORT, 2, port), ("udp", second, PORT, 2, port),
                    ("tcp", first, PORT, 1, port), ("tcp", second, PORT, 1, port),
                )  # fmt: skip
                own = client.address6 if ":" in first else client.address
                assert {address for _, address in answers} == {own}


def test_a_node_is_a_client_of_itself_and_of_others(seen: Lab) -> None:
    for node in seen.addresses:
        inside = ["ip", "netns", "exec", netns_name(seen.name, node)]
        for protocol in ("tcp", "udp"):
            places = (*_entries(seen), "127.0.0.1", "::1")
            answers = _answers(inside, tuple((protocol, a, PORT, 20, 0) for a in places))
            assert len({container for container, _ in answers}) == 3


def test_a_task_is_a_client_of_its_own_node_and_may_reach_itself(seen: Lab) -> None:
    task = seen.running(SERVICE)[0]
    inside = ["nsenter", f"--net=/proc/{task['Status']['ContainerStatus']['PID']}/ns/net"]
    answers = _answers(inside, tuple(("tcp", a, PORT, 40, 0) for a in _entries(seen)))
    assert len({container for container, _ in answers}) == 3
    for _, client in answers:
        address = ip_address(client)
        # Seen as itself, as its node, or, where it would reach itself, as the gateway.
        assert client in _entries(seen) or address in GATEWAYS or address in PREFIX
