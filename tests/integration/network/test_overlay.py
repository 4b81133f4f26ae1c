"""Overlay networks between three nodes: addresses, virtual addresses, names, restarts, ends."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from shoal.errors import FailedPrecondition, NotFound
from swarmd.doctor.look import Peer, reach
from tests.integration.network.lab import CLIENT, CLIENT6, Machine, eventually
from tests.integration.network.overlay_lab import (
    BLUE,
    INNER,
    RED,
    UDP_PORT,
    Member,
    World,
    running_world,
)
from worker.network.local.nftables import Nft
from worker.network.overlay.api import OverlayNetwork

VIP, VIP6 = "10.5.0.2", "fd05::2"
ROUNDS = 60

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("world")) as world:
        one, two, three = world.lab.nodes
        world.serve(RED, "web", "10.5.0.2", "fd05::2", aliases=("www",))
        world.start(one, "web1", RED, "10.5.0.11/24", "fd05::11/64", service="web")
        world.start(two, "web2", RED, "10.5.0.12/24", "fd05::12/64", service="web")
        world.start(one, "cli1", RED, "10.5.0.13/24", "fd05::13/64")
        world.start(three, "cli3", RED, "10.5.0.14/24", "fd05::14/64")
        yield world


def test_tasks_reach_each_other_by_address_on_every_node(world: World) -> None:
    for asking in ("cli1", "cli3", "web1"):
        for other in ("web1", "web2", "cli1", "cli3"):
            target = world.members[other]
            assert world.members[asking].ask(target.address) == other
            assert world.members[asking].ask(target.address6) == other
    assert world.members["cli1"].shell("busybox ping -c 1 -W 5 10.5.0.12").returncode == 0


def _asked(member: Member, address: str) -> set[str]:
    return {member.ask(address) for _ in range(ROUNDS)}


def test_a_virtual_address_is_balanced_over_the_ready_tasks_of_all_nodes(world: World) -> None:
    for asking in ("cli1", "cli3", "web1", "web2"):  # also to itself
        member = world.members[asking]
        assert _asked(member, VIP) == {"web1", "web2"}
        assert _asked(member, VIP6) == {"web1", "web2"}

    def datagram() -> str:
        with world.members["cli1"].udp() as sock:
            sock.sendto(b"?", (VIP, UDP_PORT))
            return sock.recv(100).decode().strip()

    assert {datagram() for _ in range(ROUNDS)} == {"web1", "web2"}
    assert world.members["cli3"].shell("busybox ping -c 1 -W 5 10.5.0.2").returncode == 0


def test_names_of_services_tasks_and_addresses(world: World) -> None:
    for asking in ("cli1", "cli3"):
        look_up = world.members[asking].look_up
        for name in ("web", "WWW", "web.red"):
            assert look_up(name) == [VIP]
            assert look_up(name, "AAAA") == [VIP6]
        assert look_up("tasks.web") == look_up("tasks.www") == ["10.5.0.11", "10.5.0.12"]
        assert look_up("tasks.web", "AAAA") == ["fd05::11", "fd05::12"]
        assert look_up("web.web1") == ["10.5.0.11"]
        assert look_up("c.cli3") == ["10.5.0.14"]
        assert look_up("web", "MX") == []
        assert look_up("nobody") == ["NXDOMAIN"]
        assert look_up("12.0.5.10.in-addr.arpa", "PTR") == ["web.web2.red."]
        assert look_up("2.0.5.10.in-addr.arpa", "PTR") == ["web.red."]


def test_a_service_without_virtual_address_is_its_ready_tasks(world: World) -> None:
    world.serve(RED, "direct")
    world.push()
    assert world.members["cli1"].look_up("direct") == []
    world.start(world.lab.nodes[1], "direct1", RED, "10.5.0.21/24", service="direct")
    world.start(world.lab.nodes[2], "direct2", RED, "10.5.0.22/24", service="direct", ready=False)
    assert world.members["cli1"].look_up("direct") == ["10.5.0.21"]
    assert world.members["cli1"].look_up("direct", "AAAA") == []
    world.set_ready("direct2", True)
    assert world.members["cli1"].look_up("direct") == ["10.5.0.21", "10.5.0.22"]
    world.stop("direct1")
    world.stop("direct2")
    assert world.members["cli1"].look_up("direct") == []
    assert world.members["cli1"].look_up("tasks.direct") == []


def test_a_task_that_is_not_ready_gets_no_new_connection_but_keeps_the_old(world: World) -> None:
    asking = world.members["cli3"]
    with asking.udp() as datagrams:
        datagrams.connect((VIP, UDP_PORT))

        def answered() -> str:
            datagrams.send(b"?")
            return datagrams.recv(100).decode().strip()

        first = answered()
        assert {answered() for _ in range(5)} == {first}  # a flow stays where it is
        connection = asking.inside(lambda: socket.create_connection((VIP, 80), timeout=20))
        with connection, connection.makefile() as lines:
            mine = lines.readline().strip()
            for task in {first, mine}:
                world.set_ready(task, False)
                assert task not in _asked(asking, VIP) if len({first, mine}) == 1 else True
                other = world.members[task]
                assert f"{other.address}" not in asking.look_up("tasks.web")
                connection.sendall(b"still here\n")
                assert lines.readline() == "still here\n"
                if task == first:
                    other_name = {"web1": "web2", "web2": "web1"}[first]
                    assert answered() == other_name
                world.set_ready(task, True)
    assert _asked(asking, VIP) == {"web1", "web2"}


def test_a_connection_to_a_lost_node_is_reset_instead_of_hanging(world: World) -> None:
    asking, two = world.members["cli3"], world.lab.nodes[1]
    world.set_ready("web1", False)
    connection = asking.inside(lambda: socket.create_connection((VIP, 80), timeout=20))
    world.set_ready("web1", True)
    two.shell("ip link set eth0 down")
    try:
        with connection, connection.makefile() as lines:
            assert lines.readline().strip() == "web2"
            connection.sendall(b"nobody hears this\n")
            world.lost.add(two.peer.node_id)
            world.set_ready("web2", False)
            with pytest.raises(ConnectionResetError):
                lines.readline()
    finally:
        two.shell("ip link set eth0 up", "ip route add default via 198.51.100.254")
        world.lost.clear()
        world.set_ready("web2", True)
    assert _asked(asking, VIP) == {"web1", "web2"}


def test_without_a_ready_task_a_virtual_address_refuses_at_once(world: World) -> None:
    world.set_ready("web1", False)
    world.set_ready("web2", False)
    try:
        for asking in ("cli1", "cli3"):
            for address in (VIP, VIP6):
                with pytest.raises(ConnectionRefusedError):
                    world.members[asking].ask(address)
            assert world.members[asking].look_up("web") == [VIP]
            assert world.members[asking].look_up("tasks.web") == []
    finally:
        world.set_ready("web1", True)
        world.set_ready("web2", True)
    assert _asked(world.members["cli1"], VIP) == {"web1", "web2"}


def test_networks_with_the_same_subnet_do_not_see_each_other(world: World) -> None:
    one, two, three = world.lab.nodes
    world.serve(BLUE, "shop", VIP)
    world.start(two, "blue1", BLUE, "10.5.0.11/24", service="shop")
    world.start(three, "blue2", BLUE, "10.5.0.12/24", service="shop")
    asking = world.start(one, "blue3", BLUE, "10.5.0.15/24")
    try:
        assert asking.ask("10.5.0.11") == "blue1"
        assert _asked(asking, VIP) == {"blue1", "blue2"}
        assert _asked(world.members["cli1"], VIP) == {"web1", "web2"}
        assert asking.look_up("shop") == [VIP]
        assert asking.look_up("web") == ["NXDOMAIN"]
        assert world.members["cli1"].look_up("shop") == ["NXDOMAIN"]
        # 10.5.0.14 is on the other network only, and on this node's third peer.
        with pytest.raises(OSError, match=r"No route to host|timed out"):
            asking.ask("10.5.0.14", timeout_s=2)
    finally:
        for task in ("blue1", "blue2", "blue3"):
            world.stop(task)
    for node in world.lab.nodes:
        assert not (Path(node.settings.run_dir) / "overlay/netns/blue").exists()


def test_an_address_that_moves_to_another_node_is_found_there(world: World) -> None:
    one, two, _three = world.lab.nodes
    first = world.start(one, "mover1", RED, "10.5.0.30/24")
    # As if a process stayed in the first task's namespace, which answers there for as long.
    lingering = os.open(first.place.netns_path, os.O_RDONLY)
    for asking in ("cli1", "cli3"):
        assert world.members[asking].ask("10.5.0.30") == "mover1"
    world.stop("mover1")
    world.start(two, "mover2", RED, "10.5.0.30/24")
    for asking in ("cli1", "cli3", "web2"):
        assert world.members[asking].ask("10.5.0.30") == "mover2"
    world.stop("mover2")
    world.start(one, "mover3", RED, "10.5.0.30/24")
    for asking in ("cli1", "cli3", "web2"):
        assert world.members[asking].ask("10.5.0.30") == "mover3"
    world.stop("mover3")
    with pytest.raises(OSError, match=r"No route to host|timed out"):
        world.members["cli3"].ask("10.5.0.30", timeout_s=2)
    os.close(lingering)
    ports = f"nsenter --net={one.settings.run_dir}/overlay/netns/red ip -o link"
    eventually(lambda: "mover" not in one.shell(ports), "the kernel ends what was left")


def _shown(world: World, member: Member) -> list[str]:
    """The kernel's state of a task and of its network, as text."""
    node = member.node
    inside = f"nsenter --net={member.place.netns_path}"
    network = f"nsenter --net={node.settings.run_dir}/overlay/netns/red"
    return [
        node.shell(f"{inside} nft -a list ruleset").replace("last used", ""),
        node.shell(f"{inside} ip -o addr"),
        node.shell(f"{network} bridge fdb"),
        node.shell(f"{network} ip neigh show nud permanent"),
        node.shell(f"{network} ip -o link"),
    ]


