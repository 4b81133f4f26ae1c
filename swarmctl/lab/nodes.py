"""One node of a lab: made, started, killed, frozen, cut off, healed and removed.

A node is its namespaces, its control group and the processes in them; the command that runs in it
is given by the caller. Invariants: a start makes only what is missing, so containers that outlived
their daemons keep their namespaces; a hard kill leaves nothing that a power cut would not leave.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from shoal.errors import DeadlineExceeded, FailedPrecondition, Internal
from swarmctl.lab import cgroups, kernel, processes, record
from swarmctl.lab.plan import LabPlan, NodePaths, NodePlan, netns_name, node_cgroup, node_paths
from swarmctl.lab.processes import Family, Process

Status = Literal["running", "paused", "killed", "partitioned", "down"]

LOG_LINE_MAX = 400
_POLL_S = 0.01
# Joins the groups named before `--`, then becomes the daemon: its children are born in them.
_JOIN_SCRIPT = 'while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@"'


def paths_of(lab: LabPlan, node: NodePlan) -> NodePaths:
    """Every path of the node."""
    return node_paths(lab.directory, lab.name, node.name)


def prepare(lab: LabPlan, node: NodePlan) -> None:
    """Make what the node needs before its daemon can start; keeps what is there."""
    paths = paths_of(lab, node)
    for directory in (paths.state, paths.run):
        os.makedirs(directory, mode=0o700, exist_ok=True)
    cgroups.create(node_cgroup(lab.name, node.name))
    kernel.make_uplink(lab, node)
    kernel.make_mount_namespace(paths)


def launch(lab: LabPlan, node: NodePlan, command: Sequence[str]) -> Process:
    """Start `command` as the node's daemon, in its namespaces and group, in its own session.

    Output is appended to the node's log. Returns once the process exists, not once it serves.
    Raises: FailedPrecondition when one is running.
    """
    paths = paths_of(lab, node)
    if running := daemon(lab, node):
        raise FailedPrecondition(f"node {node.name} is running already (pid {running.pid})")
    groups = cgroups.entry_files(node_cgroup(lab.name, node.name))
    arguments = [
        *kernel.enter(paths), "/bin/sh", "-c", _JOIN_SCRIPT, "join", *groups, "--", *command,
    ]  # fmt: skip
    with open(paths.log, "ab") as log:
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=daemon_environment(os.environ, lab),
            start_new_session=True,
        )
    started = processes.read(child.pid)
    # It is init's to wait for once we are gone; Popen must not complain that it still runs.
    child.returncode = 0
    if started is None:
        raise Internal(f"node {node.name} ended at once; see {paths.log}")
    record.write(paths.record, record.NodeRecord(started.pid, started.start_ticks))
    return started


def daemon_environment(environment: Mapping[str, str], lab: LabPlan) -> dict[str, str]:
    """Our own environment, with the lab's addresses kept away from any proxy it names."""
    own = ["localhost", "127.0.0.1", "::1", lab.gateway, *(node.address for node in lab.everyone)]
    given = [part for part in environment.get("no_proxy", "").split(",") if part]
    joined = ",".join(dict.fromkeys([*given, *own]))
    return {**environment, "no_proxy": joined, "NO_PROXY": joined}


def daemon(lab: LabPlan, node: NodePlan) -> Process | None:
    """The node's swarmd, None when it does not run."""
    known = record.read_node(paths_of(lab, node).record)
    if known is None:
        return None
    found = processes.read(known.pid)
    alive = found and found.alive and found.start_ticks == known.start_ticks
    return found if alive else None


def has_socket(lab: LabPlan, node: NodePlan) -> bool:
    """Whether the node's daemon has made its socket; one of an earlier run may be left over."""
    return os.path.exists(paths_of(lab, node).socket)


def family(lab: LabPlan, node: NodePlan) -> Family:
    """Every process of the node, by what it is for."""
    in_daemons, in_containers = cgroups.members(node_cgroup(lab.name, node.name))
    return processes.classify(processes.read_all(in_daemons), processes.read_all(in_containers))


def status(lab: LabPlan, node: NodePlan) -> Status:
    """What the node is up to, as the kernel shows it."""
    paths = paths_of(lab, node)
    running = daemon(lab, node)
    if running is None:
        known = record.read_node(paths.record)
        return "killed" if known and known.killed else "down"
    if running.state in "Tt":
        return "paused"
    if kernel.is_partitioned(netns_name(lab.name, node.name)):
        return "partitioned"
    return "running"


