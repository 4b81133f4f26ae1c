"""Three managers keep one state: the leader is killed while clients write."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]


@pytest.fixture
def three() -> Iterator[Lab]:
    """A lab of three managers, all of them voters."""
    base = Path(tempfile.mkdtemp(prefix="shoal-e2e3-"))
    made = Lab(f"e3m{os.getpid()}", base)
    try:
        made.up(managers=3, workers=0)
        eventually("all three vote", lambda: _managers(made, "m1").count("Reachable") == 2)
        yield made
    finally:
        made.down()
        shutil.rmtree(base, ignore_errors=True)


def test_a_killed_leader_costs_no_acknowledged_write_and_no_task(three: Lab) -> None:
    three.swarmctl("service", "create", "--detach", "--name", "web", "--replicas", "2", "web:1")
    before = eventually("2 run", lambda: len(r := three.running("web")) == 2 and r)
    assert _managers(three, "m1").count("Leader") == 1

    three.lab("kill", "m1")
    made: list[str] = []

    def write() -> bool:
        result = three.run(
            "-H", three.socket("m2"), "service", "create", "--detach", "--replicas", "0",
            "--name", f"s{len(made)}", "web:1", check=False,
        )  # fmt: skip
        if result.returncode == 0:
            made.append(f"s{len(made)}")
        return len(made) == 5

    eventually("writes are accepted again", write)
    shown = three.run("-H", three.socket("m3"), "service", "ls", "--format", "{{.Name}}")
    assert set(shown.stdout.split()) == {"web", *made}

    three.lab("start", "m1")
    eventually("m1 follows", lambda: _managers(three, "m1").count("Reachable") == 2)
    shown = three.run("-H", three.socket("m1"), "service", "ls", "--format", "{{.Name}}")
    assert set(shown.stdout.split()) == {"web", *made}
    after = eventually("2 run", lambda: len(r := three.running("web")) == 2 and r)
    survivors = {task["ID"] for task in before if task["NodeID"] != _id_of(three, "m1")}
    assert survivors <= {task["ID"] for task in after}


def _managers(lab: Lab, node: str) -> list[str]:
    result = lab.run(
        "-H", lab.socket(node), "node", "ls", "--format", "{{.ManagerStatus}}", check=False
    )
    return result.stdout.split()


def _id_of(lab: Lab, node: str) -> str:
    shown = lab.run("-H", lab.socket("m2"), "node", "ls", "--format", "{{.Hostname}} {{.ID}}")
    return dict(line.split()[:2] for line in shown.stdout.splitlines())[node]