def test_a_restart_changes_nothing_and_keeps_connections(world: World) -> None:
    node = world.lab.nodes[0]
    asking, resting = world.members["cli1"], world.members["web1"]
    before = _shown(world, asking)
    connection = asking.inside(lambda: socket.create_connection((VIP, 80), timeout=20))
    with connection, connection.makefile() as lines:
        assert lines.readline().strip() in {"web1", "web2"}
        world.close(node)
        assert _asked(asking, VIP) == {"web1", "web2"}  # nobody is there, and it goes on
        assert asking.look_up("web") == [VIP]
        world.open(node)
        for member in (asking, resting):
            node.wait(world.overlay(node).adopt(member.place))
        world.push()
        assert _shown(world, asking) == before
        connection.sendall(b"still here\n")
        assert lines.readline() == "still here\n"
    assert asking.look_up("web") == [VIP]
    world.set_ready("web2", False)
    assert _asked(asking, VIP) == {"web1"}
    world.set_ready("web2", True)


def test_a_task_whose_interface_is_gone_is_not_adopted(world: World) -> None:
    node = world.lab.nodes[1]
    member = world.start(node, "lost1", RED, "10.5.0.40/24")
    node.shell(f"nsenter --net={member.place.netns_path} ip link del eth1")
    world.close(node)
    world.open(node)
    with pytest.raises(NotFound, match="eth1 on network red is gone"):
        node.wait(world.overlay(node).adopt(member.place))
    node.wait(world.overlay(node).adopt(world.members["web2"].place))
    world.stop("lost1")
    assert world.members["cli1"].ask("10.5.0.12") == "web2"


