"""`docker pull` and `push` against a real registry, in the words the client prints."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.integration.engine.daemon import DOCKER, EngineNode
from tests.integration.engine.seeded import ask, ok, refused, seeded_node
from tests.support.registry import MISSING, PASSWORD, REGISTRY, USER, a_registry

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(DOCKER is None, reason="the docker command line is not installed"),
    pytest.mark.skipif(REGISTRY is None, reason=MISSING),
]
MAKE_NODE = partial(seeded_node, isolated=False)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the registry keeps its images."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def place(node: EngineNode, kept: Path) -> Iterator[str]:
    with a_registry(kept, inside=node.prefix) as address:
        yield address


@pytest.fixture(scope="module")
def guarded(node: EngineNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = tmp_path_factory.mktemp("guarded")
    with a_registry(base, guarded=True, inside=node.prefix) as address:
        yield address


def test_push_and_pull_as_the_client_prints_them(node: EngineNode, place: str) -> None:
    name = f"{place}/lib/bb:v1"
    ok(node, "tag", "busybox", name)
    pushed = ok(node, "push", name).splitlines()
    layer = ask(node, "GET", "/images/busybox/json")[1]["RootFS"]["Layers"][0][7:19]
    assert pushed[:2] == [
        f"The push refers to repository [{place}/lib/bb]", f"{layer}: Preparing",
    ]  # fmt: skip
    assert f"{layer}: Pushed" in pushed
    digest = DIGEST.search(pushed[-1])
    assert digest is not None
    assert pushed[-1].startswith(f"v1: digest: {digest[0]} size: ")
    assert ok(node, "push", "-q", name) == name
    assert f"{layer}: Layer already exists" in ok(node, "push", "-a", f"{place}/lib/bb")

    by_digest = f"{place}/lib/bb@{digest[0]}"
    assert ok(node, "rmi", name) == f"Untagged: {name}\nUntagged: {by_digest}"
    news = [f"Digest: {digest[0]}", f"Status: Downloaded newer image for {name}", name]
    assert ok(node, "pull", name).splitlines() == ["v1: Pulling from lib/bb", *news]
    assert ok(node, "pull", "-q", name) == name
    assert ok(node, "pull", "-a", f"{place}/lib/bb").splitlines() == [
        "v1: Pulling from lib/bb", f"Digest: {digest[0]}",
        f"Status: Image is up to date for {place}/lib/bb", f"{place}/lib/bb",
    ]  # fmt: skip
    assert f"Status: Image is up to date for {by_digest}" in ok(node, "pull", by_digest)
    status, found = ask(node, "GET", f"/distribution/{name}/json")
    assert (status, found["Descriptor"]["digest"]) == (200, digest[0])
    assert found["Platforms"][0]["os"] == "linux"
    ok(node, "rmi", name)


def test_a_fresh_pull_tells_each_layer(node: EngineNode, place: str, kept: Path) -> None:
    name = f"{place}/lib/fresh:1"
    ok(node, "tag", "busybox", name)
    ok(node, "push", name)
    other = EngineNode()
    try:
        other.isolate()
        other.start()
        with a_registry(kept, inside=other.prefix) as there:
            lines = ok(other, "pull", f"{there}/lib/fresh:1").splitlines()
        states = [line.partition(": ")[2] for line in lines[1:-3]]
        assert states[0] == "Pulling fs layer"
        assert states[-1] == "Pull complete"
        assert {"Verifying Checksum", "Download complete"} <= set(states)
        command = ("--network", "none", f"{there}/lib/fresh:1", "echo", "it runs")
        ran = other.docker("run", "--rm", *command)
        assert ran.out == "it runs\n", ran
    finally:
        other.close()
    ok(node, "rmi", name)


def test_refusals_as_recorded(node: EngineNode, place: str) -> None:
    missing = "manifest unknown: manifest unknown"
    for name, shown in {
        f"{place}/lib/bb:nosuch": f"{place}/lib/bb:nosuch",
        f"{place}/nosuch": f"{place}/nosuch:latest",
    }.items():
        assert refused(node, "pull", name) == f"manifest for {shown} not found: {missing}"
    assert ask(node, "GET", f"/distribution/{place}/nosuch:v1/json") == (404, {"message": missing})
    ran = node.docker("push", f"{place}/nosuch:1")
    assert (ran.code, ran.err.strip()) == (
        1, f"An image does not exist locally with the tag: {place}/nosuch",
    )  # fmt: skip
    assert "unknown operating system" in refused(node, "pull", "--platform", "x/y", "busybox")
    status, _ = ask(node, "POST", "/images/create?fromImage=127.0.0.1:1/a&tag=b")
    assert status == 500  # nobody is there
    assert ask(node, "POST", "/images/create")[0] == 400
    assert ask(node, "POST", "/images/create?fromSrc=http://x/y")[0] == 501


def test_login_is_used(node: EngineNode, guarded: str) -> None:
    name = f"{guarded}/secret/bb:1"
    ok(node, "tag", "busybox", name)
    ran = node.docker("push", name)
    assert (ran.code, "no basic auth credentials" in ran.err) == (1, True), ran
    ok(node, "login", "-u", USER, "-p", PASSWORD, guarded)
    ok(node, "push", name)
    ok(node, "rmi", name)
    assert ok(node, "pull", "-q", name) == name
    ok(node, "logout", guarded)
    assert "no basic auth credentials" in refused(node, "pull", name)
    ok(node, "rmi", name)


def test_events(node: EngineNode, place: str) -> None:
    name = f"{place}/lib/told:1"
    ok(node, "tag", "busybox", name)
    ok(node, "push", name)
    ok(node, "pull", name)
    ok(node, "rmi", name)
    text = ok(
        node, "events", "--since", "1h", "--until", f"{time.time():.9f}", "--filter", "type=image",
        "--format", "{{json .}}",
    )  # fmt: skip
    told = [json.loads(line) for line in text.splitlines()]
    found = [(one["Action"], one["Actor"]["ID"]) for one in told if name in json.dumps(one)]
    assert [action for action, _ in found] == ["tag", "push", "pull"]
    assert told[-1]["Action"] == "untag"
