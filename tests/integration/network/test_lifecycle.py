"""Start, restart, upgrade, tasks coming and going, and leaving without a trace."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest

from shoal.errors import AlreadyExists, Internal, InvalidArgument, NotFound, Unimplemented
from tests.integration.network.lab import (
    CLIENT,
    Lab,
    ask_tcp,
    connect,
    eventually,
    reopen,
    running_lab,
    tcp,
)
from worker.network import skeleton
from worker.network.node import NodeNetwork

pytestmark = pytest.mark.root


def _reopen(lab: Lab, node, **changes) -> None:
    node.close()
    reopen(lab, node, **changes)


def test_a_restart_keeps_established_connections_and_changes_nothing(lab: Lab) -> None:
    ports = [tcp(8080, lab.tasks), tcp(8081, lab.tasks[4:])]
    lab.publish(*ports)
    entry = lab.nodes[0]
    remote = lab.client.run(lambda: connect(entry.address, 8081))
    local = lab.client.run(lambda: connect(entry.address, 8080))
    try:
        before = remote.ask(), local.ask()
        rules = entry.shell("nft -a list table inet shoal")
        entry.close()
        # The kernel goes on balancing while nobody is there.
        assert lab.client.run(lambda: ask_tcp(entry.address, 8081)) == ("task4", CLIENT)
        _reopen(lab, entry)
        report = entry.set_ports(*ports)
        assert report.elements_changed == 0
        assert report.errors == {}
        assert (remote.ask(), local.ask()) == before
        assert entry.shell("nft -a list table inet shoal") == rules
    finally:
        remote.close()
        local.close()


def test_a_new_version_of_the_rules_keeps_elements_and_connections(lab: Lab) -> None:
    lab.publish(tcp(8080, lab.tasks))
    entry = lab.nodes[1]
    connection = lab.client.run(lambda: connect(entry.address, 8080))
    try:
        before = connection.ask()
        _reopen(lab, entry, mark_shift=16)
        assert connection.ask() == before
        assert entry.set_ports(tcp(8080, lab.tasks)).elements_changed == 0
        assert "0x0fff0000" in entry.shell("nft list chain inet shoal clear")
        assert lab.client.run(lambda: ask_tcp(entry.address, 8080))[1] == CLIENT
    finally:
        connection.close()
        _reopen(lab, entry)
        entry.set_ports(tcp(8080, lab.tasks))


def test_a_port_another_process_listens_on_is_left_to_it_and_reported(lab: Lab) -> None:
    node = lab.nodes[0]
    listener = node.run(lambda: socket.create_server(("127.0.0.1", 8090)))
    try:
        report = node.set_ports(tcp(8090, lab.tasks), tcp(8091, lab.tasks))
        assert report.errors == {
            ("tcp", 8090): "port 8090/tcp is in use by another process on this node"
        }
        node.run(lambda: connect("127.0.0.1", 8090)).close()
        assert lab.client.run(lambda: ask_tcp(node.address, 8091))[1] == CLIENT
    finally:
        listener.close()
    assert node.set_ports(tcp(8090, lab.tasks)).errors == {}
    assert lab.client.run(lambda: ask_tcp(node.address, 8090))[1] == CLIENT


def test_a_published_port_cannot_be_taken_nor_used_for_outgoing_connections(lab: Lab) -> None:
    node = lab.nodes[0]
    node.shell("sysctl -qw net.ipv4.ip_local_reserved_ports=40000-40001")
    node.set_ports(tcp(8092, lab.tasks), tcp(40001, lab.tasks))
    assert node.shell("sysctl -n net.ipv4.ip_local_reserved_ports").strip() == "8092,40000-40001"
    with pytest.raises(OSError, match="in use"):
        node.run(lambda: socket.create_server(("0.0.0.0", 8092)))
    node.set_ports()
    assert node.shell("sysctl -n net.ipv4.ip_local_reserved_ports").strip() == "40000-40001"
    node.run(lambda: socket.create_server(("0.0.0.0", 8092))).close()


def test_an_outgoing_connection_from_the_port_is_no_reason_to_refuse_it(lab: Lab) -> None:
    node = lab.nodes[0]
    listener = lab.client.run(lambda: socket.create_server((CLIENT, 7001)))

    def outgoing() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.bind(("0.0.0.0", 8093))
        sock.connect((CLIENT, 7001))
        return sock

    sock = node.run(outgoing)
    accepted, _ = listener.accept()
    try:
        assert node.set_ports(tcp(8093, lab.tasks)).errors == {}
        assert lab.client.run(lambda: ask_tcp(node.address, 8093))[1] == CLIENT
        sock.sendall(b"still here")
        assert accepted.recv(100) == b"still here"
    finally:
        sock.close()
        accepted.close()
        listener.close()


def test_ports_the_mesh_cannot_carry_are_reported_and_the_rest_is_served(lab: Lab) -> None:
    node = lab.nodes[0]
    dccp = msgspec.structs.replace(tcp(8094, lab.tasks), protocol="dccp")
    report = node.set_ports(dccp, tcp(8095, lab.tasks), tcp(8095, []))
    assert report.errors == {
        ("dccp", 8094): "published port 8094/dccp: the mesh carries tcp, udp and sctp, not dccp",
        ("tcp", 8095): "port 8095/tcp is published twice",
    }
    assert lab.client.run(lambda: ask_tcp(node.address, 8095))[1] == CLIENT


def test_a_detached_task_frees_its_address_later_and_its_link_at_once(lab: Lab) -> None:
    node = lab.nodes[2]
    first = node.wait(node.network.attach("ephemeral1"))
    assert node.wait(node.network.attach("ephemeral1")) == first
    assert "gtephemeral" in node.shell("ip -br link")
    node.wait(node.network.detach("ephemeral1"))
    node.wait(node.network.detach("ephemeral1"))
    assert not Path(first.netns_path).exists()
    eventually(lambda: "gtephemeral" not in node.shell("ip -br link"), "the link is gone")
    second = node.wait(node.network.attach("ephemeral2"))
    assert second.address != first.address
    with pytest.raises(AlreadyExists, match="held by task ephemeral2"):
        node.wait(node.network.attach("ephemeral3", address=second.address))
    # Quarantine outlives a restart, and a new version of the rules.
    for name, changes in (("ephemeral2", {}), ("ephemeral4", {"mark_shift": 18})):
        _reopen_bare(lab, node, stray=name, **changes)
        later = node.wait(node.network.attach("ephemeral4"))
        assert later.address != first.address
    node.wait(node.network.detach("ephemeral4"))
    _reopen(lab, node)


def _reopen_bare(lab: Lab, node, *, stray: str, **changes) -> None:
    node.close()
    node.open(msgspec.structs.replace(node.settings, **changes))
    node.wait(node.network.set_peers(lab.peers))
    for task in lab.tasks:
        if task.node is node:
            node.wait(node.network.adopt(task.task_id, task.address))
    assert node.wait(node.network.sweep()) == [stray]


def test_the_same_task_may_come_back_at_once(lab: Lab) -> None:
    node = lab.nodes[2]
    for _ in range(3):
        node.wait(node.network.attach("comeback"))
        node.wait(node.network.detach("comeback"))


def test_adopting_a_task_that_is_gone_says_so(lab: Lab) -> None:
    node = lab.nodes[2]
    with pytest.raises(NotFound, match="must be replaced"):
        node.wait(node.network.adopt("neverwas", "10.240.12.200"))
    with pytest.raises(InvalidArgument, match="not a task address"):
        node.wait(node.network.adopt("neverwas", "10.240.4.9"))
    with pytest.raises(NotFound):
        node.wait(node.network.stats("neverwas"))
    with pytest.raises(InvalidArgument, match="task id"):
        node.wait(node.network.attach("../evil"))


def test_removal_leaves_nothing(tmp_path: Path) -> None:
    with running_lab(tmp_path) as lab:
        node = lab.nodes[0]
        before = _traces(lab.nodes[0])
        node.close(remove=True)
        clean = _traces(node)
        assert clean != before
        node.open()
        node.wait(node.network.set_peers(lab.peers))
        task = lab.start("lastone", node)
        node.set_ports(tcp(8080, [task]))
        task.stop()
        node.close(remove=True)
        eventually(lambda: _traces(node) == clean, "nothing left")
        assert "shoal" not in node.shell("nft list ruleset")
        assert not (Path(node.settings.run_dir) / "netns").exists()
        assert str(tmp_path / "n1") not in Path("/proc/self/mountinfo").read_text()


def _traces(node) -> str:
    return node.shell(
        "ip -o link",
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
        "nft list tables",
        "sysctl net.ipv4.ip_local_reserved_ports",
    )


def test_a_machine_without_nft_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_lab(tmp_path) as lab:
        node = lab.nodes[0]
        node.close(remove=True)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(Unimplemented, match="install the package nftables"):
            node.wait(NodeNetwork.open(node.settings))
        monkeypatch.undo()


def test_a_text_nft_refuses_is_not_blamed_on_the_kernel(lab: Lab) -> None:
    """Every probe passes on this kernel, so a refusal must be our own fault."""
    with pytest.raises(Internal, match="nft refused"):
        lab.client.run(lambda: skeleton.load("table inet shoal { nonsense }"))


def test_settings_are_checked_before_anything_is_made(lab: Lab) -> None:
    for changes, words in (
        ({"index": 4096}, "index 4096"),
        ({"subnet": "10.240.4.1/22"}, "host bits"),
        ({"subnet": "10.240.4.0/30"}, "smaller"),
        ({"mark_shift": 21}, "mark_shift"),
        ({"underlay_interface": "nosuch0"}, "nosuch0"),
    ):
        settings = msgspec.structs.replace(lab.nodes[0].settings, **changes)
        with pytest.raises(InvalidArgument, match=words):
            lab.client.wait(NodeNetwork.open(settings))
