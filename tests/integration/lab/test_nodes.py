"""Nodes on a real kernel: their own network, their processes told apart, every trouble and cure."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from swarmctl.lab import cgroups, kernel, labs, nodes, record
from swarmctl.lab.plan import (
    bridge_name,
    lab_cgroup,
    netns_name,
    node_cgroup,
    nodes_of_netns,
    switch_name,
)
from tests.integration.lab.conftest import eventually

pytestmark = pytest.mark.root

PORT = 8099
# A daemon with a child and a helper, and a listener to see whether the node can be reached.
NODE = """
echo "started as $$"
sleep 1000 &
setsid "$0/keeper" &
exec busybox nc -ll -p 8099 -e /bin/echo hello
"""


@pytest.fixture
def keeper(tmp_path):
    path = tmp_path / "keeper"
    path.write_text("#!/bin/sh\nsleep 1000 & wait\n")
    path.chmod(0o755)
    return tmp_path


@pytest.fixture
def command(keeper):
    return lambda lab, node: ["/bin/sh", "-c", NODE, str(keeper)]


@pytest.fixture
def plan(root, lab_name, command):
    with record.lock(lab_name):
        made = labs.reserve(root, lab_name, managers=1, workers=1).plan
        labs.raise_nodes(made, command)
    for node in made.nodes:
        eventually(lambda node=node: len(nodes.family(made, node).everyone) == 4)
    return made


def reached(address: str) -> bool:
    try:
        with socket.create_connection((address, PORT), timeout=0.5) as connection:
            return connection.recv(100).strip() == b"hello"
    except OSError:
        return False


def reached_from(plan, node, address: str) -> bool:
    words = [*kernel.enter(nodes.paths_of(plan, node)), "busybox", "nc", "-w", "1", address]
    done = subprocess.run([*words, str(PORT)], capture_output=True, check=False, timeout=20)
    return done.stdout.strip() == b"hello"


def programs(found) -> list[str]:
    return sorted(Path(process.argv[0]).name for process in found)


def test_every_node_is_reached_by_the_host_and_by_the_others(plan):
    m1, w1 = plan.nodes
    eventually(lambda: reached(m1.address) and reached(w1.address))
    assert reached_from(plan, m1, w1.address)
    assert reached_from(plan, w1, m1.address)


def test_a_node_sees_its_own_devices_and_all_control_groups(plan):
    words = kernel.enter(nodes.paths_of(plan, plan.node("w1")))
    devices = kernel.run([*words, "ls", "/sys/class/net"]).split()
    assert sorted(devices) == ["eth0", "lo"]
    before = set(os.listdir("/sys/fs/cgroup"))
    groups = set(kernel.run([*words, "ls", "/sys/fs/cgroup"]).split())
    after = set(os.listdir("/sys/fs/cgroup"))  # other tests may have made or removed some
    assert before & after <= groups <= before | after
    assert kernel.run([*words, "cat", "/proc/self/mountinfo"]).count("/.sysfs") == 0


def test_processes_are_told_apart_by_group_and_program(plan):
    w1 = plan.node("w1")
    container = subprocess.Popen(["sleep", "1000"])
    try:
        join_container_group(plan, w1, container.pid)
        family = nodes.family(plan, w1)
    finally:
        container.kill()
        container.wait()

    assert programs(family.daemons) == ["busybox", "sleep"]
    assert programs(family.helpers) == ["sh", "sleep"]
    assert [p.pid for p in family.containers] == [container.pid]
    assert nodes.daemon(plan, w1) in family.daemons


def join_container_group(plan, node, pid: int) -> None:
    hierarchy = next(h for h in cgroups.hierarchies() if h.version == 2 or "pids" in h.controllers)
    group = Path(f"{hierarchy.mountpoint}{node_cgroup(plan.name, node.name)}/c1")
    group.mkdir()
    (group / "cgroup.procs").write_text(str(pid))


def test_kill_ends_the_daemons_only_and_start_finds_the_same_namespaces(plan, command):
    w1 = plan.node("w1")
    before = nodes.family(plan, w1)
    inode = kernel.namespace_inode(nodes.paths_of(plan, w1).mount_pin)

    assert nodes.kill(plan, w1) == 2
    assert nodes.status(plan, w1) == "killed"
    after = nodes.family(plan, w1)
    assert after.daemons == ()
    assert [p.pid for p in after.helpers] == [p.pid for p in before.helpers]

    nodes.prepare(plan, w1)
    nodes.launch(plan, w1, command(plan, w1))
    assert nodes.status(plan, w1) == "running"
    assert kernel.namespace_inode(nodes.paths_of(plan, w1).mount_pin) == inode
    eventually(lambda: reached(w1.address))
    with pytest.raises(FailedPrecondition, match="running already"):
        nodes.launch(plan, w1, command(plan, w1))


def test_a_kill_gives_nobody_the_time_to_take_its_leave(root, lab_name):
    # The child would write a farewell as soon as its parent is gone.
    child = """