def test_what_somebody_changed_is_mended_by_the_next_start(world: World) -> None:
    node = world.lab.nodes[2]
    member = world.members["cli3"]
    network = f"nsenter --net={node.settings.run_dir}/overlay/netns/red"
    before = _shown(world, member)
    node.shell(
        f"nsenter --net={member.place.netns_path} nft flush map ip shoal slots",
        f"{network} ip neigh del 10.5.0.11 dev vx0",
        f"{network} ip neigh add 10.5.0.99 lladdr 02:42:0a:05:00:63 dev vx0 nud permanent",
        f"{network} bridge fdb del 02:42:0a:05:00:0c dev vx0",
    )
    world.close(node)
    world.open(node)
    node.wait(world.overlay(node).adopt(member.place))
    world.push()
    assert [sorted(text.split()) for text in _shown(world, member)][1:] == [
        sorted(text.split()) for text in before
    ][1:]
    assert _asked(member, VIP) == {"web1", "web2"}


def test_the_resolver_is_started_again_when_it_was_killed(world: World) -> None:
    node, member = world.lab.nodes[2], world.members["cli3"]
    pid_file = Path(node.settings.run_dir) / "overlay" / "resolver.pid"
    old = int(pid_file.read_text())
    os.kill(old, signal.SIGKILL)

    def again() -> bool:
        try:
            return int(pid_file.read_text()) != old and member.look_up("web") == [VIP]
        except (OSError, ValueError):
            return False

    eventually(again, "the resolver answers again")
    assert member.look_up("tasks.web") == ["10.5.0.11", "10.5.0.12"]


def _frame(source: str, target: str, port: int) -> bytes:
    """VXLAN of the red network around a datagram from `source` to `target`."""
    payload = b"forged"
    udp = struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
        socket.inet_aton(source), socket.inet_aton(target),
    )  # fmt: skip
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    ether = b"\x02\x42" + socket.inet_aton(target) + b"\x02\x42" + socket.inet_aton(source)
    return struct.pack("!BxxxI", 8, RED.vni << 8) + ether + b"\x08\x00" + head + udp


