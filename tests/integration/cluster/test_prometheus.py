"""Prometheus finds nodes, services and tasks through `dockerswarm_sd_configs`, and scrapes them.

It runs where it would as a service: in the network of a container that is on the services' network.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster.docker_cli import output, socket_of
from tests.integration.cluster.lab import DEADLINE_S, Lab, eventually
from worker.network import netns

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed"),
]
ADDRESS = "127.0.0.1:9090"  # of the container's own network
PORT = "18090"
"""Published as it is in the containers: Prometheus asks at a task's own address for the former."""
SHOP = f"echo 'sold_total 3' > /tmp/metrics; httpd -f -p {PORT} -h /tmp"
ROLES = ("nodes", "services", "tasks")
NODE_PORT = 9323


@pytest.fixture(scope="module")
def shop(lab: Lab) -> Iterator[None]:
    """A service that counts what it sold, on a network with the one that watches it."""
    lab.swarmctl("network", "create", "watched")
    try:
        lab.swarmctl(
            "service", "create", "--name", "shop", "--replicas", "2", "--network", "watched",
            "--label", "part=front", "--container-label", "tier=web", "-p", f"{PORT}:{PORT}",
            "web:1", "sh", "-c", SHOP,
        )  # fmt: skip
        lab.swarmctl(
            "service", "create", "--name", "watcher", "--network", "watched",
            "--constraint", "node.role==manager", "web:1", "sleep", "1000",
        )  # fmt: skip
        yield
    finally:
        for name in ("shop", "watcher"):
            lab.swarmctl("service", "rm", name, check=False)
        eventually(
            "the network is free",
            lambda: lab.run("network", "rm", "watched", check=False).returncode == 0,
        )


@pytest.fixture(scope="module")
def inside(lab: Lab, shop: None) -> Path:
    """The network namespace of the watcher's container."""
    pid = output(lab, "inspect", "--format", "{{.State.Pid}}", container(lab, "watcher"))
    return Path(f"/proc/{pid.strip()}/ns/net")


@pytest.fixture(scope="module")
def prometheus(lab: Lab, inside: Path) -> Iterator[None]:
    assert PROMETHEUS is not None
    config = lab.base / "prometheus.yml"
    only_the_shop = {
        "source_labels": ["__meta_dockerswarm_service_name"], "regex": "shop", "action": "keep",
    }  # fmt: skip
    jobs = [
        {
            "job_name": role,
            "scrape_interval": "1s",
            "dockerswarm_sd_configs": [
                {
                    "host": f"unix://{socket_of(lab, 'm1')}",
                    "role": role,
                    "port": NODE_PORT,
                    "refresh_interval": "1s",
                }
            ],
            "relabel_configs": [] if role == "nodes" else [only_the_shop],
        }
        for role in ROLES
    ]
    config.write_text(json.dumps({"scrape_configs": jobs}))
    with (lab.base / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            ["nsenter", f"--net={inside}", "--", PROMETHEUS, f"--config.file={config}",
             f"--storage.tsdb.path={lab.base / 'tsdb'}", f"--web.listen-address={ADDRESS}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def container(lab: Lab, service: str) -> str:
    """The container of a service's task at the manager."""
    label = f"label=com.docker.swarm.service.name={service}"
    return eventually(f"{service} runs", lambda: output(lab, "ps", "-q", "--filter", label).strip())


def asked(inside: Path, path: str) -> Any:
    """What Prometheus answers; None while it does not serve."""
    with netns.entered(inside):
        try:
            with urllib.request.urlopen(f"http://{ADDRESS}{path}", timeout=DEADLINE_S) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None


def up(inside: Path, role: str, count: int) -> list[dict[str, str]]:
    """The labels of a role's targets before they are relabelled, once so many are scraped."""

    def look() -> list[dict[str, str]]:
        targets = (asked(inside, "/api/v1/targets") or {}).get("activeTargets", [])
        mine = [one for one in targets if one["scrapePool"] == role and one["health"] == "up"]
        return [one["discoveredLabels"] for one in mine] if len(mine) == count else []

    return eventually(f"{count} {role} are up", look)


def test_nodes_are_found_and_scraped(lab: Lab, inside: Path, prometheus: None):
    found = up(inside, "nodes", 3)
    named = {one["__meta_dockerswarm_node_hostname"]: one for one in found}
    assert {name: one["__address__"] for name, one in named.items()} == {
        name: f"{address}:9323" for name, address in lab.addresses.items()
    }
    manager = {
        "node_role": "manager", "node_availability": "active", "node_status": "ready",
        "node_manager_leader": "true", "node_manager_reachability": "reachable",
        "node_manager_address": f"{lab.addresses['m1']}:2377",
        "node_platform_os": "linux", "node_address": lab.addresses["m1"],
    }  # fmt: skip
    assert {name: named["m1"][f"__meta_dockerswarm_{name}"] for name in manager} == manager
    assert named["w1"]["__meta_dockerswarm_node_role"] == "worker"


def test_services_are_found_and_scraped_at_their_address(lab: Lab, inside: Path, prometheus: None):
    (found,) = up(inside, "services", 1)
    wanted = {
        "service_name": "shop", "service_mode": "replicated", "service_label_part": "front",
        "service_endpoint_port_name": "", "service_endpoint_port_publish_mode": "ingress",
        "network_name": "watched", "network_scope": "swarm", "network_ingress": "false",
    }  # fmt: skip
    assert {name: found.get(f"__meta_dockerswarm_{name}", "") for name in wanted} == wanted
    assert found["__address__"].endswith(f":{PORT}")
    assert sold(inside, "services") == ["3"]


def test_tasks_are_found_and_scraped_each(lab: Lab, inside: Path, prometheus: None):
    found = up(inside, "tasks", 2)
    running = {task["ID"]: task["NodeID"] for task in lab.running("shop")}
    said = {one["__meta_dockerswarm_task_id"]: one["__meta_dockerswarm_node_id"] for one in found}
    assert said == running
    assert sorted(one["__meta_dockerswarm_task_slot"] for one in found) == ["1", "2"]
    wanted = {
        "task_state": "running", "task_desired_state": "running", "service_name": "shop",
        "service_label_part": "front", "container_label_tier": "web", "network_name": "watched",
    }  # fmt: skip
    for one in found:
        assert {name: one[f"__meta_dockerswarm_{name}"] for name in wanted} == wanted
    assert sold(inside, "tasks") == ["3", "3"]


def sold(inside: Path, role: str) -> list[str]:
    """What was scraped from a role's targets."""
    query = urllib.parse.quote(f'sold_total{{job="{role}"}}')

    def look() -> list[str]:
        found = asked(inside, f"/api/v1/query?query={query}")
        return [one["value"][1] for one in (found or {}).get("result", [])]

    return eventually(f"{role} are scraped", look)
