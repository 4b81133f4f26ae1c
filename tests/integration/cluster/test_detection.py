"""Workers that die, freeze, restart or are merely busy, and what becomes of their tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

BUSY_S = 10.0
SPINNING = 8


@pytest.fixture
def replicas(lab: Lab, service: str) -> list[dict]:
    """Three running tasks, one on each node."""
    eventually("all are ready", lambda: set(lab.node_states().values()) == {"Ready"})
    lab.swarmctl(
        "service", "create", "--detach", "--name", service, "--replicas", "3",
        "--replicas-max-per-node", "2", "--stop-grace-period", "0s", "web:1",
    )  # fmt: skip
    return eventually("3 tasks run", lambda: len(r := lab.running(service)) == 3 and r)


@pytest.mark.alone
def test_a_busy_machine_raises_no_alarm(lab: Lab, service: str, replicas: list[dict]) -> None:
    before = downs(lab)
    with spinning():
        # Not a wait for something: the time in which nothing may happen.
        subprocess.run(["sleep", str(BUSY_S)], check=True)
        assert set(lab.node_states().values()) == {"Ready"}
    assert downs(lab) == before
    assert ids(lab.running(service)) == ids(replicas)


def test_a_frozen_worker_is_replaced_and_comes_back(
    lab: Lab, service: str, replicas: list[dict]
) -> None:
    victim = node_ids(lab)["w2"]
    lab.lab("pause", "w2")
    try:

        def moved() -> bool:
            running = lab.running(service)
            return len(running) == 3 and all(task["NodeID"] != victim for task in running)

        eventually("its task runs elsewhere", moved)
        assert lab.node_states()["w2"] == "Down"
    finally:
        lab.lab("resume", "w2")
    eventually("w2 is ready again", lambda: lab.node_states()["w2"] == "Ready")

    def stopped() -> bool:
        old = [task for task in lab.tasks(service) if task["NodeID"] == victim]
        return all(task["Status"]["State"] != "running" for task in old)

    eventually("what it ran has stopped", stopped)
    assert len(lab.running(service)) == 3


def test_a_node_that_was_cut_off_sends_nobody_to_what_ended_meanwhile(
    lab: Lab, service: str, replicas: list[dict]
) -> None:
    lab.swarmctl("service", "update", "--detach", "--publish-add", "8096:80", service)
    eventually("it answers by w2", lambda: answered(lab, "w2") is not None)
    lab.lab("partition", "w2")
    try:
        eventually("w2 is down", lambda: lab.node_states()["w2"] == "Down")
        # What w2 still believes in ends, everywhere.
        lab.swarmctl("service", "update", "--force", "--detach", service)
        before = {task["ID"] for task in replicas}

        def renewed() -> bool:
            running = {task["ID"] for task in lab.running(service)}
            return len(running) == 3 and not running & before

        eventually("every task is another one", renewed)
    finally:
        lab.lab("heal", "w2")
    eventually("w2 is ready again", lambda: lab.node_states()["w2"] == "Ready")
    alive = {task["ID"][:12] for task in lab.running(service)}
    seen = [answered(lab, "w2") for _ in range(60)]
    assert set(seen) <= alive, "in force before it is called ready"


def answered(lab: Lab, node: str) -> str | None:
    """The task that answers by a node; None: nobody did."""
    try:
        return lab.ask(node, 8096)[0]
    except (OSError, ValueError):
        return None


def test_a_worker_process_that_is_killed_alone_costs_nothing(
    lab: Lab, service: str, replicas: list[dict]
) -> None:
    before, sessions = downs(lab), events(lab, "node.registered")
    pids = container_pids(replicas)
    killed = worker_pid(lab, "w1")
    os.kill(killed, signal.SIGKILL)
    eventually("it has a new session", lambda: events(lab, "node.registered") > sessions)
    assert worker_pid(lab, "w1") != killed
    after = eventually("all are seen to run", lambda: len(r := lab.running(service)) == 3 and r)
    assert container_pids(after) == pids
    assert downs(lab) == before


def test_a_task_may_wait_for_its_node(lab: Lab, service: str, replicas: list[dict]) -> None:
    lab.swarmctl(
        "service", "update", "--detach", "--disconnect-action", "wait", "--disconnect-wait", "1h",
        service,
    )  # fmt: skip
    assert ids(lab.running(service)) == ids(replicas), "a policy restarts nothing"
    lab.lab("partition", "w1")
    try:
        eventually("w1 is down", lambda: lab.node_states()["w1"] == "Down")
        assert len(lab.tasks(service)) == 3
    finally:
        lab.lab("heal", "w1")
    eventually("w1 is back", lambda: lab.node_states()["w1"] == "Ready")
    assert container_pids(lab.running(service)) == container_pids(replicas)


def test_the_original_may_stay_when_its_node_returns(
    lab: Lab, service: str, replicas: list[dict]
) -> None:
    victim = node_ids(lab)["w1"]
    lab.swarmctl("service", "update", "--detach", "--on-return", "keep-original", service)
    lab.lab("partition", "w1")
    try:

        def replaced() -> bool:
            elsewhere = [task for task in lab.running(service) if task["NodeID"] != victim]
            return len(elsewhere) == 3

        eventually("its task runs elsewhere", replaced)
    finally:
        lab.lab("heal", "w1")
    eventually("w1 is back", lambda: lab.node_states()["w1"] == "Ready")
    eventually("the replacement has gone", lambda: ids(lab.running(service)) == ids(replicas))
    assert container_pids(lab.running(service)) == container_pids(replicas)


@contextmanager
def spinning() -> Iterator[None]:
    """Every processor is busy, several times over."""
    started = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(SPINNING)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def events(lab: Lab, name: str) -> int:
    """How often the manager has logged an event."""
    log = lab.run("lab", "logs", "--name", lab.name, "--tail", "100000", "m1").stdout
    return log.count(f'"event": "{name}"')


def downs(lab: Lab) -> int:
    """How often a node was called down."""
    return events(lab, "node.down")


def ids(tasks: list[dict]) -> set[str]:
    return {task["ID"] for task in tasks}


def container_pids(tasks: list[dict]) -> dict[str, int]:
    return {task["ID"]: task["Status"]["ContainerStatus"]["PID"] for task in tasks}


def node_ids(lab: Lab) -> dict[str, str]:
    lines = lab.swarmctl("node", "ls", "--format", "{{.Hostname}} {{.ID}}").splitlines()
    return dict(line.split()[:2] for line in lines)


def worker_pid(lab: Lab, node: str) -> int:
    """Pid of a node's worker process."""
    return int(Path(lab.base, "lab", lab.name, node, "run", "worker.pid").read_text().split()[0])