def test_frames_from_outside_the_cluster_are_dropped(world: World) -> None:
    """The same frame, sent by a node, arrives: the test sees what it looks for."""
    node, member = world.lab.nodes[0], world.members["cli1"]

    def listen() -> socket.socket:
        found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        found.bind(("0.0.0.0", 6000))
        found.settimeout(20)
        return found

    def send(machine: Machine, source: str) -> None:
        def call() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(
                    _frame(source, member.address, 6000),
                    (node.address, node.settings.data_path_port),
                )

        machine.run(call)

    with member.inside(listen) as arrived:
        send(world.lab.client, "10.5.0.66")
        send(world.lab.nodes[1], "10.5.0.67")
        assert arrived.recvfrom(100) == (b"forged", ("10.5.0.67", 4000))
        arrived.settimeout(0.3)
        with pytest.raises(TimeoutError):
            arrived.recv(100)


def test_packets_are_as_large_as_the_network_says(world: World) -> None:
    asking = world.members["cli1"]

    def largest(target: str, size: int) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never in pieces
            sock.settimeout(20)
            sock.sendto(bytes(size), (target, UDP_PORT))
            return sock.recv(100).decode().strip()

    assert asking.inside(lambda: largest("10.5.0.12", 1450 - 28)) == "web2"
    with pytest.raises(OSError, match="too long"):
        asking.inside(lambda: largest("10.5.0.12", 1450 - 27))

    connection = asking.inside(lambda: socket.create_connection(("10.5.0.12", 80), timeout=20))
    with connection, connection.makefile() as lines:
        assert lines.readline().strip() == "web2"
        connection.sendall(b"x" * 100_000 + b"\n")
        assert len(lines.readline()) == 100_001


HOLE = """table bridge hole {
    chain forward { type filter hook forward priority 0; oifname "p2" ip length > 1300 drop; }
}"""


def _run_rules(rules: str) -> None:
    with Nft() as nft:
        nft.run(rules)


def test_a_path_that_loses_large_packets_slows_tcp_down_and_the_doctor_tells(
    world: World,
) -> None:
    """A switch that silently drops what is larger than 1300 bytes, before the second node."""
    asking, server = world.members["cli1"], world.members["web2"]
    switch = world.lab.router

    def echoed(size: int) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1)
            sock.sendto(bytes(size), ("10.5.0.12", UDP_PORT))
            try:
                return sock.recv(100).decode().strip() == "web2"
            except TimeoutError:
                return False

    try:
        for member in (asking, server):  # the lab's cables would carry segments uncut
            member.shell("ip link set eth1 gso_max_segs 1")
        switch.run(lambda: _run_rules(HOLE))
        assert asking.inside(lambda: echoed(1000))
        assert not asking.inside(lambda: echoed(1400))
        connection = asking.inside(lambda: socket.create_connection(("10.5.0.12", 80), timeout=40))
        with connection, connection.makefile() as lines:
            assert lines.readline().strip() == "web2"
            connection.sendall(b"x" * 20_000 + b"\n")
            assert len(lines.readline()) == 20_001, "it finds a size that passes"
        far = Peer("web2's node", server.node.address, "10.240.8.1")
        (found,) = asking.node.wait(reach([far], 1450))
        assert (found.underlay, found.mesh, found.mesh_full) == (True, True, False)
    finally:
        switch.run(lambda: _run_rules("delete table bridge hole"))


def test_an_internal_network_has_no_way_out_unless_ports_are_published(world: World) -> None:
    one, two, _three = world.lab.nodes
    shut = world.start(one, "shut1", INNER, "10.6.0.11/24")
    published = world.start(two, "open1", INNER, "10.6.0.12/24", publishes=True)
    listener = world.lab.client.run(lambda: socket.create_server((CLIENT, 7002)))
    six = world.lab.client.run(
        lambda: socket.create_server((CLIENT6, 7002), family=socket.AF_INET6)
    )

    def out(address: str = CLIENT) -> None:
        socket.create_connection((address, 7002), timeout=20).close()

    with listener, six:
        assert shut.ask("10.6.0.12") == "open1"
        world.members["web1"].inside(out)
        published.inside(out)
        world.members["web1"].inside(lambda: out(CLIENT6))
        accepted, seen = six.accept()
        accepted.close()
        assert seen[0] == one.address6, "everybody outside sees the node"
        for address in (CLIENT, CLIENT6):
            with pytest.raises(OSError, match="unreachable"):
                shut.inside(lambda address=address: out(address))
        with pytest.raises(OSError, match="unreachable"):  # nor to the node
            shut.inside(lambda: socket.create_connection(("10.240.4.1", 22), timeout=20))
    assert shut.look_up("example.org") == ["SERVFAIL"]
    with pytest.raises(OSError, match="too long"):
        shut.inside(
            lambda: _unfragmented("10.6.0.12", 1300 - 27),
        )
    world.stop("shut1")
    world.stop("open1")


