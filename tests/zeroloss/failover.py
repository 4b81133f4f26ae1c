"""The leading manager dies while tasks are held back until every node balances without them.

A node's worker process is frozen and cannot acknowledge; what is to stop waits for it. Then the
leader is killed. The new one has no acknowledgement of anybody and must hold those tasks until each
node has given it one: it still does after it was elected, and they are replaced once the node goes
on. A task that was told to stop for its drain timeout instead would be in a manager's log.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tests.integration.cluster.lab import Lab, eventually

DRAIN_TIMEOUT = "30s"
"""More than the cluster is without a leader, on whatever machine."""
OVERDUE = "task.drain_overdue"
PATIENT, AS_EVER = "5s", "250ms"
"""Time between heartbeats: a frozen node must not be taken for a dead one meanwhile."""


def fail_over(lab: Lab, service: str, *, frozen: str, heartbeat: str = "") -> int:
    """One update with the leader's death in it. Result: tasks that were held back just before.

    frozen: node whose worker process cannot answer meanwhile. heartbeat: how often nodes beat
    afterwards; "": as they do by themselves. Raises: AssertionError also when a task was told to
    stop before all nodes had acknowledged.
    """
    before = {task["ID"] for task in lab.running(service)}
    overdue = _overdue(lab)
    with _patience(lab, heartbeat), _frozen(lab, frozen):
        lab.swarmctl(
            "service", "update", "--detach", "--force", "--update-order", "stop-first",
            "--update-parallelism", "2", "--drain-timeout", DRAIN_TIMEOUT, service,
        )  # fmt: skip
        held = eventually(f"tasks wait for {frozen}", partial(_held_back, lab, service, frozen))
        os.kill(_process(lab, _leader(lab), "-m manager"), signal.SIGKILL)
        still = eventually("a new leader shows them", partial(_held_back, lab, service, frozen))
        states = {task["Status"]["State"] for task in _tasks(lab, held)}
        assert (still, states) == (held, {"running"}), "the new leader has let them go"
    eventually("all are replaced", partial(_replaced, lab, service, before))
    assert _overdue(lab) == overdue, "a task was told to stop before all nodes had acknowledged"
    return len(held)


def _held_back(lab: Lab, service: str, node: str) -> set[str]:
    form = ("--format", "{{.Task}} {{.State}} {{.WaitsFor}}")
    shown = lab.run("service", "endpoints", *form, service, check=False)  # nobody may lead
    rows = (line.split(maxsplit=2) for line in shown.stdout.splitlines())
    return {row[0] for row in rows if row[1] == "draining" and node in row[2:]}


def _replaced(lab: Lab, service: str, before: set[str]) -> bool:
    if lab.run("node", "ls", check=False).returncode:
        return False  # nobody leads yet
    now = {task["ID"] for task in lab.running(service)}
    ended = all(task["Status"]["State"] != "running" for task in _tasks(lab, before))
    return len(now) == len(before) and not now & before and ended


def _tasks(lab: Lab, ids: set[str]) -> list[dict[str, Any]]:
    # A task may be gone by now: the others are printed all the same.
    shown = lab.swarmctl("task", "inspect", *sorted(ids), check=False)
    return list(json.loads(shown or "[]"))


def _leader(lab: Lab) -> str:
    lines = lab.swarmctl("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}").splitlines()
    (found,) = (line.split()[0] for line in lines if line.endswith("Leader"))
    return found


def _process(lab: Lab, node: str, module: str) -> int:
    form = ("--format", "{{.Pid}} {{.Command}}")
    shown = lab.swarmctl("lab", "top", "--name", lab.name, node, *form).splitlines()
    (pid,) = (int(line.split()[0]) for line in shown if module in line)
    return pid


@contextmanager
def _patience(lab: Lab, heartbeat: str) -> Iterator[None]:
    """Nodes beat rarely, and are waited for long, while the body runs."""
    lab.swarmctl("cluster", "update", "--dispatcher-heartbeat", PATIENT)
    yield
    afterwards = heartbeat or AS_EVER

    def changed() -> bool:  # nobody may lead
        words = ("cluster", "update", "--dispatcher-heartbeat", afterwards)
        return lab.run(*words, check=False).returncode == 0

    eventually("nodes beat as before", changed)


@contextmanager
def _frozen(lab: Lab, node: str) -> Iterator[None]:
    pid = _process(lab, node, "-m engine")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _overdue(lab: Lab) -> int:
    """How often a manager's log says so."""
    logs = (lab.base / "lab" / lab.name).glob("*/swarmd.log")
    return sum(path.read_text(errors="replace").count(OVERDUE) for path in logs)
