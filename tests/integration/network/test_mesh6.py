"""Published ports over IPv6 on a real kernel: as over IPv4, with VXLAN over IPv4 underneath."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest

from tests.integration.network.lab import (
    CLIENT,
    CLIENT6,
    Lab,
    Node,
    ask_tcp,
    ask_udp,
    connect,
    running_lab,
    tcp,
    udp,
)
from worker.network.twins import twin

pytestmark = pytest.mark.root
_ROUTING6 = (
    "ip -6 addr show dev shgw0", "ip -6 rule", "ip -6 route show table all",
    "ip -6 neigh show nud permanent",
)  # fmt: skip
EMPTY = 8099


@pytest.fixture(autouse=True)
def published(lab: Lab) -> None:
    lab.publish(
        tcp(8080, lab.tasks),
        udp(5353, lab.tasks),
        tcp(8081, lab.tasks[4:]),
        tcp(8082, lab.tasks[:1]),
        tcp(8083, lab.tasks, sticky=True),
        tcp(8084, lab.tasks, mode="host"),
        tcp(EMPTY, []),
        udp(EMPTY, []),
    )


@pytest.mark.parametrize("ask", [ask_tcp, ask_udp])
def test_every_entry_node_reaches_every_task_and_keeps_the_client_address(lab: Lab, ask) -> None:
    port = 8080 if ask is ask_tcp else 5353
    for node in lab.nodes:
        seen: set[str] = set()
        for _ in range(120):
            task, client = lab.client.run(lambda n=node: ask(n.address6, port))
            assert client == CLIENT6
            seen.add(task)
        assert seen == {task.task_id for task in lab.tasks}


def test_loopback_and_own_address_of_a_node(lab: Lab) -> None:
    for node in lab.nodes:
        for address in ("::1", node.address6):
            seen = {node.run(lambda a=address: ask_tcp(a, 8080))[0] for _ in range(60)}
            assert len(seen) >= 4
            assert node.run(lambda a=address: ask_udp(a, 5353))[0].startswith("task")


def test_a_node_is_the_client_of_another_node(lab: Lab) -> None:
    first, second, _third = lab.nodes
    for _ in range(60):
        task, _client = first.run(lambda: ask_tcp(second.address6, 8080))
        assert task.startswith("task")


def test_a_task_reaches_published_ports_through_every_node_and_itself(lab: Lab) -> None:
    for task in (lab.tasks[0], lab.tasks[4]):
        gateway = twin(task.attachment.gateway)
        for address in (gateway, *(node.address6 for node in lab.nodes)):
            seen = {task.inside(lambda a=address: ask_tcp(a, 8080))[0] for _ in range(80)}
            assert seen == {t.task_id for t in lab.tasks}
    only = lab.tasks[0]
    assert only.inside(lambda: ask_tcp(only.node.address6, 8082)) == (
        only.task_id,
        twin(only.attachment.gateway),
    )


def test_same_client_address_and_port_through_two_nodes(lab: Lab) -> None:
    def both() -> list[tuple[str, str]]:
        first = connect(lab.nodes[0].address6, 8081, source=(CLIENT6, 5555))
        second = connect(lab.nodes[1].address6, 8081, source=(CLIENT6, 5555))
        try:
            return [first.ask(), second.ask(), first.ask(), second.ask()]
        finally:
            first.close()
            second.close()

    assert lab.client.run(both) == [("task4", CLIENT6)] * 4


def test_a_port_without_a_ready_task_is_refused(lab: Lab) -> None:
    node = lab.nodes[0]
    for machine, address in ((lab.client, node.address6), (node, "::1"), (node, node.address6)):
        with pytest.raises(ConnectionRefusedError):
            machine.run(lambda a=address: ask_tcp(a, EMPTY))
        with pytest.raises(ConnectionRefusedError):
            machine.run(lambda a=address: ask_udp(a, EMPTY))


def test_a_sticky_port_keeps_a_client_on_one_task(lab: Lab) -> None:
    seen = {lab.client.run(lambda: ask_tcp(lab.nodes[1].address6, 8083))[0] for _ in range(40)}
    assert len(seen) == 1


def test_host_mode_serves_only_the_nodes_own_tasks(lab: Lab) -> None:
    for node in lab.nodes:
        own = {task.task_id for task in lab.tasks if task.node is node}
        seen = {lab.client.run(lambda n=node: ask_tcp(n.address6, 8084))[0] for _ in range(40)}
        assert seen == own


def test_a_program_that_listens_on_ipv4_alone_refuses_at_once(lab: Lab) -> None:
    task = lab.tasks[2]
    listener = task.inside(lambda: socket.create_server(("0.0.0.0", 81)))
    try:
        port = msgspec.structs.replace(tcp(8086, [task]), target_port=81)
        lab.publish(tcp(8080, lab.tasks), port)
        for node in lab.nodes:
            lab.client.run(lambda n=node: connect(n.address, 8086)).close()
            with pytest.raises(ConnectionRefusedError):
                lab.client.run(lambda n=node: connect(n.address6, 8086))
    finally:
        listener.close()


def test_a_link_local_address_is_refused_at_once(lab: Lab) -> None:
    node = lab.nodes[0]
    words = node.shell("ip -o -6 addr show dev eth0 scope link").split()
    link_local = words[words.index("inet6") + 1].partition("/")[0]

    def call() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.settimeout(20)
            sock.connect((link_local, 8080, 0, socket.if_nametoindex("eth0")))

    with pytest.raises(ConnectionRefusedError):
        lab.nodes[1].run(call)


def test_tasks_reach_the_outside_with_the_nodes_address(lab: Lab) -> None:
    listener = lab.client.run(lambda: socket.create_server((CLIENT6, 7000), family=socket.AF_INET6))
    try:
        connection = lab.tasks[2].inside(lambda: connect(CLIENT6, 7000))
        accepted, peer = listener.accept()
        accepted.close()
        connection.close()
    finally:
        listener.close()
    assert peer[0] == lab.tasks[2].node.address6


def test_tasks_do_not_reach_each_other_beside_published_ports(lab: Lab) -> None:
    source = lab.tasks[0]
    for target in (lab.tasks[1], lab.tasks[2]):
        with pytest.raises(TimeoutError):
            source.inside(lambda t=target: connect(twin(t.address), 80, timeout_s=0.3))
    # Nor does the outside, which may well route to them.
    node, address = lab.nodes[0], twin(source.address)
    lab.router.shell(f"ip -6 route add {address}/128 via {node.address6}")
    try:
        with pytest.raises(TimeoutError):
            lab.client.run(lambda: connect(address, 80, timeout_s=0.3))
    finally:
        lab.router.shell(f"ip -6 route del {address}/128")


def test_an_address_without_a_task_is_unreachable_at_once(lab: Lab) -> None:
    with pytest.raises(OSError, match="No route to host"):
        lab.nodes[0].run(lambda: connect(twin("10.240.5.77"), 80))


def test_established_connections_to_a_lost_node_are_reset_instead_of_hanging(lab: Lab) -> None:
    entry, lost, alive = lab.nodes[0], lab.tasks[4], lab.tasks[0]
    entry.set_ports(tcp(8085, [lost]), udp(5400, [lost]))
    connection = lab.client.run(lambda: connect(entry.address6, 8085))
    with lab.client.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as sender:
        try:
            assert connection.ask()[0] == lost.task_id
            sender.settimeout(20)
            sender.connect((entry.address6, 5400))
            sender.send(b"?")
            assert sender.recv(100).split()[0] == lost.task_id.encode()
            entry.set_ports(tcp(8085, [alive]), udp(5400, [alive]))
            assert connection.ask()[0] == lost.task_id  # established ones stay
            sender.send(b"?")
            assert sender.recv(100).split()[0] == alive.task_id.encode()
            entry.wait(entry.network.forget_endpoints([lost.address]))
            with pytest.raises(ConnectionResetError):
                connection.ask()
        finally:
            connection.close()


def test_a_restart_keeps_established_connections_and_changes_nothing(lab: Lab) -> None:
    ports = [tcp(8080, lab.tasks), tcp(8081, lab.tasks[4:])]
    lab.publish(*ports)
    entry = lab.nodes[0]
    connection = lab.client.run(lambda: connect(entry.address6, 8081))
    try:
        before, state = connection.ask(), _state6(entry)
        _reopen(lab, entry)
        assert entry.set_ports(*ports).elements_changed == 0
        assert connection.ask() == before
        assert _state6(entry) == state
    finally:
        connection.close()


def test_a_node_without_ipv6_serves_ipv4_and_gets_no_ipv6_clients_from_others(lab: Lab) -> None:
    off = lab.nodes[2]
    peers = [msgspec.structs.replace(p, ipv6=p != off.peer) for p in lab.peers]
    try:
        _reopen(lab, off, ipv6=False)
        for node in lab.nodes:
            node.wait(node.network.set_peers(peers))
        lab.publish(tcp(8080, lab.tasks), tcp(8081, lab.tasks[4:]))
        assert "fd53:" not in off.shell(*_ROUTING6)
        others = {task.task_id for task in lab.tasks if task.node is not off}
        for node in lab.nodes[:2]:
            seen = {lab.client.run(lambda n=node: ask_tcp(n.address6, 8080))[0] for _ in range(60)}
            assert seen == others
            assert lab.client.run(lambda n=node: ask_tcp(n.address, 8081)) == ("task4", CLIENT)
            with pytest.raises(ConnectionRefusedError):
                lab.client.run(lambda n=node: ask_tcp(n.address6, 8081))
        with pytest.raises(ConnectionRefusedError):
            lab.client.run(lambda: ask_tcp(off.address6, 8080))
    finally:
        _reopen(lab, off)
        for node in lab.nodes:
            node.wait(node.network.set_peers(lab.peers))
    lab.publish(tcp(8081, lab.tasks[4:]))
    # The task is of the time before: it has its address again.
    assert lab.client.run(lambda: ask_tcp(off.address6, 8081)) == ("task4", CLIENT6)


def test_a_task_of_a_time_without_ipv6_gets_its_address_when_it_is_adopted(
    tmp_path: Path,
) -> None:
    with running_lab(tmp_path) as lab:
        node = lab.nodes[0]
        node.close()
        node.open(msgspec.structs.replace(node.settings, ipv6=False))
        task = lab.start("old", node)
        listed = task.inside(Path("/proc/thread-self/net/if_inet6").read_text)
        assert "eth0" not in listed
        _reopen(lab, node)
        node.set_ports(tcp(8080, [task]))
        assert lab.client.run(lambda: ask_tcp(node.address6, 8080)) == ("old", CLIENT6)


def _reopen(lab: Lab, node: Node, **changes) -> None:
    node.close()
    node.open(msgspec.structs.replace(node.settings, **changes))
    node.wait(node.network.set_peers(lab.peers))
    for task in lab.tasks:
        if task.node is node:
            node.wait(node.network.adopt(task.task_id, task.address))
    assert node.wait(node.network.sweep()) == []


def _state6(node: Node) -> str:
    return node.shell(*_ROUTING6, "nft list table inet shoal")