def kill(lab: LabPlan, node: NodePlan, *, helpers: bool = False, hard: bool = False) -> int:
    """SIGKILL the node's daemons; with `helpers` also keeper, supervisor and logger.

    hard: containers too, and whatever a power cut takes: namespaces, control groups, sockets.
    Returns the number of processes killed.
    """
    paths = paths_of(lab, node)
    known = record.read_node(paths.record)
    if known:
        record.write(paths.record, record.NodeRecord(known.pid, known.start_ticks, killed=True))
    if hard:
        return switch_off(lab.name, node.name, veth=node.veth, paths=paths)

    def find() -> tuple[Process, ...]:
        found = family(lab, node)
        return found.daemons + (found.helpers if helpers else ())

    return processes.kill_all(find, what=f"node {node.name}")


def switch_off(lab: str, node: str, *, veth: str, paths: NodePaths) -> int:
    """End every process of a node and take its kernel objects away; its state stays on disk.

    The cable goes first, as with a power cut: the others hear no goodbye, and the cable's name is
    free at once, where its namespace ends in the background.
    """
    group = node_cgroup(lab, node)
    spaces = {
        "net": kernel.namespace_inode(paths.netns),
        "mnt": kernel.namespace_inode(paths.mount_pin),
    }
    spaces = {kind: inode for kind, inode in spaces.items() if inode}

    def find() -> Iterable[Process]:
        in_daemons, in_containers = cgroups.members(group)
        inside = processes.in_namespaces(spaces) if spaces else set()
        return processes.read_all(in_daemons | in_containers | inside).values()

    kernel.remove_cable(lab, veth)
    killed = processes.kill_all(find, what=f"node {node}")
    kernel.remove_mount_namespace(paths)
    kernel.remove_netns(netns_name(lab, node))
    cgroups.remove(group)
    # What is below the run directory would be on a tmpfs, gone with the power.
    kernel.unmount_below(paths.base)
    shutil.rmtree(paths.run, ignore_errors=True)
    return killed


def pause(lab: LabPlan, node: NodePlan, *, timeout_s: float = 10.0) -> None:
    """Freeze the node's daemons; helpers and containers run on. Returns once all stand still.

    Raises: FailedPrecondition when swarmd does not run; DeadlineExceeded.
    """
    require_running(lab, node)
    deadline_s = time.monotonic() + timeout_s
    while moving := [p for p in family(lab, node).daemons if p.state not in "Tt"]:
        for process in moving:
            processes.send(process, signal.SIGSTOP)
        if time.monotonic() > deadline_s:
            left = ", ".join(str(process.pid) for process in moving)
            raise DeadlineExceeded(f"node {node.name}: not stopped after {timeout_s:g} s: {left}")
        time.sleep(_POLL_S)


def resume(lab: LabPlan, node: NodePlan) -> None:
    """Let frozen daemons go on. Raises: FailedPrecondition when swarmd does not run."""
    require_running(lab, node)
    for process in family(lab, node).daemons:
        processes.send(process, signal.SIGCONT)


def require_running(lab: LabPlan, node: NodePlan) -> Process:
    """The node's swarmd. Raises: FailedPrecondition when it does not run."""
    running = daemon(lab, node)
    if running is None:
        raise FailedPrecondition(
            f"node {node.name} is {status(lab, node)}; `swarmctl lab start {node.name}` first"
        )
    return running


def partition(lab: LabPlan, node: NodePlan) -> None:
    """Cut the node's uplink. Raises: FailedPrecondition when it is switched off."""
    kernel.enter(paths_of(lab, node))
    kernel.partition(netns_name(lab.name, node.name))


def heal(lab: LabPlan, node: NodePlan) -> None:
    """Mend the node's uplink; no error when it was whole or the node is switched off."""
    if kernel.namespace_inode(paths_of(lab, node).netns):
        kernel.heal(netns_name(lab.name, node.name))


def log_tail(paths: NodePaths, *, lines: int = 20) -> str:
    """The last lines of the node's log; "" when it has none."""
    try:
        with open(paths.log, "rb") as log:
            log.seek(max(0, Path(paths.log).stat().st_size - 64 * 1024))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(line[:LOG_LINE_MAX] for line in text.splitlines()[-lines:])
