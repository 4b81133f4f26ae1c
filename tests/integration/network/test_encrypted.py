"""Encrypted overlay networks between three nodes, on a kernel with WireGuard; and without it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from shoal.errors import FailedPrecondition
from shoal.telemetry.metrics import REGISTRY
from tests.integration.network.lab import Node, eventually
from tests.integration.network.overlay_lab import (
    RED,
    UDP_PORT,
    Member,
    World,
    running_world,
)
from worker.network import netns, wireguard
from worker.network.overlay import secrecy
from worker.network.overlay.api import OverlayNetwork
from worker.network.wireguard import WireguardDevice, WireguardSocket

SECRET = OverlayNetwork(
    network_id="secret", name="secret", vni=4100, subnets=("10.9.0.0/24", "fd09::/64"),
    encrypted=True,
)  # fmt: skip
VIP = "10.9.0.2"
MARKER = b"nobody but the two of us may read this"
DATA_PATH, SEALED = 7789, (7790, 7791)
TRANSPORT = 4
"""The first byte of a WireGuard packet that carries data."""
MTU = 1370

METRICS = ("network_key_generation", "encrypted_peers", "encrypted_peers_behind")
MISSING = wireguard.missing()
pytestmark = pytest.mark.root
needs_wireguard = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("world")) as world:
        one, two, three = world.lab.nodes
        world.networks.append(SECRET)
        world.serve(SECRET, "vault", VIP)
        world.start(one, "vault1", SECRET, "10.9.0.11/24", "fd09::11/64", service="vault")
        world.start(two, "vault2", SECRET, "10.9.0.12/24", "fd09::12/64", service="vault")
        world.start(three, "asking3", SECRET, "10.9.0.14/24", "fd09::14/64")
        world.start(one, "plain1", RED, "10.5.0.11/24")
        world.start(two, "plain2", RED, "10.5.0.12/24")
        yield world


class Capture:
    """What passes the switch's port of a node while the context lasts: UDP over IPv4."""

    def __init__(self, world: World, node: Node) -> None:
        self._router = world.lab.router
        self._device = f"p{node.settings.index}"
        self.packets: list[tuple[int, int, bytes]] = []
        """Destination port, length of the IP packet, payload of UDP."""
        self.raw: list[bytes] = []

    def __enter__(self) -> Capture:
        def listen() -> socket.socket:
            found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            found.bind((self._device, 0))
            return found

        self._socket = self._router.run(listen)
        return self

    def __exit__(self, *_: object) -> None:
        with self._socket, contextlib.suppress(BlockingIOError):
            while True:
                self._take(self._socket.recv(65536, socket.MSG_DONTWAIT))

    def _take(self, frame: bytes) -> None:
        self.raw.append(frame)
        if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_UDP:
            return
        head = 14 + 4 * (frame[14] & 15)
        (port,) = struct.unpack_from("!H", frame, head + 2)
        (length,) = struct.unpack_from("!H", frame, 16)
        self.packets.append((port, length, frame[head + 8 :]))

    def shows(self, text: bytes) -> bool:
        return any(text in frame for frame in self.raw)

    def lengths(self, *ports: int) -> list[int]:
        return [length for port, length, _ in self.packets if port in ports]


def _say(member: Member, address: str, text: bytes) -> bytes:
    """What the server there, which says its name first, echoes."""

    def call() -> bytes:
        with socket.create_connection((address, 80), timeout=20) as connection:
            lines = connection.makefile("rb")
            lines.readline()
            connection.sendall(text + b"\n")
            return lines.readline().strip()

    return member.inside(call)


def _device(world: World, node: Node, generation: int) -> WireguardDevice:
    def call() -> WireguardDevice:
        with netns.entered(Path(node.settings.run_dir) / "overlay/wireguard/netns"):
            index = socket.if_nametoindex(secrecy.device_of(generation))
            with contextlib.closing(WireguardSocket()) as found:
                return found.read(index)

    return node.run(call)


