"""Nodes are emptied, and filled again, while the tasks are asked without a pause."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

PORT = 8097
QUICK = ("--stop-grace-period", "1s")


def test_the_only_task_of_a_service_moves_without_a_failed_request(lab: Lab, service: str) -> None:
    lab.swarmctl("service", "create", "--name", service, *QUICK, "--publish", f"{PORT}:80", "web:1")
    (node,) = _nodes(lab, service)
    try:
        with _load(lab) as (answers, failures):
            eventually("it is asked", lambda: len(answers) > 20)
            drained = lab.run("node", "drain", "--wait", "--deadline", "2m", node)
            eventually("the new one is asked", lambda: len(set(answers)) == 2)
        assert not failures
        assert drained.stdout == f"{node}\n"
        assert re.search(
            rf"^{node}: \d tasks? left, 1 to be replaced", drained.stderr, re.MULTILINE
        )
        assert node not in _nodes(lab, service)
        assert "start elsewhere first" in lab.swarmctl("node", "inspect", "--pretty", node)
    finally:
        lab.swarmctl("node", "activate", node)
    assert "start elsewhere first" not in lab.swarmctl("node", "inspect", "--pretty", node)


def test_what_fits_nowhere_else_stays_until_the_deadline_and_says_why(
    lab: Lab, service: str
) -> None:
    lab.swarmctl(
        "service", "create", "--name", service, *QUICK, "--constraint", "node.hostname==w2", "web:1"
    )
    lab.swarmctl("node", "drain", "w2")
    try:
        said = lab.swarmctl("service", "explain", service)
        assert "stays on w2 until task" in said
        assert "scheduling constraints not satisfied" in said
        assert len(lab.running(service)) == 1
        lab.swarmctl("node", "drain", "--wait", "--deadline", "1s", "w2")
        assert not lab.running(service)
    finally:
        lab.swarmctl("node", "activate", "w2")
    eventually("it runs there again", lambda: len(lab.running(service)) == 1)


def test_tasks_go_to_a_node_that_came_back(lab: Lab, service: str) -> None:
    lab.swarmctl("node", "drain", "--stop-first", "w2")
    try:
        lab.swarmctl(
            "service", "create", "--name", service, *QUICK, "--replicas", "4",
            "--publish", f"{PORT}:80", "web:1",
        )  # fmt: skip
        assert sorted(_nodes(lab, service)) == ["m1", "m1", "w1", "w1"]
    finally:
        lab.swarmctl("node", "activate", "w2")
    planned = lab.swarmctl(
        "service", "rebalance", "--plan", service, "--format", "{{.From}} {{.To}}"
    )
    assert len(planned.splitlines()) == 1
    assert planned.split()[1] == "w2"
    with _load(lab) as (answers, failures):
        lab.swarmctl("service", "rebalance", service)
        eventually("the old one has left", lambda: sorted(set(_nodes(lab, service))) == [
            "m1", "w1", "w2"])  # fmt: skip
    assert not failures
    assert answers
    again = lab.run("service", "rebalance", service)
    assert "nothing to move" in again.stderr


def _nodes(lab: Lab, service: str) -> list[str]:
    """Names of the nodes with a task that is wanted."""
    shown = lab.swarmctl(
        "service", "ps", service, "--filter", "desired-state=running", "--format", "{{.Node}}"
    )
    return shown.split()


@contextmanager
def _load(lab: Lab) -> Iterator[tuple[list[str], list[OSError]]]:
    """Ask every node in turn without a pause. Result: who answered, and what went wrong."""
    answers: list[str] = []
    failures: list[OSError] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            for node in lab.addresses:
                try:
                    answers.append(lab.ask(node, PORT)[0])
                except OSError as error:
                    failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers, failures
    finally:
        stop.set()
        thread.join()
