"""Published ports on a real kernel: who is reached, from where, and whom the task sees."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec import structs

from tests.integration.network.lab import (
    CLIENT,
    UDP_PORT,
    Lab,
    Machine,
    Node,
    ask_tcp,
    ask_udp,
    connect,
    eventually,
    reopen,
    tcp,
    udp,
)
from worker.network.conntrack import ConntrackSocket, Match
from worker.network.core import gateway_of, task_mac, vtep_mac
from worker.network.fabric import VNI
from worker.network.tasks import HOST_MAC

pytestmark = pytest.mark.root
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
        tcp(8070, lab.tasks, source="node"),
        tcp(8071, lab.tasks, prefer="local"),
        udp(5371, lab.tasks, prefer="local"),
        tcp(EMPTY, []),
        udp(EMPTY, []),
    )


@pytest.mark.parametrize("ask", [ask_tcp, ask_udp])
def test_every_entry_node_reaches_every_task_and_keeps_the_client_address(lab: Lab, ask) -> None:
    port = 8080 if ask is ask_tcp else 5353
    for node in lab.nodes:
        seen: set[str] = set()
        for _ in range(120):
            task, client = lab.client.run(lambda n=node: ask(n.address, port))
            assert client == CLIENT
            seen.add(task)
        assert seen == {task.task_id for task in lab.tasks}


def test_localhost_and_own_address_of_a_node(lab: Lab) -> None:
    for node in lab.nodes:
        for address in ("127.0.0.1", node.address):
            seen = {node.run(lambda a=address: ask_tcp(a, 8080))[0] for _ in range(60)}
            assert len(seen) >= 4
            assert node.run(lambda a=address: ask_udp(a, 5353))[0].startswith("task")


def test_a_node_is_the_client_of_another_node(lab: Lab) -> None:
    first, second, _third = lab.nodes
    for _ in range(60):
        task, _client = first.run(lambda: ask_tcp(second.address, 8080))
        assert task.startswith("task")


def test_a_task_reaches_published_ports_through_every_node_and_itself(lab: Lab) -> None:
    for task in (lab.tasks[0], lab.tasks[4]):
        for address in (task.attachment.gateway, *(node.address for node in lab.nodes)):
            seen = {task.inside(lambda a=address: ask_tcp(a, 8080))[0] for _ in range(80)}
            assert seen == {t.task_id for t in lab.tasks}
    only = lab.tasks[0]
    assert only.inside(lambda: ask_tcp(only.node.address, 8082)) == (
        only.task_id,
        only.attachment.gateway,
    )


def test_same_client_address_and_port_through_two_nodes(lab: Lab) -> None:
    def both() -> list[tuple[str, str]]:
        first = connect(lab.nodes[0].address, 8081, source=(CLIENT, 5555))
        second = connect(lab.nodes[1].address, 8081, source=(CLIENT, 5555))
        try:
            return [first.ask(), second.ask(), first.ask(), second.ask()]
        finally:
            first.close()
            second.close()

    assert lab.client.run(both) == [("task4", CLIENT)] * 4


def test_a_port_without_a_ready_task_is_refused(lab: Lab) -> None:
    node = lab.nodes[0]
    for machine, address in ((lab.client, node.address), (node, "127.0.0.1"), (node, node.address)):
        with pytest.raises(ConnectionRefusedError):
            machine.run(lambda a=address: ask_tcp(a, EMPTY))
        with pytest.raises(ConnectionRefusedError):
            machine.run(lambda a=address: ask_udp(a, EMPTY))


def test_an_unpublished_port_belongs_to_the_host(lab: Lab) -> None:
    node = lab.nodes[0]
    with pytest.raises(ConnectionRefusedError):
        lab.client.run(lambda: ask_tcp(node.address, 9999))
    listener = node.run(lambda: socket.create_server(("0.0.0.0", 9999)))
    try:
        lab.client.run(lambda: connect(node.address, 9999)).close()
    finally:
        listener.close()


def test_a_sticky_port_keeps_a_client_on_one_task(lab: Lab) -> None:
    seen = {lab.client.run(lambda: ask_tcp(lab.nodes[1].address, 8083))[0] for _ in range(40)}
    assert len(seen) == 1


def test_host_mode_serves_only_the_nodes_own_tasks(lab: Lab) -> None:
    for node in lab.nodes:
        own = {task.task_id for task in lab.tasks if task.node is node}
        seen = {lab.client.run(lambda n=node: ask_tcp(n.address, 8084))[0] for _ in range(40)}
        assert seen == own


def test_tasks_see_the_entry_node_where_a_port_asks_for_it(lab: Lab) -> None:
    for node in lab.nodes:
        gateway = gateway_of(node.settings.subnet)
        seen = {lab.client.run(lambda n=node: ask_tcp(n.address, 8070)) for _ in range(60)}
        assert seen == {(task.task_id, gateway) for task in lab.tasks}
        # The same tasks on the same target port, published otherwise as well.
        assert lab.client.run(lambda n=node: ask_tcp(n.address, 8080))[1] == CLIENT


def test_a_udp_client_is_seen_anew_once_its_port_is_published_otherwise(lab: Lab) -> None:
    entry, task = lab.nodes[0], lab.tasks[4]
    gateway = gateway_of(entry.settings.subnet)
    with lab.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(5)
        sock.connect((entry.address, 5370))
        for options, seen in (({}, CLIENT), ({"source": "node"}, gateway), ({}, CLIENT)):
            entry.set_ports(udp(5370, [task], **options))
            sock.send(b"?")
            assert sock.recv(100).split()[1].decode() == seen
        # Also where an agent that has just started sees that it is another way.
        entry.close()
        reopen(lab, entry)
        entry.set_ports(udp(5370, [task], source="node"))
        sock.send(b"?")
        assert sock.recv(100).split()[1].decode() == gateway


@pytest.mark.parametrize("version", [4, 6])
def test_tasks_get_connections_by_their_weight(lab: Lab, version: int) -> None:
    heavy, light = lab.tasks[0], lab.tasks[4]
    node = lab.nodes[1]
    address = node.address if version == 4 else node.address6
    for weight in (1, 15, 200):
        port = tcp(8072, [heavy, light], weights={heavy.address: weight})
        assert node.set_ports(port).errors == {}
        asked = Counter(lab.client.run(lambda: ask_tcp(address, 8072))[0] for _ in range(200))
        assert sum(asked.values()) == 200
        assert (asked[heavy.task_id] > 160) == (weight > 1)  # 100 or 187 of 200 are to be expected


def test_a_node_prefers_its_own_tasks_while_it_has_any(lab: Lab) -> None:
    def seen(node: Node, port: int, ask=ask_tcp) -> set[str]:
        return {lab.client.run(lambda: ask(node.address, port))[0] for _ in range(40)}

    for node in lab.nodes:
        own = {task.task_id for task in lab.tasks if task.node is node}
        assert seen(node, 8071) == seen(node, 5371, ask_udp) == own
    entry = lab.nodes[2]
    entry.set_ports(tcp(8071, lab.tasks[:4], prefer="local"))
    assert seen(entry, 8071) == {task.task_id for task in lab.tasks[:4]}


def test_nothing_is_refused_while_the_last_own_task_comes_and_goes(lab: Lab) -> None:
    entry = lab.nodes[2]
    asked: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            asked.append(ask_tcp(entry.address, 8071)[0])

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lab.client.run, ask)
        for _ in range(20):
            for tasks in (lab.tasks[:4], lab.tasks):
                entry.set_ports(tcp(8071, tasks, prefer="local"))
                count = len(asked) + 10
                eventually(lambda n=count: len(asked) >= n or asking.done(), "requests")
        over.set()
        asking.result(20)
    assert {"task4"} < set(asked) <= {task.task_id for task in lab.tasks}


def test_a_udp_flow_stays_where_it_is_until_its_task_is_gone(lab: Lab) -> None:
    entry, own, other = lab.nodes[2], lab.tasks[4], lab.tasks[0]
    with lab.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(5)
        sock.connect((entry.address, 5372))
        for tasks, answers in (([other], other), ([other, own], other), ([own], own)):
            entry.set_ports(udp(5372, tasks, prefer="local"))
            sock.send(b"?")
            assert sock.recv(100).split()[0].decode() == answers.task_id


def test_tasks_reach_the_outside_with_the_nodes_address(lab: Lab) -> None:
    listener = lab.client.run(lambda: socket.create_server((CLIENT, 7000)))
    try:
        connection = lab.tasks[2].inside(lambda: connect(CLIENT, 7000))
        accepted, peer = listener.accept()
        accepted.close()
        connection.close()
    finally:
        listener.close()
    assert peer[0] == lab.tasks[2].node.address


def test_tasks_do_not_reach_each_other_beside_published_ports(lab: Lab) -> None:
    source = lab.tasks[0]
    for target in (lab.tasks[1], lab.tasks[2]):
        with pytest.raises(TimeoutError):
            source.inside(lambda t=target: connect(t.address, 80, timeout_s=0.3))
    # Nor does the outside, which may well route to them.
    node = lab.nodes[0]
    lab.client.shell(f"ip route add {source.address}/32 via 203.0.113.254")
    lab.router.shell(f"ip route add {source.address}/32 via {node.address}")
    try:
        with pytest.raises(TimeoutError):
            lab.client.run(lambda: connect(source.address, 80, timeout_s=0.3))
    finally:
        lab.client.shell(f"ip route del {source.address}/32")
        lab.router.shell(f"ip route del {source.address}/32")


def test_an_address_without_a_task_is_unreachable_at_once(lab: Lab) -> None:
    with pytest.raises(OSError, match="No route to host"):
        lab.nodes[0].run(lambda: connect("10.240.5.77", 80))


def test_vxlan_frames_from_outside_the_cluster_are_dropped(lab: Lab) -> None:
    target = lab.tasks[0]
    sink = target.inside(lambda: _bound_udp(6000))
    try:
        frame = _vxlan_frame(lab.nodes[1].settings.subnet, lab.nodes[0].settings.subnet, target)
        outsider = lab.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        member = lab.nodes[1].run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with outsider, member:
            for _ in range(5):
                outsider.sendto(frame + b"outsider", (target.node.address, 7789))
            member.sendto(frame + b"member..", (target.node.address, 7789))
        assert sink.recv(100) == b"member.."
        sink.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sink.recv(100)
    finally:
        sink.close()


def test_a_peer_cannot_use_a_node_as_its_way_out(lab: Lab) -> None:
    node, peer = lab.nodes[0], lab.nodes[1]
    sink = lab.client.run(lambda: _bound_udp(7002))
    member = peer.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    ethernet = vtep_mac(node.settings.subnet) + vtep_mac(peer.settings.subnet) + b"\x08\x00"
    packet = _udp_packet("192.0.2.77", CLIENT, 7002)
    with sink, member:
        frame = struct.pack("!II", 0x08000000, VNI << 8) + ethernet + packet
        member.sendto(frame + b"smuggled", (node.address, 7789))
        member.sendto(b"straight", (CLIENT, 7002))
        assert sink.recv(100) == b"straight"
        sink.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sink.recv(100)


def test_loopback_addresses_are_not_accepted_from_the_wire(lab: Lab) -> None:
    """route_localnet is on for our devices: the guard chain must drop what abuses it."""
    node, task = lab.nodes[0], lab.tasks[0]
    private = node.run(lambda: _bound_udp(4000, "127.0.0.1"))
    packet = _udp_packet(task.address, "127.0.0.1", 4000)
    frame = HOST_MAC + task_mac(task.address) + b"\x08\x00" + packet

    def send(mark: bytes) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(frame + mark)

    try:
        task.inside(lambda: send(b"guarded."))
        node.shell("nft flush chain inet shoal guard")
        task.inside(lambda: send(b"exposed."))
        assert private.recv(100) == b"exposed."
    finally:
        private.close()
        node.shell('nft add rule inet shoal guard iifname != "lo" ip daddr 127.0.0.0/8 drop')


def test_link_statistics_count_from_the_tasks_side(lab: Lab) -> None:
    task = lab.tasks[4]
    before = task.node.wait(task.node.network.stats(task.task_id))
    lab.client.run(lambda: ask_tcp(lab.nodes[2].address, 8081))
    after = task.node.wait(task.node.network.stats(task.task_id))
    assert after.rx_packets > before.rx_packets
    assert after.tx_bytes > before.tx_bytes


def test_udp_flow_leaves_a_removed_endpoint(lab: Lab) -> None:
    port, first, second = 5400, lab.tasks[2], lab.tasks[4]
    entry = lab.nodes[0]
    keep = [tcp(8080, lab.tasks)]
    entry.set_ports(*keep, udp(port, [first]))
    with lab.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(5)
        sock.connect((entry.address, port))
        sock.send(b"?")
        assert sock.recv(100).split()[0] == first.task_id.encode()
        entry.set_ports(*keep, udp(port, [second]))
        sock.send(b"?")
        assert sock.recv(100).split()[0] == second.task_id.encode()


def test_udp_client_that_was_early_is_served_once_the_port_is_published(lab: Lab) -> None:
    entry, port = lab.nodes[0], 5401
    # A silent host socket: the client's entry in the connection table stays untranslated.
    silent = entry.run(lambda: _bound_udp(port))
    with lab.client.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(5)
        sock.connect((entry.address, port))
        sock.send(b"early")
        assert silent.recv(100) == b"early"
        silent.close()
        assert entry.set_ports(udp(port, lab.tasks[:1])).errors == {}
        sock.send(b"?")
        assert sock.recv(100).split()[0] == b"task0"


@pytest.mark.parametrize("filters", [True, False])
def test_tracked_connections_are_forgotten_with_and_without_kernel_filters(
    lab: Lab, filters: bool
) -> None:
    entry, first, second = lab.nodes[0], lab.tasks[2], lab.tasks[4]
    entry.set_ports(udp(5402, [first]), udp(5403, [first]))
    sockets = [lab.client.run(lambda p=p: _connected_udp(entry.address, p)) for p in (5402, 5403)]
    for sock in sockets:
        sock.send(b"?")
        assert sock.recv(100).split()[0] == first.task_id.encode()
    before = _entries(entry, "dport=5402 ", "dport=5403 ")

    def forget(match: Match) -> None:
        table = ConntrackSocket(filters=filters)
        table.forget([match])
        table.close()

    entry.run(lambda: forget(Match(address=first.address, protocol=6)))
    entry.run(lambda: forget(Match(address=second.address, protocol=17)))
    entry.run(lambda: forget(Match(address=first.address, protocol=17, port=54)))
    entry.run(lambda: forget(Match(protocol=17, port=5402)))
    assert _entries(entry, "dport=5402 ", "dport=5403 ") == before == 2
    entry.run(lambda: forget(Match(address=first.address, protocol=17, port=UDP_PORT)))
    assert _entries(entry, "dport=5402 ", "dport=5403 ") == 0
    for sock in sockets:
        sock.close()


def test_established_tcp_to_a_lost_node_is_reset_instead_of_hanging(lab: Lab) -> None:
    entry, lost, alive = lab.nodes[0], lab.tasks[4], lab.tasks[0]
    entry.set_ports(tcp(8085, [lost]))
    connection = lab.client.run(lambda: connect(entry.address, 8085))
    try:
        assert connection.ask()[0] == lost.task_id
        entry.set_ports(tcp(8085, [alive]))
        assert connection.ask()[0] == lost.task_id  # existing connections stay
        entry.wait(entry.network.forget_endpoints([lost.address]))
        with pytest.raises(ConnectionResetError):
            connection.ask()
    finally:
        connection.close()


def test_a_lost_peer_keeps_its_routes_and_loses_its_connections_once(lab: Lab) -> None:
    entry, lost = lab.nodes[0], lab.nodes[2]
    with_lost = [structs.replace(peer, lost=peer == lost.peer) for peer in lab.peers]
    entry.set_ports(tcp(8087, [lab.tasks[4]]))
    connections = [lab.client.run(lambda: connect(entry.address, 8087)) for _ in range(2)]
    try:
        assert connections[0].ask()[0] == "task4"
        entry.wait(entry.network.set_peers(with_lost))
        assert connections[0].ask()[0] == "task4", "its tasks are still balanced to"
        entry.set_ports(tcp(8087, [lab.tasks[0]]))
        with pytest.raises(ConnectionResetError):
            connections[0].ask()
        # Who balances to it again, as another manager may say, is not cut off a second time.
        entry.set_ports(tcp(8087, [lab.tasks[4]]))
        again = lab.client.run(lambda: connect(entry.address, 8087))
        connections.append(again)
        assert again.ask()[0] == "task4"
        entry.wait(entry.network.set_peers(with_lost))
        entry.set_ports(tcp(8087, [lab.tasks[0]]))
        assert again.ask()[0] == "task4"
    finally:
        for connection in connections:
            connection.close()
        entry.wait(entry.network.set_peers(lab.peers))


def test_removing_a_peer_takes_its_entries_and_connections_away(lab: Lab) -> None:
    entry, lost = lab.nodes[0], lab.nodes[2]
    entry.set_ports(tcp(8086, [lab.tasks[4]]))
    connection = lab.client.run(lambda: connect(entry.address, 8086))
    try:
        assert connection.ask()[0] == "task4"
        entry.set_ports(tcp(8086, [lab.tasks[0]]))
        entry.wait(entry.network.set_peers([p for p in lab.peers if p != lost.peer]))
        with pytest.raises(ConnectionResetError):
            connection.ask()
        state = entry.shell(
            "ip rule",
            "ip route show table all",
            "ip neigh show dev vxi",
            "bridge fdb show dev vxi",
            "nft list table inet shoal",
        )
        assert lost.address not in state
        assert "10.240.12" not in state
    finally:
        connection.close()
        entry.wait(entry.network.set_peers(lab.peers))
    entry.set_ports(tcp(8086, [lab.tasks[4]]))
    assert lab.client.run(lambda: ask_tcp(entry.address, 8086))[0] == "task4"


def test_tampered_state_is_repaired(lab: Lab) -> None:
    node = lab.nodes[0]
    node.shell(
        "nft flush map inet shoal slots", "ip neigh flush dev vxi nud permanent",
        "ip rule del pref 100 fwmark 0x00200000/0xfff00000",
    )  # fmt: skip
    node.wait(node.network.set_peers(lab.peers))
    assert node.set_ports(tcp(8080, lab.tasks[1:])).errors == {}
    seen = {lab.client.run(lambda: ask_tcp(node.address, 8080))[0] for _ in range(80)}
    assert seen == {task.task_id for task in lab.tasks[1:]}


def test_more_than_64_endpoints_use_the_wide_map_and_back(lab: Lab) -> None:
    node = lab.nodes[0]
    many = tcp(8087, lab.tasks)
    wide = tcp(8087, lab.tasks)
    fillers = tuple(f"10.240.7.{n}" for n in range(100))
    wide = type(wide)(
        protocol="tcp", published_port=8087, target_port=80, endpoints=(*wide.endpoints, *fillers)
    )
    assert node.set_ports(wide).errors == {}
    assert "8087" in node.shell("nft list map inet shoal slots_wide")
    assert "8087" not in node.shell("nft list map inet shoal slots")
    assert node.set_ports(many).errors == {}
    assert "8087" not in node.shell("nft list map inet shoal slots_wide")
    assert lab.client.run(lambda: ask_tcp(node.address, 8087))[1] == CLIENT


def test_changes_under_load_lose_no_request(lab: Lab) -> None:
    """Scale out, in and replace while a client connects through all nodes: none fails."""
    stop, answers = threading.Event(), []
    lab.publish(tcp(8088, lab.tasks))

    def load() -> None:
        while not stop.is_set():
            answers.extend([ask_tcp(node.address, 8088) for node in lab.nodes])

    with ThreadPoolExecutor(1) as threads:
        client = threads.submit(lambda: lab.client.run(load))
        try:
            for step in range(60):
                first, count = step % 5, 1 + step % 2
                lab.publish(tcp(8088, lab.tasks[first : first + count]))
                # Two rounds: the second one started after the change.
                enough = len(answers) + 2 * len(lab.nodes)
                eventually(lambda n=enough: len(answers) >= n or client.done(), "requests go on")
        finally:
            stop.set()
        client.result()
    assert {seen for _task, seen in answers} == {CLIENT}
    assert {task for task, _seen in answers} == {task.task_id for task in lab.tasks}


def _connected_udp(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((address, port))
    return sock


def _entries(machine: Machine, *words: str) -> int:
    table = machine.run(lambda: Path("/proc/thread-self/net/nf_conntrack").read_text())
    return sum(any(word in line for word in words) for line in table.splitlines())


def _bound_udp(port: int, address: str = "0.0.0.0") -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind((address, port))
    return sock


def _vxlan_frame(from_subnet: str, to_subnet: str, target) -> bytes:
    """A VXLAN packet with a UDP datagram of 8 bytes (to be appended) for the task's port 6000."""
    ethernet = vtep_mac(to_subnet) + vtep_mac(from_subnet) + b"\x08\x00"
    packet = _udp_packet(CLIENT, target.address, 6000)
    return struct.pack("!II", 0x08000000, VNI << 8) + ethernet + packet


def _udp_packet(source: str, destination: str, port: int) -> bytes:
    """IPv4 and UDP headers for 8 bytes to be appended; no UDP checksum."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 36, 1, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    head = head[:10] + struct.pack("!H", checksum) + head[12:]
    return head + struct.pack("!HHHH", 1234, port, 16, 0)