def _unfragmented(target: str, size: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, 10, 2)
        sock.sendto(bytes(size), (target, UDP_PORT))


def test_a_network_the_node_cannot_build_refuses_its_tasks_and_holds_up_nothing(
    world: World,
) -> None:
    node = world.lab.nodes[0]
    wrong = OverlayNetwork(network_id="wrong", name="wrong", vni=5377, subnets=("10.7.0.0/24",))
    world.networks.append(wrong)
    endpoints = list(world.endpoints)
    try:
        with pytest.raises(FailedPrecondition, match="5377 is the ingress network's"):
            world.start(node, "wrong1", wrong, "10.7.0.11/24")
        assert _asked(world.members["cli1"], VIP) == {"web1", "web2"}
    finally:
        node.wait(node.network.detach("wrong1"))
        world.networks.remove(wrong)
        world.endpoints = endpoints
        world.push()


def test_a_new_network_may_have_the_number_of_one_that_went_at_once(world: World) -> None:
    """The managers give a number again as soon as it is free: a node may hear of both at once."""
    two, three = world.lab.nodes[1:]
    old = OverlayNetwork(network_id="old", name="old", vni=4250, subnets=("10.8.0.0/24",))
    new = msgspec.structs.replace(old, network_id="new", name="new")
    world.networks.append(old)
    world.start(two, "old1", old, "10.8.0.11/24")
    world.push = lambda *_: None  # type: ignore[method-assign]
    world.stop("old1")
    world.networks[-1] = new
    del world.push
    try:
        world.start(two, "new1", new, "10.8.0.11/24")
        asking = world.start(three, "new2", new, "10.8.0.12/24")
        assert asking.ask("10.8.0.11") == "new1"
    finally:
        for task in {"new1", "new2"} & world.members.keys():
            world.stop(task)
        world.networks.remove(new)
        world.push()


def test_a_service_of_more_than_64_tasks(world: World) -> None:
    """More slots, then fewer again; the tasks need not exist for the table to be right."""
    endpoints = list(world.endpoints)
    web1 = next(one for one in endpoints if one.task_id == "web1")
    for number in range(80):
        fields = {"task_id": f"many{number}", "addresses": (f"10.5.0.{100 + number}",)}
        world.endpoints.append(msgspec.structs.replace(web1, node_id="n2", **fields))
    asking = world.members["cli1"]
    try:
        world.push()
        table = asking.shell("nft list map ip shoal slots_wide").stdout
        assert len({part.split()[0] for part in table.split(" : ")[1:]}) >= 82
        assert "elements" not in asking.shell("nft list map ip shoal slots").stdout
    finally:
        world.endpoints = endpoints
        world.push()
    assert _asked(asking, VIP) == {"web1", "web2"}
    assert "elements" not in asking.shell("nft list map ip shoal slots_wide").stdout


def test_names_that_came_while_nobody_asked_are_known_to_who_asks_next(world: World) -> None:
    three = world.lab.nodes[2]
    world.stop("cli3")
    world.serve(RED, "late", "10.5.0.3")
    world.push()
    asking = world.start(three, "cli4", RED, "10.5.0.16/24")
    assert asking.look_up("late") == ["10.5.0.3"]
    assert asking.look_up("c.cli3") == ["SERVFAIL"]  # only others could know it


def test_a_node_that_leaves_keeps_nothing(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        one, two, _three = world.lab.nodes
        world.serve(RED, "web", VIP)
        world.start(one, "web1", RED, "10.5.0.11/24", service="web")
        world.start(two, "web2", RED, "10.5.0.12/24", service="web")
        run_dir = Path(one.settings.run_dir)
        pid = int((run_dir / "overlay/resolver.pid").read_text())
        assert "0.0.0.0:7789" in one.shell("ss -uln")
        world.end()
        world.close(one)
        world.open(one)  # by a process that has adopted nothing
        world.close(one, remove=True)
        one.close(remove=True)
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the resolver ends")
        assert not (run_dir / "overlay/netns").exists()
        assert not (run_dir / "netns").exists()
        eventually(lambda: ":7789" not in one.shell("ss -uln"), "the VXLAN socket is closed")
        links = {line.split()[1] for line in one.shell("ip -o link").splitlines()}
        assert {name.partition("@")[0].rstrip(":") for name in links} == {"lo", "eth0"}
