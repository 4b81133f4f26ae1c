"""A lab of real daemons: it serves, its containers outlive their daemons, and it leaves nothing."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys

import pytest

from swarmctl.lab import nodes, record
from tests.integration.lab.conftest import REPOSITORY, eventually
from tests.integration.lab.test_nodes import left_of
from tools.demo import write_rootfs

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

PORT = 8080


def swarmctl(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "swarmctl", *words],
        capture_output=True, text=True, check=False, timeout=100, cwd="/",
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ask(address: str) -> str:
    connection = http.client.HTTPConnection(address, PORT, timeout=3)
    try:
        connection.request("GET", "/", headers={"Connection": "close"})
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


def test_a_cluster_serves_survives_its_daemons_and_leaves_nothing(root, lab_name, tmp_path):
    where = ("--name", lab_name, "--dir", root)
    swarmctl("lab", "up", *where, "--workers", "1")
    plan = record.read_lab(root, lab_name).plan
    m1, w1 = plan.nodes
    listing = swarmctl("node", "ls", "--format", "{{.Hostname}} {{.Status}}")
    assert sorted(listing.splitlines()) == ["m1 Ready", "w1 Ready"]

    write_rootfs(tmp_path / "web.tar")
    change = 'CMD ["httpd", "-f", "-p", "0.0.0.0:80", "-h", "/www"]'
    swarmctl("image", "import", "--change", change, str(tmp_path / "web.tar"), "test/web:1")
    swarmctl(
        "service", "create", "--name", "web", "--replicas", "2", "--publish", f"{PORT}:80",
        "--env", "TASK={{.Task.Slot}}", "--detach", "test/web:1",
    )  # fmt: skip
    for node in plan.nodes:
        eventually(lambda node=node: ask(node.address), timeout_s=60)
        assert f"asked by {plan.gateway}" in ask(node.address)
    # One each: the server, and no more of the processes that answered us.
    eventually(lambda: all(len(nodes.family(plan, n).containers) == 1 for n in plan.nodes))

    before = nodes.family(plan, w1)
    assert {len(before.daemons), len(before.helpers)} == {2, 3}
    nodes.kill(plan, w1, helpers=True)
    assert [p.pid for p in nodes.family(plan, w1).everyone] == [
        p.pid for p in before.containers
    ]  # fmt: skip
    assert all(ask(m1.address) for _ in range(8))

    swarmctl("lab", "start", *where, "w1")
    swarmctl("lab", "wait", *where)
    assert {p.pid for p in before.containers} <= {
        p.pid for p in nodes.family(plan, w1).containers
    }  # fmt: skip

    swarmctl("lab", "down", *where)
    assert left_of(root, lab_name) == []
    assert swarmctl("context", "ls", "-q").split() == ["default"]
