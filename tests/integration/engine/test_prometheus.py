"""Prometheus finds containers through `docker_sd_configs`."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.engine.daemon import DEADLINE_S
from tests.integration.engine.networked import NetworkedNode
from tests.integration.engine.seeded import ok, until

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed"),
]
ADDRESS = "127.0.0.1:9090"  # of the node's own network


@pytest.fixture
def node() -> Iterator[NetworkedNode]:
    made = NetworkedNode()
    try:
        made.start()
        yield made
        ok(made, "rm", "-f", "shop")
    finally:
        made.close()


@pytest.fixture
def prometheus(node: NetworkedNode) -> Iterator[None]:
    assert PROMETHEUS is not None
    config = node.base / "prometheus.yml"
    found = [{"host": f"unix://{node.socket}", "refresh_interval": "1s"}]
    config.write_text(
        json.dumps({"scrape_configs": [{"job_name": "docker", "docker_sd_configs": found}]})
    )
    with (node.base / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [*node.prefix, PROMETHEUS, f"--config.file={config}",
             f"--storage.tsdb.path={node.base / 'tsdb'}", f"--web.listen-address={ADDRESS}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def targets(node: NetworkedNode) -> list[dict[str, Any]]:
    """What has been found so far, before it is relabelled."""

    def asked() -> list[dict[str, Any]]:
        url = f"http://{ADDRESS}/api/v1/targets"
        try:
            with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
                found = json.load(answer)["data"]["activeTargets"]
        except OSError:  # it does not serve yet
            return []
        return [one["discoveredLabels"] for one in found]

    return node.on_node(asked)


def test_containers_are_found(node: NetworkedNode, prometheus: None):
    shop = ok(node, "run", "-d", "--name", "shop", "--label", "part=front", "-p", "18081:80",
              "busybox", "sleep", "600")  # fmt: skip
    until(lambda: targets(node))
    found = targets(node)[0]
    address = ok(node, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "shop")
    assert found["__address__"] == f"{address}:80"
    assert found["__meta_docker_container_id"] == shop
    assert found["__meta_docker_container_name"] == "/shop"
    assert found["__meta_docker_container_label_part"] == "front"
    assert found["__meta_docker_network_name"] == "bridge"
    assert found["__meta_docker_port_public"] == "18081"
    ok(node, "stop", "-t", "0", "shop")
    until(lambda: not targets(node))
