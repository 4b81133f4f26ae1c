"""docker-compose 1.29.2, as Debian has it, against a node: three services that need each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.engine.daemon import DEADLINE_S, Ran
from tests.integration.engine.networked import NODE, NetworkedNode, talk
from tests.integration.engine.seeded import ask, ok, remains, until

COMPOSE = shutil.which("docker-compose")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(COMPOSE is None, reason="docker-compose is not installed"),
]
MAKE_NODE = NetworkedNode
FILE = """
version: "3.7"
services:
  store:
    image: busybox
    command: [sh, -c, "echo kept >> /data/f; echo store is up; exec httpd -f -p 8000 -h /data"]
    volumes: [data:/data]
    networks: {back: {aliases: [depot]}}
    healthcheck: {test: [CMD, "true"], interval: 1s}
  web:
    build: {context: web, network: none, args: {GREETING: hello}}
    ports: ["18080:80"]
    depends_on: [store]
    networks: [back]
    environment: {WHO: compose}
    stop_grace_period: 0s
  worker:
    image: busybox
    command: [sh, -c, "echo $$HOSTNAME works; exec sleep 600"]
    depends_on: [store, web]
    networks: [back]
    stop_grace_period: 0s
networks: {back: {labels: {part: back}}}
volumes: {data: {labels: {part: data}}}
"""
DOCKERFILE = """FROM busybox
ARG GREETING
RUN mkdir /www && echo $GREETING > /www/index.html
COPY more /www/more
EXPOSE 80
CMD ["sh", "-c", "echo web for $WHO; exec httpd -f -p 80 -h /www"]
"""
MAKES_ANEW = {"COMPOSE_API_VERSION": "1.44"}
"""docker-compose 1 asks for the newest version unless told otherwise, and makes a changed container
anew only with an image's `ContainerConfig`, which Docker leaves out since 1.45."""
GET = b"GET /%s HTTP/1.0\r\n\r\n"


@pytest.fixture(scope="module")
def project(node: NetworkedNode) -> Path:
    directory = node.base / "shop"
    (directory / "web").mkdir(parents=True)
    (directory / "docker-compose.yml").write_text(FILE)
    (directory / "web" / "Dockerfile").write_text(DOCKERFILE)
    (directory / "web" / "more").write_text("more\n")
    return directory


def compose(node: NetworkedNode, project: Path, *arguments: str) -> Ran:
    assert COMPOSE is not None
    done = subprocess.run(
        [*node.prefix, COMPOSE, "--ansi", "never", *arguments], cwd=project,
        capture_output=True, text=True, timeout=DEADLINE_S * 2, check=False,
        env={
            "PATH": os.environ["PATH"], "HOME": str(node.base / "home"),
            "DOCKER_HOST": f"unix://{node.socket}", **MAKES_ANEW,
        },
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def did(node: NetworkedNode, project: Path, *arguments: str) -> Ran:
    ran = compose(node, project, *arguments)
    assert ran.code == 0, (arguments, ran)
    return ran


def containers(node: NetworkedNode) -> dict[str, dict[str, Any]]:
    """All containers by name."""
    found = ask(node, "GET", "/containers/json?all=1")[1]
    return {one["Names"][0][1:]: one for one in found}


def test_a_project_lives(node: NetworkedNode, project: Path):
    up = did(node, project, "up", "-d")
    assert "Step 1/6 : FROM busybox" in up.out
    assert set(containers(node)) == {"shop_store_1", "shop_web_1", "shop_worker_1"}

    listed = did(node, project, "ps").out
    assert listed.count("Up") == 3
    assert "0.0.0.0:18080->80/tcp" in listed
    assert did(node, project, "ps", "-q", "web").out.strip() == containers(node)["shop_web_1"]["Id"]

    until(lambda: b"hello" in node.outside(lambda: talk(NODE, 18080, GET % b"")))
    assert b"more" in node.outside(lambda: talk(NODE, 18080, GET % b"more"))

    until(lambda: "store is up" in did(node, project, "logs", "--no-color", "store").out)
    logs = did(node, project, "logs", "--no-color", "--tail", "5").out
    assert "web for compose" in logs
    assert " works" in logs

    fetched = did(node, project, "exec", "-T", "worker", "wget", "-qO-", "http://depot:8000/f")
    assert fetched.out == "kept\n"
    assert compose(node, project, "exec", "-T", "worker", "sh", "-c", "exit 9").code == 9

    once = did(node, project, "run", "--rm", "-T", "worker", "wget", "-qO-", "http://web/more")
    assert once.out == "more\n"
    assert compose(node, project, "run", "--rm", "-T", "worker", "sh", "-c", "exit 4").code == 4
    assert len(containers(node)) == 3


def test_scale_changes_and_restarts(node: NetworkedNode, project: Path):
    did(node, project, "up", "-d")
    did(node, project, "scale", "worker=3")
    workers = {name for name in containers(node) if "worker" in name}
    assert workers == {"shop_worker_1", "shop_worker_2", "shop_worker_3"}
    did(node, project, "up", "-d", "--scale", "worker=2", "--no-recreate")
    assert "shop_worker_3" not in containers(node)

    before = containers(node)
    (project / "docker-compose.yml").write_text(FILE.replace("WHO: compose", "WHO: changed"))
    did(node, project, "up", "-d", "--scale", "worker=2")
    after = containers(node)
    assert before["shop_web_1"]["Id"] != after["shop_web_1"]["Id"]
    assert before["shop_store_1"]["Id"] == after["shop_store_1"]["Id"]
    until(lambda: "web for changed" in did(node, project, "logs", "--no-color", "web").out)

    for verb in ("pause", "unpause", "restart", "stop", "start", "kill"):
        did(node, project, verb, "web")
    assert containers(node)["shop_web_1"]["State"] == "exited"
    did(node, project, "start", "web")
    did(node, project, "top")
    assert did(node, project, "port", "web", "80").out.strip() == "0.0.0.0:18080"
    assert "busybox" in did(node, project, "images").out
    did(node, project, "rm", "-sf", "worker")
    assert not [name for name in containers(node) if "worker" in name]


def test_down_takes_all_but_the_data(node: NetworkedNode, project: Path):
    did(node, project, "up", "-d")
    did(node, project, "down", "-t", "0")
    assert containers(node) == {}
    assert "shop_back" not in ok(node, "network", "ls", "--format", "{{.Name}}").split()
    assert ok(node, "volume", "ls", "-q") == "shop_data"

    did(node, project, "up", "-d")
    until(lambda: "store is up" in did(node, project, "logs", "--no-color", "store").out)
    kept = did(node, project, "exec", "-T", "store", "cat", "/data/f").out
    assert kept.count("kept") > 1
    did(node, project, "down", "-t", "0", "-v", "--rmi", "local")
    assert ok(node, "volume", "ls", "-q") == ""
    assert "shop_web" not in json.dumps(ask(node, "GET", "/images/json")[1])
    until(lambda: not remains(node))
    assert set(node.leftovers()) <= {"shbr0", "table inet shoal_local"}
