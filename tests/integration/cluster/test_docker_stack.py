"""`docker stack deploy`, which is the client's own, against a lab: once, and again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.docker_cli import docker, output
from tests.integration.cluster.lab import Lab, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker command is missing"),
]
STACK = "shop"
FILE = """
version: "3.8"
x-sleeper: &sleeper
  image: web:1
  command: ["sleep", "1000"]
  stop_grace_period: 0s
services:
  front:
    image: web:1
    stop_grace_period: 0s
    networks: [outer, inner]
    ports: ["18095:80"]
    configs: [{source: page, target: /www/page, mode: 0444}]
    deploy: {replicas: 2, update_config: {parallelism: 2, monitor: 1s}}
  api:
    <<: *sleeper
    networks: {inner: {aliases: [backend]}}
    secrets: [key]
    environment: {MODE: live}
    healthcheck: {test: ["CMD", "ls", "/run/secrets/key"], interval: 2s, retries: 30}
    deploy: {resources: {limits: {cpus: "0.50", memory: 64M}}, labels: {tier: api}}
  agent:
    <<: *sleeper
    deploy: {mode: global}
  data:
    <<: *sleeper
    networks: [inner]
    volumes: ["kept:/kept", {type: tmpfs, target: /scratch}]
    deploy: {placement: {constraints: ["node.role == worker"]}}
  once:
    <<: *sleeper
    command: ["echo", "done"]
    networks: [inner]
    deploy: {mode: replicated-job, replicas: 1}
networks:
  outer: {}
  inner: {driver_opts: {}, internal: true}
volumes:
  kept: {}
secrets:
  key: {file: ./key}
configs:
  page: {file: ./page}
"""
SERVICES = {f"{STACK}_{name}" for name in ("front", "api", "agent", "data", "once")}


@pytest.fixture
def path(lab: Lab) -> Iterator[Path]:
    """The stack's file; the stack is removed afterwards."""
    file = lab.base / "stack.yml"
    file.write_text(FILE)
    (lab.base / "key").write_text("secret")
    (lab.base / "page").write_text("hello")
    yield file
    docker(lab, "m1", "stack", "rm", STACK)
    eventually("its networks are gone", lambda: not _names(lab, "network"))


def _names(lab: Lab, noun: str) -> set[str]:
    words = (noun, "ls", "--filter", f"label=com.docker.stack.namespace={STACK}")
    return set(output(lab, *words, "--format", "{{.Name}}").split())


def _states(lab: Lab) -> dict[str, str]:
    shown = output(lab, "stack", "services", STACK, "--format", "{{.Name}} {{.Replicas}}")
    return dict(line.split(maxsplit=1) for line in shown.splitlines())


def _tasks(lab: Lab) -> set[str]:
    """Tasks that are to go on running: a job runs again when it is deployed again."""
    words = ("--no-trunc", "--filter", "desired-state=running", "--format", "{{.ID}}")
    return set(output(lab, "stack", "ps", STACK, *words).split())


def _is_up(lab: Lab) -> bool:
    wanted = {
        "shop_front": "2/2",
        "shop_api": "1/1",
        "shop_agent": "3/3",
        "shop_data": "1/1",
        "shop_once": "0/1 (1/1 completed)",
    }
    return _states(lab) == wanted


def test_a_stack_is_deployed_deployed_again_changed_and_removed(lab: Lab, path: Path):
    never = ("--resolve-image", "never", "--detach=true")
    deploy = ("stack", "deploy", *never, "-c", str(path), STACK)
    made = output(lab, *deploy)
    assert {f"Creating service {name}" for name in SERVICES} <= set(made.splitlines())
    eventually("all of it runs", lambda: _is_up(lab))
    assert output(lab, "stack", "ls", "--format", "{{.Name}} {{.Services}}") == f"{STACK} 5\n"
    before = _tasks(lab)
    assert len(before) == 7

    again = output(lab, *deploy)
    assert "Creating" not in again
    eventually("the job has run again", lambda: _is_up(lab))
    assert _tasks(lab) == before  # nobody else was started anew
    spec = json.loads(output(lab, "service", "inspect", "shop_api"))[0]["Spec"]
    assert spec["Labels"]["com.docker.stack.namespace"] == STACK
    assert set(spec["TaskTemplate"]["Networks"][0]["Aliases"]) == {"api", "backend"}

    path.write_text(FILE.replace("replicas: 2", "replicas: 1"))
    output(lab, *deploy)
    eventually("one is less", lambda: _states(lab)["shop_front"] == "1/1")

    output(lab, "stack", "rm", STACK)
    for noun in ("service", "secret", "config"):
        assert not _names(lab, noun)