def _settle(world: World) -> None:
    """As the agents do, until every node speaks to every other by the newest key."""
    for node in world.lab.nodes:
        eventually(lambda node=node: node.wait(world.overlay(node).settle()), "the keys are used")


@needs_wireguard
def test_tasks_reach_each_other_by_address_name_and_virtual_address(world: World) -> None:
    for asking in ("vault1", "vault2", "asking3"):
        member = world.members[asking]
        for other in ("vault1", "vault2", "asking3"):
            assert member.ask(world.members[other].address) == other
            assert member.ask(world.members[other].address6) == other
        assert {member.ask(VIP) for _ in range(30)} == {"vault1", "vault2"}
        assert member.look_up("vault") == [VIP]


@needs_wireguard
def test_nothing_of_it_is_readable_between_the_nodes(world: World) -> None:
    """The same words on a network in the clear are seen: the test sees what it looks for."""
    asking, plain = world.members["vault1"], world.members["plain1"]
    with Capture(world, world.lab.nodes[0]) as seen:
        assert _say(asking, "10.9.0.12", MARKER) == MARKER
        assert _say(asking, "fd09::12", MARKER) == MARKER
    assert not seen.shows(MARKER)
    assert not seen.shows(socket.inet_aton("10.9.0.12"))
    assert not seen.lengths(DATA_PATH)
    assert sum(data[0] == TRANSPORT for port, _, data in seen.packets if port in SEALED) >= 8
    with Capture(world, world.lab.nodes[0]) as clear:
        assert _say(plain, "10.5.0.12", MARKER) == MARKER
    assert clear.shows(MARKER)
    assert clear.lengths(DATA_PATH)


@needs_wireguard
def test_packets_are_as_large_as_the_underlay_leaves_and_whole(world: World) -> None:
    asking = world.members["vault1"]

    def send(size: int) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never in pieces
            sock.settimeout(20)
            sock.sendto(bytes(size), ("10.9.0.12", UDP_PORT))
            return sock.recv(100).decode().strip()

    with Capture(world, world.lab.nodes[0]) as seen:
        assert asking.inside(lambda: send(MTU - 28)) == "vault2"
    assert 1400 < max(seen.lengths(*SEALED)) <= 1500
    with pytest.raises(OSError, match="too long"):
        asking.inside(lambda: send(MTU - 27))


def _frame(source: str, target: str, vni: int) -> bytes:
    """VXLAN around a datagram to port 6000."""
    payload = b"forged"
    udp = struct.pack("!HHHH", 4000, 6000, 8 + len(payload), 0) + payload
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
        socket.inet_aton(source), socket.inet_aton(target),
    )  # fmt: skip
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    ether = b"\x02\x42" + socket.inet_aton(target) + b"\x02\x42" + socket.inet_aton(source)
    return struct.pack("!BxxxI", 8, vni << 8) + ether + b"\x08\x00" + head + udp


