"""Managers that keep their state in etcd: etcd dies and returns, leaders die or are demoted."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.cluster.lab import Lab, eventually
from tests.integration.runtime.site import is_alive

pytestmark = [
    pytest.mark.root,
    pytest.mark.etcd,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not shutil.which("etcd"), reason="etcd-server is missing"),
]


@pytest.fixture(scope="module")
def two() -> Iterator[Lab]:
    """Two managers and a worker, and an etcd of their own; a service with a task on each node."""
    base = Path(tempfile.mkdtemp(prefix="shoal-e2e-etcd-"))
    made = Lab(f"etcd{os.getpid()}", base)
    try:
        made.up(managers=2, workers=1, store="etcd?lease_ttl_s=3")
        etcd = made.swarmctl("lab", "top", "e1", "--name", made.name, "--quiet").split()
        made.swarmctl(
            "service", "create", "--detach", "--name", "web", "--replicas", "3",
            "--publish", "8080:80", "web:1",
        )  # fmt: skip
        eventually("3 run", lambda: len(made.running("web")) == 3)
        yield made
        made.down()
        assert etcd
        assert not [pid for pid in etcd if is_alive(int(pid))]
        assert not (base / "lab" / made.name).exists()
        spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        assert made.name not in spaces
    finally:
        made.down()
        shutil.rmtree(base, ignore_errors=True)


def test_etcd_dies_and_returns(two: Lab) -> None:
    before = {task["ID"]: task["Status"]["ContainerStatus"]["PID"] for task in two.running("web")}
    two.lab("kill", "e1")

    def refused(*words: str) -> str:
        result = two.run(*words, check=False)
        assert result.returncode != 0
        return result.stderr if "state is in etcd, which does not serve" in result.stderr else ""

    def both() -> bool:
        calls = [("service", "scale", "--detach", "web=4"), ("node", "ls")]
        with ThreadPoolExecutor() as pool:
            return all(list(pool.map(lambda words: refused(*words), calls)))

    eventually("writes and reads are refused with the reason", both)
    for node in two.addresses:
        two.ask(node, 8080)

    two.lab("start", "e1")
    eventually(
        "writes are accepted again",
        lambda: two.run("service", "update", "--detach", "--label-add", "a=b", "web", check=False)
        .returncode == 0,
    )  # fmt: skip
    eventually("all are ready", lambda: set(two.node_states().values()) == {"Ready"})
    after = eventually("3 run", lambda: len(r := two.running("web")) == 3 and r)
    assert {t["ID"]: t["Status"]["ContainerStatus"]["PID"] for t in after} == before


def test_a_killed_leader_is_replaced_and_comes_back(two: Lab) -> None:
    before = {task["ID"] for task in two.running("web")}
    leader = _leader(two)
    two.lab("kill", leader)
    eventually("the next write is accepted", lambda: _create(two, "after"))
    two.lab("start", leader)
    eventually("both manage", lambda: sorted(_standing(two).values()) == ["Leader", "Reachable"])
    names = {
        node: set(_on(two, node, "service", "ls", "--format", "{{.Name}}").split())
        for node in ("m1", "m2")
    }
    assert names == {"m1": {"web", "after"}, "m2": {"web", "after"}}
    eventually("all are ready", lambda: set(two.node_states().values()) == {"Ready"})
    assert {task["ID"] for task in two.running("web")} == before
    two.swarmctl("service", "rm", "after")


def test_a_demoted_leader_hands_over_and_a_worker_is_promoted(two: Lab) -> None:
    first = _leader(two)
    other = {"m1": "m2", "m2": "m1"}[first]
    two.swarmctl("node", "demote", first)
    eventually("the other one leads alone", lambda: _standing(two) == {other: "Leader"})
    two.swarmctl("node", "promote", "w1")
    wanted = {other: "Leader", "w1": "Reachable"}
    eventually("the worker manages", lambda: _standing(two) == wanted)
    assert "web" in _on(two, "w1", "service", "ls")


def test_what_makes_no_sense_without_a_log_is_refused(two: Lab) -> None:
    refused = two.run("cluster", "update", "--snapshot-interval", "100", check=False)
    assert refused.returncode != 0
    assert "snapshot interval" in refused.stderr
    refused = two.run("cluster", "transfer-leadership", check=False)
    assert refused.returncode != 0
    assert "etcd" in refused.stderr


def _create(lab: Lab, name: str) -> bool:
    words = ("service", "create", "--detach", "--replicas", "0", "--name", name, "web:1")
    return lab.run(*words, check=False).returncode == 0


def _on(lab: Lab, node: str, *words: str) -> str:
    return lab.swarmctl("-H", lab.socket(node), *words)


def _standing(lab: Lab) -> dict[str, str]:
    """What `node ls` says of the managers, by node; empty while nobody answers."""
    shown = lab.run("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}", check=False)
    lines = [line.split() for line in shown.stdout.splitlines()]
    return {words[0]: words[1] for words in lines if len(words) == 2}


def _leader(lab: Lab) -> str:
    return eventually(
        "there is a leader",
        lambda: next((node for node, what in _standing(lab).items() if what == "Leader"), ""),
    )
