"""Events of the swarm by the docker command line, and by docker-py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import docker as docker_py
import pytest

from tests.integration.cluster.docker_cli import command, docker, environment, output, socket_of
from tests.integration.cluster.lab import Lab, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker command is missing"),
]
SETTLED_S = 1.5
BRIEF = ("--stop-grace-period", "1s")


@contextmanager
def events(lab: Lab, node: str, *words: str) -> Iterator[list[dict]]:
    """What `docker events` prints while inside; filled when the block ends."""

    def readers() -> int:
        return int(docker(lab, node, "info", "--format", "{{.NEventsListener}}")[1])

    heard: list[dict] = []
    path, before = lab.base / "events", readers()
    with path.open("w") as out:
        reader = subprocess.Popen(
            command(lab, node, "events", "--format", "{{json .}}", *words),
            stdout=out, env=environment(lab),
        )  # fmt: skip
    try:
        eventually("it listens", lambda: readers() > before)
        time.sleep(SETTLED_S)
        yield heard
        size = -1
        while size != path.stat().st_size:
            size = path.stat().st_size
            time.sleep(SETTLED_S)
    finally:
        reader.terminate()
        reader.wait(40)
    heard += map(json.loads, path.read_text().splitlines())


def told(heard: list[dict], kind: str) -> list[tuple[str, dict[str, str]]]:
    """Actions on objects of a type, with their attributes."""
    assert {one["scope"] for one in heard} == {"swarm"}
    return [
        (one["Action"], one["Actor"]["Attributes"]) for one in heard if one["Type"] == kind
    ]  # fmt: skip


def test_a_manager_tells_what_happens_in_the_swarm(lab: Lab):
    begun = time.time()
    with events(lab, "m1", "--filter", "scope=swarm") as heard:
        output(lab, "secret", "create", "ev", "-", stdin="x")
        output(lab, "network", "create", "-d", "overlay", "ev")
        lab.swarmctl("service", "create", "-d", "--name", "ev", "--secret", "ev", *BRIEF, "web:1")
        lab.swarmctl("service", "update", "-d", "--replicas", "2", "ev")
        output(lab, "node", "update", "--availability", "pause", "w2")
        output(lab, "node", "update", "--availability", "active", "w2")
        output(lab, "service", "rm", "ev")
        output(lab, "secret", "rm", "ev")
        output(lab, "network", "rm", "ev")
    assert told(heard, "secret") == [("create", {"name": "ev"}), ("remove", {"name": "ev"})]
    networks = [action for action, _ in told(heard, "network")]
    assert (networks[0], networks[-1]) == ("create", "remove")
    services = told(heard, "service")
    assert (services[0], services[-1]) == (("create", {"name": "ev"}), ("remove", {"name": "ev"}))
    scaled = {"name": "ev", "replicas.old": "1", "replicas.new": "2"}
    assert any(about.items() >= scaled.items() for _, about in services)
    paused = {"name": "w2", "availability.old": "active", "availability.new": "pause"}
    assert ("update", paused) in told(heard, "node")
    assert "task" not in {one["Type"] for one in heard}
    since = ("--since", str(begun), "--until", str(time.time()), "--format", "{{.Type}}")
    kept = output(lab, "events", *since, "--filter", "type=secret", "--filter", "secret=ev")
    assert kept == "secret\n" * 2


def test_tasks_are_told_to_those_who_ask(lab: Lab):
    with events(lab, "m1", "--filter", "type=task", "--filter", "event=update") as heard:
        lab.swarmctl("service", "create", "-d", "--name", "tasks", *BRIEF, "web:1")
        eventually("it runs", lambda: lab.running("tasks"))
        output(lab, "service", "rm", "tasks")
    changes = [about for _, about in told(heard, "task") if about["service"] == "tasks"]
    assert "running" in [about.get("state.new") for about in changes]
    assert len({about["name"] for about in changes}) == 1


def test_a_worker_tells_of_its_own_containers_alone(lab: Lab):
    with events(lab, "w1", "--filter", "scope=swarm") as heard:
        output(lab, "secret", "create", "ev", "-", stdin="x")
        output(lab, "secret", "rm", "ev")
    assert heard == []


def test_a_node_tells_what_happens_to_the_containers_of_its_tasks(lab: Lab):
    check = (
        "--health-cmd",
        "set -C; echo > /once",
        "--health-interval",
        "1s",
        "--health-retries",
        "1",
    )
    where = ("--constraint", "node.hostname==w1", *BRIEF)
    with events(lab, "w1", "--filter", "type=container") as heard:
        lab.swarmctl("service", "create", "-d", "--name", "ill", *check, *where, "web:1")
        eventually("it is replaced", lambda: len(lab.tasks("ill")) > 1)
        output(lab, "service", "rm", "ill")
    first = heard[0]["Actor"]["ID"]
    actions = [
        one["Action"]
        for one in heard
        if one["Actor"]["ID"] == first and not one["Action"].startswith("exec_")
    ]
    assert actions == [
        "create", "start", "health_status: healthy", "health_status: unhealthy", "die", "destroy",
    ]  # fmt: skip
    assert {one["scope"] for one in heard} == {"local"}


def test_events_go_on_when_the_manager_was_killed(lab: Lab):
    pid_file = socket_of(lab, "m1").parent / "manager.pid"

    def pid() -> int:
        words = pid_file.read_text().split() if pid_file.exists() else []
        return int(words[0]) if words else 0

    with events(lab, "m1", "--filter", "type=secret") as heard:
        output(lab, "secret", "create", "before", "-", stdin="x")
        killed = pid()
        os.kill(killed, signal.SIGKILL)
        eventually("it is back", lambda: pid() not in {0, killed})
        remove = ("secret", "rm", "before")
        eventually("it answers", lambda: docker(lab, "m1", *remove)[0] == 0)
        time.sleep(3.0)  # longer than the pause between two attempts to follow it
    actions = [(one["Action"], one["Actor"]["Attributes"]["name"]) for one in heard]
    assert actions == [("create", "before"), ("remove", "before")]


def test_docker_py_follows_the_swarm(lab: Lab):
    client = docker_py.DockerClient(
        base_url=f"unix://{socket_of(lab, 'm1')}", version="auto", timeout=60
    )
    begun = time.time()
    try:
        stream = client.events(decode=True, filters={"type": "config"}, since=begun)
        config = client.configs.create(name="ev", data=b"x")
        first = next(stream)
        assert (first["Action"], first["Actor"]["ID"]) == ("create", config.id)
        config.remove()
        assert next(stream)["Action"] == "remove"
        stream.close()
        eventually("no name is left", lambda: not client.configs.list(filters={"name": "ev"}))
    finally:
        client.close()
