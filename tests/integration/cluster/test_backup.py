"""A cluster whose only manager is lost comes back from its backup, and the containers run on.

The steps of docs/operations/backup.md, typed as they stand there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

KILL_AT = [("raft.restoring", 0.0), ("raft", 0.0), ("identity", 0.3)]
"""What is on the disk when the daemon is killed, and how long before."""


@pytest.fixture
def base() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="shoal-e2eb-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def lab(base: Path) -> Iterator[Lab]:
    """One manager and one worker; each test may take it down and raise it again."""
    made = Lab(f"e2ebk{os.getpid()}", base)
    try:
        made.up(managers=1, workers=1)
        yield made
    finally:
        made.down()


def test_a_lost_manager_is_restored_and_the_workers_containers_run_on(lab: Lab) -> None:
    create(lab, "web", "node.hostname==w1", replicas=2)
    create(lab, "front", "node.hostname==m1", replicas=1)
    before = containers(lab, "web", 2)
    containers(lab, "front", 1)
    lab.swarmctl("service", "update", "--detach", "--label-add", "seen=yes", "front")
    history = ("service", "history", "front", "--format", "{{.Revision}} {{.CreatedAt}}")
    revisions = lab.swarmctl(*history)
    cluster = inspect(lab)["ID"]
    path = lab.base / "cluster.backup"
    said = lab.swarmctl("cluster", "backup", str(path))
    assert f"Cluster {cluster} saved" in said
    assert path.stat().st_mode & 0o777 == 0o600
    lab.swarmctl("service", "create", "--detach", "--name", "later", "--replicas", "0", "web:1")

    lab.run("-H", lab.socket("m1"), "leave", "--force")
    for sign, delay_s in KILL_AT:
        if is_in_cluster_after_a_kill(lab, path, sign=sign, delay_s=delay_s):
            assert services(lab) == {"web", "front"}
            lab.run("-H", lab.socket("m1"), "leave", "--force")

    said = lab.run("-H", lab.socket("m1"), "cluster", "restore", str(path)).stdout
    assert f"Cluster {cluster} restored" in said
    assert services(lab) == {"web", "front"}
    assert inspect(lab)["ID"] == cluster
    assert lab.swarmctl(*history) == revisions
    assert len(revisions.splitlines()) == 2
    # The worker finds a manager where it knew one, and is let in with its certificate.
    eventually("w1 is back", lambda: lab.node_states().get("w1") == "Ready")
    assert containers(lab, "web", 2) == before
    # The lost manager's own tasks are replaced at once, its node is down.
    containers(lab, "front", 1)
    lab.swarmctl("service", "scale", "--detach", "front=2")
    containers(lab, "front", 2)
    assert containers(lab, "web", 2) == before
    old = next(row["ID"] for row in nodes(lab) if row["Status"] == "Down")
    lab.swarmctl("node", "demote", old)
    eventually("it is removed", lambda: lab.run("node", "rm", old, check=False).returncode == 0)

    on_a_fresh_lab(lab, cluster)


def on_a_fresh_lab(lab: Lab, cluster: str) -> None:
    """Nothing is left but an encrypted backup."""
    passphrase, path = lab.base / "passphrase", lab.base / "sealed.backup"
    passphrase.write_text("correct horse battery\n")
    flags = ("--passphrase-file", str(passphrase))
    lab.swarmctl("cluster", "backup", *flags, str(path))
    token = lab.swarmctl("join-token", "worker", "-q").strip()
    lab.down()
    lab.up(managers=1, workers=1)
    refused = lab.run("cluster", "restore", *flags, str(path), check=False)
    assert (refused.returncode, "already part of a cluster" in refused.stderr) == (6, True)
    for name in ("w1", "m1"):
        lab.run("-H", lab.socket(name), "leave", "--force")
    unasked = lab.run("-H", lab.socket("m1"), "cluster", "restore", str(path), check=False)
    assert "needs a passphrase: give --passphrase-file" in unasked.stderr
    said = lab.run("-H", lab.socket("m1"), "cluster", "restore", *flags, str(path)).stdout
    assert f"Cluster {cluster} restored" in said
    remote = f"{lab.addresses['m1']}:2377"
    lab.run("-H", lab.socket("w1"), "join", "--token", token, remote)
    containers(lab, "front", 2)
    lab.swarmctl("service", "create", "--detach", "--name", "new", "--replicas", "1", "web:1")
    containers(lab, "new", 1)


def is_in_cluster_after_a_kill(lab: Lab, path: Path, *, sign: str, delay_s: float) -> bool:
    """Kill the daemon while it restores. Result: whether the cluster is there, whole, after it."""
    state = lab.base / "lab" / lab.name / "m1" / "state"
    daemon = node_info(lab)["Processes"]["swarmd"]
    command = [
        sys.executable, "-P", "-m", "swarmctl", "-H", lab.socket("m1"), "cluster", "restore",
        str(path),
    ]  # fmt: skip
    with subprocess.Popen(
        command, env=lab.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as restoring:
        while restoring.poll() is None and not (state / sign).exists():
            time.sleep(0.001)
        time.sleep(delay_s)
        os.kill(daemon, signal.SIGKILL)
        restoring.wait(timeout=60)
    eventually("it can be started", lambda: lab.run(
        "lab", "start", "--name", lab.name, "m1", check=False).returncode == 0)  # fmt: skip
    shown = eventually("it answers", lambda: node_info(lab))
    assert shown["Swarm"]["Error"] == ""
    if shown["Swarm"]["LocalNodeState"] == "active":
        eventually("it serves", lambda: services(lab))
        return True
    assert shown["Swarm"]["LocalNodeState"] == "inactive"
    left = {one.name for one in state.iterdir()}
    assert not left & {"raft", "raft.restoring", "node.json", "bootstrap.entry"}
    return False


def node_info(lab: Lab) -> dict:
    shown = lab.run("-H", lab.socket("m1"), "info", "--format", "json", check=False)
    return json.loads(shown.stdout) if shown.returncode == 0 else {}


def create(lab: Lab, name: str, constraint: str, *, replicas: int) -> None:
    lab.swarmctl(
        "service", "create", "--detach", "--name", name, "--replicas", str(replicas),
        "--constraint", constraint, "--stop-grace-period", "1s", "web:1",
    )  # fmt: skip


def services(lab: Lab) -> set[str]:
    shown = lab.run("-H", lab.socket("m1"), "service", "ls", "--format", "{{.Name}}", check=False)
    return set(shown.stdout.split())


def nodes(lab: Lab) -> list[dict]:
    shown = lab.swarmctl("node", "ls", "--format", "json")
    return [json.loads(line) for line in shown.splitlines()]


def inspect(lab: Lab) -> dict:
    return json.loads(lab.swarmctl("cluster", "inspect"))[0]


def containers(lab: Lab, service: str, count: int) -> set[tuple[str, str]]:
    """Task and container of all that is wanted, when as many run."""

    def known() -> set[tuple[str, str]]:
        found = {
            (one["ID"], one["Status"]["ContainerStatus"]["ContainerID"])
            for one in lab.running(service)
        }
        return found if len(found) == count else set()

    return eventually(f"{count} of {service} run", known, deadline_s=90)