@needs_wireguard
def test_frames_in_the_clear_are_dropped_whoever_sends_them(world: World) -> None:
    """Also a node of the cluster: its frame for a network in the clear arrives."""
    one, two, _three = world.lab.nodes
    sealed, plain = world.members["vault1"], world.members["plain1"]

    def listen() -> socket.socket:
        found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        found.bind(("0.0.0.0", 6000))
        found.settimeout(20)
        return found

    def send(frame: bytes, port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(frame, (one.address, port))

    with sealed.inside(listen) as never, plain.inside(listen) as arrived:
        for machine in (world.lab.client, two):
            for port in (DATA_PATH, *SEALED):
                frame = _frame("10.9.0.66", sealed.address, SECRET.vni)
                machine.run(lambda frame=frame, port=port: send(frame, port))
        two.run(lambda: send(_frame("10.5.0.67", plain.address, RED.vni), DATA_PATH))
        assert arrived.recvfrom(100) == (b"forged", ("10.5.0.67", 4000))
        never.settimeout(0.3)
        with pytest.raises(TimeoutError):
            never.recv(100)


@needs_wireguard
def test_whoever_has_no_key_is_not_reached_in_the_clear(world: World) -> None:
    three = world.lab.nodes[2]
    node_id = three.peer.node_id
    known = world.keys.pop(node_id)
    asking = world.members["vault1"]
    try:
        world.push(*world.lab.nodes[:2])
        with Capture(world, three) as seen:
            with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
                asking.ask("10.9.0.14", timeout_s=2)
            assert asking.ask("10.9.0.12") == "vault2"
        assert not seen.lengths(DATA_PATH)
    finally:
        world.keys[node_id] = known
        world.push()
    assert asking.ask("10.9.0.14") == "asking3"


class Pinger:
    """Asks over UDP, every 50 ms, and over one connection; remembers what stayed unanswered."""

    def __init__(self, member: Member, address: str) -> None:
        self.asked, self.lost = 0, 0
        self._datagrams = member.udp()
        self._datagrams.settimeout(1.0)
        self._address = address
        self._connection = member.inside(
            lambda: socket.create_connection((address, 80), timeout=40)
        )
        self._lines = self._connection.makefile("rb")
        self._lines.readline()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Pinger:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._datagrams.close()
        self._lines.close()
        self._connection.close()

    def _run(self) -> None:
        while not self._ended.wait(0.05):
            self.asked += 1
            try:
                self._datagrams.sendto(b"?", (self._address, UDP_PORT))
                self._datagrams.recv(100)
            except TimeoutError:
                self.lost += 1

    def is_connected(self) -> bool:
        self._connection.sendall(b"still here\n")
        return self._lines.readline() == b"still here\n"


@needs_wireguard
def test_keys_change_under_traffic_and_the_old_one_is_forgotten(world: World) -> None:
    with Pinger(world.members["asking3"], "10.9.0.12") as pinger:
        for generation in (1, 2, 3):
            for node in world.lab.nodes:  # one after the other, as they hear of it
                world.move_keys(node, generation)
                time.sleep(0.2)
                world.push()
                assert world.members["vault1"].ask("10.9.0.12") == "vault2"
            _settle(world)
            assert pinger.is_connected()
        time.sleep(0.5)
    print(f"rotation: {pinger.asked} asked, {pinger.lost} unanswered")
    assert pinger.asked > 20
    assert pinger.lost == 0
    shown = [REGISTRY.get_sample_value(f"shoal_{name}") for name in METRICS]
    assert shown == [3, 2, 0]
    for node in world.lab.nodes:
        keys = world.keys[node.peer.node_id].public
        assert sorted(keys) == [2, 3]
        for generation, public in keys.items():
            found = _device(world, node, generation)
            assert found.public_key == public
            others = {
                other.public[generation]
                for node_id, other in world.keys.items()
                if node_id != node.peer.node_id
            }
            assert set(found.peers) == others
        newest = _device(world, node, 3).peers.values()
        assert all(one.shaken and one.peer.address for one in newest)


@needs_wireguard
def test_a_node_that_missed_a_change_of_keys_is_reached_once_its_key_is_known(
    world: World,
) -> None:
    one, two, three = world.lab.nodes
    newest = max(world.keys["n1"].by_generation)
    for node in (one, two):
        world.move_keys(node, newest + 1)
        world.move_keys(node, newest + 2)
    world.push()
    assert world.members["vault1"].ask("10.9.0.12") == "vault2"
    world.move_keys(three, newest + 2)
    world.push()
    assert world.members["asking3"].ask("10.9.0.12") == "vault2"
    assert world.members["vault1"].ask("10.9.0.14") == "asking3"


@needs_wireguard
def test_a_restart_changes_nothing_and_keeps_connections(world: World) -> None:
    node, asking = world.lab.nodes[0], world.members["vault1"]
    inside = f"nsenter --net={node.settings.run_dir}/overlay/wireguard/netns"

    def shown() -> str:
        return node.shell(f"{inside} ip -o link", f"{inside} ip route", f"{inside} ip -o addr")

    before, devices = shown(), [_device(world, node, one).public_key for one in (0, 1)]
    with Pinger(asking, "10.9.0.12") as pinger:
        world.close(node)
        assert asking.ask("10.9.0.12") == "vault2"  # nobody is there, and it goes on
        world.open(node)
        for member in (asking, world.members["plain1"]):
            node.wait(world.overlay(node).adopt(member.place))
        world.push()
        assert pinger.is_connected()
    assert pinger.lost == 0
    assert shown() == before
    assert [_device(world, node, one).public_key for one in (0, 1)] == devices


@needs_wireguard
def test_new_keys_that_cannot_be_used_leave_those_of_before(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        one, two, _three = world.lab.nodes
        world.networks.append(SECRET)
        world.start(one, "vault1", SECRET, "10.9.0.11/24")
        world.start(two, "vault2", SECRET, "10.9.0.12/24")
        asking = world.members["vault1"]
        assert asking.ask("10.9.0.12") == "vault2"
        before = dict(world.keys)
        with one.run(lambda: _taken(SEALED[1])), pytest.raises(FailedPrecondition, match="7791"):
            world.move_keys(one, 1)
        world.keys.update(before)
        world.push()
        assert asking.ask("10.9.0.12") == "vault2"
        world.start(one, "vault3", SECRET, "10.9.0.13/24")
        assert asking.ask("10.9.0.13") == "vault3"
        world.move_keys(one, 1)
        assert asking.ask("10.9.0.12") == "vault2"


def _taken(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    found.bind(("0.0.0.0", port))
    return found


@needs_wireguard
def test_a_node_with_another_address_makes_its_tunnels_anew(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        one, two, _three = world.lab.nodes
        world.networks.append(SECRET)
        world.start(one, "vault1", SECRET, "10.9.0.11/24")
        world.start(two, "vault2", SECRET, "10.9.0.12/24")
        asking = world.members["vault1"]
        assert asking.ask("10.9.0.12") == "vault2"
        world.close(one)
        one.shell("ip addr add 198.51.100.77/24 dev eth0")
        one.address = "198.51.100.77"
        one.settings = msgspec.structs.replace(one.settings, underlay_address=one.address)
        world.open(one)
        one.wait(world.overlay(one).adopt(asking.place))
        world.push()
        one.wait(world.overlay(one).attach(asking.place))
        assert asking.ask("10.9.0.12") == "vault2"


@needs_wireguard
def test_a_taken_port_is_named_and_the_network_comes_when_it_is_free(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        one, two, _three = world.lab.nodes
        world.networks.append(SECRET)
        with one.run(lambda: _taken(SEALED[0])):
            with pytest.raises(FailedPrecondition, match="7790/udp is in use by another process"):
                world.start(one, "vault1", SECRET, "10.9.0.11/24")
            one.wait(one.network.detach("vault1"))
        world.endpoints.clear()
        world.push()
        world.start(one, "vault1", SECRET, "10.9.0.11/24")
        world.start(two, "vault2", SECRET, "10.9.0.12/24")
        assert world.members["vault1"].ask("10.9.0.12") == "vault2"
        run_dir = Path(one.settings.run_dir)
        world.stop("vault1")
        assert not (run_dir / "overlay/wireguard").exists()
        eventually(
            lambda: not any(f":{port} " in one.shell("ss -uln") for port in SEALED),
            "the ports of the tunnels are closed",
        )


@pytest.mark.skipif(not MISSING, reason="this kernel has WireGuard")
def test_without_wireguard_an_encrypted_network_is_refused_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    with running_world(tmp_path) as world:
        one, two, _three = world.lab.nodes
        world.networks.append(SECRET)
        with pytest.raises(FailedPrecondition, match=r"no WireGuard \(CONFIG_WIREGUARD\)"):
            world.start(one, "vault1", SECRET, "10.9.0.11/24")
        run_dir = Path(one.settings.run_dir)
        assert not (run_dir / "overlay/netns/secret").exists()
        assert not (run_dir / "overlay/wireguard").exists()
        one.wait(one.network.detach("vault1"))
        world.start(one, "plain1", RED, "10.5.0.11/24")
        world.start(two, "plain2", RED, "10.5.0.12/24")
        assert world.members["plain1"].ask("10.5.0.12") == "plain2"
