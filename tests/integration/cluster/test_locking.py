"""A locked manager as people see it: its containers run on, and it takes them up again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One node, with a service that is published."""
    base = Path(tempfile.mkdtemp(prefix="shoal-e2el-"))
    made = Lab(f"e2el{os.getpid()}", base)
    try:
        made.up(workers=0)
        made.swarmctl(
            "service", "create", "--detach", "--name", "web", "--replicas", "2",
            "--publish", "8080:80", "web:1",
        )  # fmt: skip
        eventually("web runs", lambda: len(made.running("web")) == 2)
        yield made
    finally:
        made.down()
        shutil.rmtree(base, ignore_errors=True)


def containers(lab: Lab) -> set[str]:
    """Pids of what runs in containers."""
    shown = lab.swarmctl("lab", "top", "--name", lab.name, "m1", "--kind", "container", "-q")
    return set(shown.split())


def tasks(lab: Lab) -> set[str]:
    return {task["Status"]["ContainerStatus"]["ContainerID"] for task in lab.running("web")}


def restart(lab: Lab) -> str:
    """Kill the node's daemons and start them again. Result: its status."""
    lab.lab("kill", "m1")
    lab.lab("start", "m1")
    return lab.swarmctl("lab", "ps", "--name", lab.name, "--format", "{{.Status}}").strip()


def unlock(lab: Lab, key: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "swarmctl", "unlock"],
        env=lab.environment, input=f"{key}\n", capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def test_containers_outlive_a_locked_start_and_a_forced_leave_leaves_nothing(lab: Lab) -> None:
    lab.swarmctl("cluster", "update", "--autolock")
    first = lab.swarmctl("unlock-key", "-q").strip()
    state = lab.base / "lab" / lab.name / "m1" / "state"
    eventually("it is locked", lambda: b"ENCRYPTED" in (state / "identity/node.key").read_bytes())
    before, processes = tasks(lab), containers(lab)
    assert restart(lab) == "locked"
    refused = lab.run("service", "ls", check=False)
    assert (refused.returncode, refused.stdout) == (6, "")
    assert refused.stderr == (
        "Error: Swarm is encrypted and needs to be unlocked before it can be used. "
        'Please use "swarmctl unlock" to unlock it.\n'
    )
    assert "Swarm: locked\n" in lab.swarmctl("info")
    assert containers(lab) == processes
    lab.ask("m1", 8080)
    wrong = unlock(lab, first[:-1] + ("A" if first[-1] != "A" else "E"))
    assert wrong.returncode != 0
    assert "Error: " in wrong.stderr
    done = unlock(lab, first)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    eventually("its tasks are known", lambda: tasks(lab) == before)
    assert containers(lab) == processes

    assert "swarm is not locked" in unlock(lab, first).stderr
    assert restart(lab) == "locked"
    assert "--force" in lab.run("leave", check=False).stderr
    lab.swarmctl("leave", "--force")
    assert containers(lab) == set()
    tables = lab.swarmctl("lab", "exec", "--name", lab.name, "m1", "--", "nft", "list", "tables")
    assert tables == ""
    assert not (state / "lock.json").exists()