import ctypes, pathlib, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path(sys.argv[1], "farewell").touch())
pathlib.Path(sys.argv[1], "ready").touch()
while True:
    signal.pause()
"""
    plan = labs.reserve(root, lab_name, managers=1, workers=0).plan
    m1 = plan.node("m1")
    run = Path(nodes.paths_of(plan, m1).run)
    parent = f"{sys.executable} -c '{child.replace(chr(39), chr(34))}' {run} & wait"
    labs.raise_nodes(plan, lambda lab, node: ["/bin/sh", "-c", parent])
    eventually((run / "ready").exists)

    assert nodes.kill(plan, m1) == 2
    assert not (run / "farewell").exists()


def test_kill_with_helpers_leaves_containers(plan):
    w1 = plan.node("w1")
    container = subprocess.Popen(["sleep", "1000"])
    try:
        join_container_group(plan, w1, container.pid)
        assert nodes.kill(plan, w1, helpers=True) == 4
        assert [p.pid for p in nodes.family(plan, w1).everyone] == [container.pid]
        nodes.kill(plan, w1, hard=True)
        assert container.wait(timeout=20) == -9
    finally:
        container.kill()
        container.wait()


def test_a_hard_kill_is_a_power_cut(plan, command):
    w1 = plan.node("w1")
    paths = nodes.paths_of(plan, w1)
    Path(paths.state, "kept").write_text("on disk")
    Path(paths.run, "lost").write_text("on a tmpfs")
    kernel.run([*kernel.enter(paths), "mount", "-t", "tmpfs", "none", paths.state])

    assert nodes.kill(plan, w1, hard=True) == 4
    assert nodes.family(plan, w1).everyone == ()
    assert netns_name(plan.name, "w1") not in kernel.netns_names()
    assert not cgroups.exists(node_cgroup(plan.name, "w1"))
    assert Path(paths.state, "kept").read_text() == "on disk"
    assert not Path(paths.run, "lost").exists()
    assert nodes.status(plan, w1) == "killed"
    with pytest.raises(FailedPrecondition, match="switched off"):
        nodes.partition(plan, w1)
    nodes.heal(plan, w1)  # all nodes are healed at once: one that is off is no error

    nodes.prepare(plan, w1)
    nodes.launch(plan, w1, command(plan, w1))
    eventually(lambda: reached(w1.address))
    assert kernel.run([*kernel.enter(paths), "cat", f"{paths.state}/kept"]) == "on disk"


def test_a_paused_node_is_frozen_until_it_is_resumed(plan):
    w1 = plan.node("w1")
    nodes.pause(plan, w1)
    assert nodes.status(plan, w1) == "paused"
    assert {p.state for p in nodes.family(plan, w1).daemons} == {"T"}
    assert "T" not in {p.state for p in nodes.family(plan, w1).helpers}
    assert nodes.status(plan, plan.node("m1")) == "running"

    nodes.resume(plan, w1)
    eventually(lambda: nodes.status(plan, w1) == "running")
    nodes.kill(plan, w1)
    with pytest.raises(FailedPrecondition, match="w1 is killed"):
        nodes.pause(plan, w1)


def test_a_partitioned_node_is_cut_off_from_all_until_it_is_healed(plan):
    m1, w1 = plan.nodes
    eventually(lambda: reached(w1.address))
    nodes.partition(plan, w1)
    nodes.partition(plan, w1)
    assert nodes.status(plan, w1) == "partitioned"
    assert not reached(w1.address)
    assert not reached_from(plan, w1, m1.address)
    assert reached_from(plan, w1, "127.0.0.1")
    assert reached(m1.address)

    nodes.heal(plan, w1)
    nodes.heal(plan, w1)
    assert nodes.status(plan, w1) == "running"
    assert reached(w1.address)


def test_a_node_whose_daemon_ended_by_itself_is_down(plan):
    m1 = plan.node("m1")
    running = nodes.daemon(plan, m1)
    os.kill(running.pid, 9)
    eventually(lambda: nodes.daemon(plan, m1) is None)
    assert nodes.status(plan, m1) == "down"
    assert f"started as {running.pid}" in nodes.log_tail(nodes.paths_of(plan, m1))


def test_labs_side_by_side_get_their_own_subnets(plan, root):
    other = f"{plan.name}b"
    try:
        with record.lock(other):
            second = labs.reserve(root, other, managers=1, workers=0).plan
            labs.raise_nodes(second, lambda lab, node: ["sleep", "1000"])
        assert second.subnet != plan.subnet
        with pytest.raises(InvalidArgument, match=plan.subnet.replace(".", r"\.")):
            labs.reserve(root, f"{plan.name}c", managers=1, workers=0, subnet=plan.subnet)
        assert [row.status for row in labs.rows(second)] == ["running"]
    finally:
        labs.take_down(root, other)
    assert [row.status for row in labs.rows(plan)] == ["running", "running"]
    with pytest.raises(AlreadyExists, match="lab down"):
        labs.reserve(root, plan.name, managers=1, workers=0)


def left_of(root: str, name: str) -> list[str]:
    found = [f"netns of {node}" for node in nodes_of_netns(name, kernel.netns_names())]
    found += ["interface"] if kernel.link_exists(bridge_name(name)) else []
    found += ["switch"] if switch_name(name) in kernel.netns_names() else []
    found += ["cgroup"] if cgroups.exists(lab_cgroup(name)) else []
    found += kernel.mounts_below(f"{root}/{name}")
    found += [f"{root}/{name}"] if os.path.exists(f"{root}/{name}") else []
    return found


def test_down_leaves_nothing_and_may_be_repeated(plan, root):
    pids = [p.pid for node in plan.nodes for p in nodes.family(plan, node).everyone]
    nodes.pause(plan, plan.node("w1"))
    assert len(left_of(root, plan.name)) >= 5

    assert labs.take_down(root, plan.name)
    assert left_of(root, plan.name) == []
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}/ns") and alive(pid)] == []
    assert not labs.take_down(root, plan.name)


def alive(pid: int) -> bool:
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_down_works_without_the_records(plan, root):
    os.unlink(record.lab_file(plan.directory))
    for node in plan.nodes:
        os.unlink(nodes.paths_of(plan, node).record)

    assert labs.take_down(root, plan.name)
    assert left_of(root, plan.name) == []


def test_down_works_when_the_lab_was_only_half_made(root, lab_name):
    plan = labs.reserve(root, lab_name, managers=1, workers=1).plan
    kernel.make_pin_directory(f"{plan.directory}/ns")
    nodes.prepare(plan, plan.node("m1"))
    cgroups.create(node_cgroup(lab_name, "w1"))

    assert labs.take_down(root, lab_name)
    assert left_of(root, lab_name) == []
