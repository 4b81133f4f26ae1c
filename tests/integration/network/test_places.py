"""Ports published at one address or on one interface: they answer there, and nowhere else."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest

from shoal.model.enums import PublishMode
from shoal.model.types import PortConfig
from tests.integration.network.lab import (
    CLIENT,
    CLIENT6,
    Lab,
    Node,
    ask_tcp,
    ask_udp,
    connect,
    reopen,
    tcp,
    udp,
)
from worker.agent.dataplane import find_taken
from worker.network.core import gateway_of
from worker.network.twins import twin

pytestmark = pytest.mark.root
DEVICE = "edge0"
EDGE, EDGE6 = "192.0.2.1", "2001:db8:2::1"
OTHER = "192.0.2.2"


@pytest.fixture(autouse=True)
def edge(lab: Lab) -> Iterator[Node]:
    """The first node, with an interface that clients reach at two addresses."""
    node = lab.nodes[0]
    node.shell(
        f"ip link add {DEVICE} type bridge",
        f"ip link set {DEVICE} up",
        f"ip addr add {EDGE}/32 dev {DEVICE}",
        f"ip addr add {OTHER}/32 dev {DEVICE}",
        f"ip addr add {EDGE6}/128 dev {DEVICE} nodad",
    )
    routes = [
        f"{EDGE}/32 via {node.address}",
        f"{OTHER}/32 via {node.address}",
        f"{EDGE6}/128 via {node.address6}",
    ]
    lab.router.shell(*(f"ip route add {route}" for route in routes))
    try:
        yield node
    finally:
        lab.router.shell(*(f"ip route del {route}" for route in routes))
        node.shell(f"ip link del {DEVICE}")
        for one in lab.nodes:
            one.set_ports()


def _answers(lab: Lab, address: str, port: int, *, times: int = 20) -> set[str]:
    asked = [lab.client.run(lambda: ask_tcp(address, port)) for _ in range(times)]
    assert {client for _task, client in asked} == {CLIENT6 if ":" in address else CLIENT}
    return {task for task, _client in asked}


def _is_refused(lab: Lab, address: str, port: int) -> bool:
    try:
        lab.client.run(lambda: connect(address, port)).close()
    except ConnectionRefusedError:
        return True
    return False


@contextlib.contextmanager
def _listening(node: Node, address: str, port: int) -> Iterator[socket.socket]:
    """A process of the host that listens there."""
    listener = node.run(lambda: socket.create_server((address, port)))
    with listener:
        yield listener


def test_a_port_answers_at_its_address_and_the_number_is_the_hosts_elsewhere(
    lab: Lab, edge: Node
) -> None:
    with _listening(edge, edge.address, 8100) as listener:
        for node in lab.nodes:
            assert node.set_ports(tcp(8100, lab.tasks, address=EDGE)).errors == {}
        assert _answers(lab, EDGE, 8100, times=60) == {task.task_id for task in lab.tasks}
        assert edge.run(lambda: ask_tcp(EDGE, 8100))[0].startswith("task")
        with lab.client.run(lambda: connect(edge.address, 8100)).sock:
            listener.accept()[0].close()
    for address in (edge.address, OTHER, lab.nodes[1].address):
        assert _is_refused(lab, address, 8100)


def test_services_share_a_number_at_different_addresses(lab: Lab, edge: Node) -> None:
    first, second = lab.tasks[:2], lab.tasks[2:]
    ports = (
        tcp(8101, first, address=EDGE),
        tcp(8101, second, address=OTHER, sticky=True),
        udp(8101, second, address=EDGE),
        tcp(8101, second, address=EDGE6),
    )
    assert edge.set_ports(*ports).errors == {}
    assert _answers(lab, EDGE, 8101, times=40) == {task.task_id for task in first}
    assert len(_answers(lab, OTHER, 8101)) == 1
    assert _answers(lab, EDGE6, 8101, times=60) == {task.task_id for task in second}
    task, client = lab.client.run(lambda: ask_udp(EDGE, 8101))
    assert (task in {one.task_id for one in second}, client) == (True, CLIENT)
    # Without a ready task each is refused at its own address.
    edge.set_ports(tcp(8101, [], address=EDGE), *ports[1:])
    assert _is_refused(lab, EDGE, 8101)
    assert _answers(lab, OTHER, 8101)


def test_the_other_options_hold_at_an_address_too(lab: Lab, edge: Node) -> None:
    own = {task.task_id for task in lab.tasks if task.node is edge}
    edge.set_ports(
        tcp(8102, lab.tasks, address=EDGE, source="node"),
        tcp(8102, lab.tasks, address=EDGE6, source="node"),
        tcp(8102, lab.tasks, address=OTHER, prefer="local"),
    )
    gateway = gateway_of(edge.settings.subnet)
    for address, shown in ((EDGE, gateway), (EDGE6, twin(gateway))):
        seen = {lab.client.run(lambda a=address: ask_tcp(a, 8102)) for _ in range(60)}
        assert seen == {(task.task_id, shown) for task in lab.tasks}
    assert _answers(lab, OTHER, 8102) == own
    edge.set_ports(tcp(8102, lab.tasks, address=EDGE, mode="host"))
    assert _answers(lab, EDGE, 8102) == own


def test_a_port_of_an_interface_follows_its_addresses(lab: Lab, edge: Node) -> None:
    port = tcp(8103, lab.tasks, interface=DEVICE)
    for node in lab.nodes[1:]:
        assert node.set_ports(port).errors == {
            ("tcp", 8103): f"port 8103/tcp: interface {DEVICE} has no address on this node, "
            "or is not there"
        }
    assert edge.set_ports(port).errors == {}
    for address in (EDGE, OTHER, EDGE6):
        assert _answers(lab, address, 8103)
    assert _is_refused(lab, edge.address, 8103)
    edge.shell(f"ip addr del {OTHER}/32 dev {DEVICE}", f"ip addr add {OTHER}/32 dev lo")
    try:
        before = edge.set_ports(port).elements_changed
        assert before > 0
        assert _answers(lab, EDGE, 8103)
        assert _is_refused(lab, OTHER, 8103)
        with _listening(edge, OTHER, 8103):
            assert edge.set_ports(port).elements_changed == 0
    finally:
        edge.shell(f"ip addr del {OTHER}/32 dev lo", f"ip addr add {OTHER}/32 dev {DEVICE}")


def test_an_address_may_come_later(lab: Lab, edge: Node) -> None:
    edge.shell(f"ip addr del {OTHER}/32 dev {DEVICE}")
    assert edge.set_ports(tcp(8104, lab.tasks, address=OTHER)).errors == {}
    edge.shell(f"ip addr add {OTHER}/32 dev {DEVICE}")
    assert _answers(lab, OTHER, 8104)


def test_a_restart_finds_ports_at_addresses_as_they_were(lab: Lab, edge: Node) -> None:
    ports = (tcp(8105, lab.tasks, address=EDGE), tcp(8105, lab.tasks, address=EDGE6, source="node"))
    edge.set_ports(*ports)
    connections = [lab.client.run(lambda a=a: connect(a, 8105)) for a in (EDGE, EDGE6)]
    try:
        before = [one.ask() for one in connections]
        edge.close()
        assert _answers(lab, EDGE, 8105)
        reopen(lab, edge)
        assert edge.set_ports(*ports).elements_changed == 0
        # Another version of the rules takes the elements along.
        edge.close()
        reopen(lab, edge, mark_shift=16)
        assert edge.set_ports(*ports).elements_changed == 0
        assert [one.ask() for one in connections] == before
    finally:
        for one in connections:
            one.close()
        edge.close()
        reopen(lab, edge)


def test_a_host_process_is_in_the_way_only_where_it_listens(lab: Lab, edge: Node) -> None:
    wanted = tcp(8106, lab.tasks, address=EDGE)
    for address, named in ((EDGE, True), ("0.0.0.0", True), (OTHER, False)):
        with _listening(edge, address, 8106):
            errors = edge.set_ports(wanted).errors
            text = f"port {EDGE}:8106/tcp is in use by another process on this node"
            assert errors == ({("tcp", 8106): text} if named else {})
        edge.set_ports()
    with _listening(edge, OTHER, 8106):
        everywhere = edge.set_ports(tcp(8106, lab.tasks)).errors
        assert everywhere == {
            ("tcp", 8106): "port 8106/tcp is in use by another process on this node"
        }


def test_a_task_that_publishes_on_its_node_is_told_what_is_in_the_way(edge: Node) -> None:
    port = PortConfig(target_port=80, published_port=8110, publish_mode=PublishMode.HOST)
    taken = f"port {OTHER}:8110/tcp is in use by another process on this node"
    with _listening(edge, OTHER, 8110):
        for place, why in (
            ({"address": EDGE}, ""),
            ({"address": OTHER}, taken),
            ({"interface": DEVICE}, taken),
            ({"interface": "nosuch0"}, "interface nosuch0 has no address on this node"),
        ):
            found = edge.run(lambda p=place: find_taken(port.replaced(**p)))
            assert found.startswith(why) if why else not found
    assert not edge.run(lambda: find_taken(port.replaced(interface=DEVICE)))


def test_a_port_moves_between_everywhere_and_an_address(lab: Lab, edge: Node) -> None:
    def is_held(address: str) -> bool:
        try:
            edge.run(lambda: socket.create_server((address, 8107))).close()
        except OSError as error:
            return error.errno == errno.EADDRINUSE
        return False

    for _ in range(2):
        assert edge.set_ports(tcp(8107, lab.tasks)).errors == {}
        assert _answers(lab, EDGE, 8107) | _answers(lab, edge.address, 8107)
        assert is_held(OTHER)
        assert edge.set_ports(tcp(8107, lab.tasks, address=EDGE)).errors == {}
        assert _answers(lab, EDGE, 8107)
        assert _is_refused(lab, edge.address, 8107)
        assert (is_held(EDGE), is_held(OTHER)) == (True, False)
    with _listening(edge, OTHER, 8107):
        text = "port 8107/tcp is in use by another process on this node"
        assert edge.set_ports(tcp(8107, lab.tasks)).errors == {("tcp", 8107): text}


def test_a_place_is_published_once(lab: Lab, edge: Node) -> None:
    twice = (tcp(8108, lab.tasks, address=EDGE), tcp(8108, [], interface=DEVICE))
    assert edge.set_ports(*twice).errors == {
        ("tcp", 8108): f"port {EDGE}:8108/tcp is published twice"
    }
    assert _answers(lab, EDGE, 8108)
    assert _is_refused(lab, OTHER, 8108)  # published, without a task
    both = (tcp(8108, lab.tasks, address=EDGE), tcp(8108, []))
    assert edge.set_ports(*both).errors == {("tcp", 8108): "port 8108/tcp is published twice"}
    assert edge.set_ports(*reversed(both)).errors == {
        ("tcp", 8108): f"port {EDGE}:8108/tcp is published twice"
    }


def test_udp_flows_at_an_address_leave_a_task_that_is_gone(lab: Lab, edge: Node) -> None:
    first, second = lab.tasks[2], lab.tasks[4]
    with lab.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(5)
        sock.connect((EDGE, 8109))
        with contextlib.suppress(ConnectionRefusedError):
            sock.send(b"early")  # an entry without translation
            sock.recv(100)
        for task in (first, second):
            edge.set_ports(udp(8109, [task], address=EDGE))
            sock.send(b"?")
            assert sock.recv(100).split()[0].decode() == task.task_id
