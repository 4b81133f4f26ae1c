"""Input that is no good, and `kill -9` of the process in the midst of what takes long.

Afterwards there is what was there before, or the whole of what was asked for, and it can be asked
for again. A container that runs all the while is not touched.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.integration.engine.daemon import DOCKER, EngineNode
from tests.integration.engine.seeded import (
    UnixConnection,
    ok,
    remains,
    seeded_node,
    state_of,
    until,
)
from tests.support.registry import MISSING, REGISTRY, a_registry
from worker.runtime.lean import cgroups

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(DOCKER is None, reason="the docker command line is not installed"),
]
MAKE_NODE = partial(seeded_node, isolated=False)
NONE = ("--network", "none")
ROUNDS = int(os.environ.get("SHOAL_KILL_ROUNDS", "1"))
LAYER_BYTES = 1_000_000


@pytest.fixture
def bystander(node: EngineNode) -> Iterator[int]:
    """The process of a container that runs all the while."""
    ok(node, "run", "-d", "--name", "bystander", *NONE, "busybox", "sleep", "600")
    pid = state_of(node, "bystander")["Pid"]
    yield pid
    assert state_of(node, "bystander")["Pid"] == pid
    for container in ok(node, "ps", "-aq").split():
        ok(node, "rm", "-f", container)
    until(lambda: not remains(node))


def send(node: EngineNode, method: str, path: str, body: bytes, kind: str) -> tuple[int, str]:
    """Status and text of an answer."""
    connection = UnixConnection(str(node.socket))
    try:
        connection.request(method, path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def everything(node: EngineNode) -> list[str]:
    """What the node has, by name."""
    return [
        *ok(node, "ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.State}}").splitlines(),
        *ok(node, "images", "-aq", "--no-trunc").splitlines(),
        *ok(node, "volume", "ls", "-q").splitlines(),
        *ok(node, "network", "ls", "-q", "--no-trunc").splitlines(),
    ]


def temporary(node: EngineNode) -> list[str]:
    """Files of work that is under way, or was cut short."""
    images = node.state / "images/content"
    places = (images / "ingest/trash", node.state / "engine/builds", node.state / "worker/trash",
              node.state / "engine/committing")  # fmt: skip
    found = [str(path) for place in places if place.is_dir() for path in place.iterdir()]
    return found + [path.name for path in (images / "ingest").iterdir() if path.name != "trash"]


@pytest.mark.parametrize("body", [b"{", b'"text"', b'{"Image": {}}\xff', b"[1, 2"])
def test_malformed_json_changes_nothing(node: EngineNode, bystander: int, body: bytes):
    before = everything(node)
    for path in (
        "/containers/create", "/containers/bystander/exec", "/containers/bystander/update",
        "/networks/create", "/networks/bridge/connect", "/networks/bridge/disconnect",
        "/volumes/create", "/commit?container=bystander", "/auth",
    ):  # fmt: skip
        status, text = send(node, "POST", path, body, "application/json")
        assert status in {400, 500}, (path, text)
        assert "internal error" not in json.loads(text)["message"], path
    assert everything(node) == before


def an_archive() -> bytes:
    """A tar with one file of a megabyte; cut in two it is no archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = 1 << 20
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/containers/bystander/archive?path=/tmp"),
        ("POST", "/images/load"),
        ("POST", "/images/create?fromSrc=-&repo=cut"),
        ("POST", "/build?t=cut"),
    ],
)
def test_a_truncated_archive_is_refused(node: EngineNode, bystander: int, method: str, path: str):
    before = everything(node)
    whole = an_archive()
    for length in (len(whole) // 2, 700, 100):
        status, text = send(node, method, path, whole[:length], "application/x-tar")
        assert status >= 400 or '"error"' in text, (length, text)
        assert "internal error" not in text, (length, text)
    assert everything(node) == before
    assert not temporary(node)


# kill -9 ------------------------------------------------------------------------------------------


def killed_while(
    node: EngineNode, change: Callable[[], subprocess.Popen[bytes]], takes_s: float
) -> None:
    """Kill the process at moments spread over the time a change takes; start it again."""
    for number in range(ROUNDS):
        client = change()
        time.sleep(takes_s * (number + 1) / (ROUNDS + 1))
        node.stop(signal.SIGKILL)
        client.wait(60)
        node.socket.unlink(missing_ok=True)
        node.start()
        until(lambda: not temporary(node))


def client(node: EngineNode, *words: str) -> subprocess.Popen[bytes]:
    """A docker command, not waited for."""
    assert DOCKER is not None
    environment = {"PATH": os.environ["PATH"], "HOME": str(node.base / "home"),
                   "DOCKER_BUILDKIT": "0"}  # fmt: skip
    return subprocess.Popen(
        [DOCKER, "-H", f"unix://{node.socket}", *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip


def timed(change: Callable[[], subprocess.Popen[bytes]]) -> float:
    """Seconds a change takes when nobody disturbs it."""
    begun_s = time.monotonic()
    assert change().wait(60) == 0
    return time.monotonic() - begun_s


def test_killed_in_an_exec(node: EngineNode, bystander: int):
    """The command runs or does not; no process, pipe or descriptor stays of it."""
    driver = cgroups.find_driver(node.cgroup_parent, Path("/proc/self/mountinfo").read_text())
    container = ok(node, "ps", "-q", "--no-trunc")

    def command() -> subprocess.Popen[bytes]:
        return client(node, "exec", "bystander", "sh", "-c", "sleep 0.1")

    takes_s = timed(command)
    before = _descriptors(node)
    killed_while(node, command, takes_s)
    until(lambda: driver.processes(container) == [bystander])
    until(lambda: _descriptors(node) <= before)
    assert ok(node, "exec", "bystander", "echo", "again") == "again"


def _descriptors(node: EngineNode) -> int:
    """How many the node's small processes hold."""
    pids = [(node.run / f"{name}.pid").read_text().split()[0]
            for name in ("keeper", "supervisor", "logger")]  # fmt: skip
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


@pytest.mark.skipif(REGISTRY is None, reason=MISSING)
def test_killed_in_a_pull(node: EngineNode, bystander: int, tmp_path: Path):
    with a_registry(tmp_path / "registry", inside=node.prefix) as place:
        name = f"{place}/big:1"
        _make_big(node, name)
        ok(node, "push", name)
        ok(node, "rmi", name)
        assert name not in ok(node, "images", "--format", "{{.Repository}}:{{.Tag}}")
        takes_s = timed(lambda: client(node, "pull", name))

        def pull() -> subprocess.Popen[bytes]:
            node.docker("rmi", name)
            return client(node, "pull", name)

        killed_while(node, pull, takes_s)
        ok(node, "pull", name)
        assert ok(node, "run", "--rm", *NONE, name, "sh", "-c", "cat /big? | wc -c") == (
            str(2 * LAYER_BYTES)
        )
        ok(node, "rmi", name)


def _make_big(node: EngineNode, name: str) -> None:
    """An image of two layers that do not compress."""
    context = node.base / "big"
    context.mkdir()
    for number in range(2):
        (context / f"big{number}").write_bytes(os.urandom(LAYER_BYTES))
    lines = ["FROM busybox", *(f"COPY big{number} /big{number}" for number in range(2))]
    (context / "Dockerfile").write_text("\n".join(lines))
    assert client(node, "build", "-t", name, str(context)).wait(60) == 0


def test_killed_in_a_build(node: EngineNode, bystander: int, tmp_path: Path):
    """In each step of it: what copies, what runs, what becomes an image."""
    (tmp_path / "file").write_bytes(os.urandom(LAYER_BYTES))
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nCOPY file /file\nRUN cat /file /file >/twice\nCOPY file /again\n"
    )

    def build() -> subprocess.Popen[bytes]:
        return client(node, "build", "--no-cache", *NONE, "-t", "built", str(tmp_path))

    killed_while(node, build, timed(build))
    until(lambda: ok(node, "ps", "-aq", "--no-trunc").count("\n") == 0)
    assert build().wait(60) == 0
    said = ok(node, "run", "--rm", *NONE, "built", "sh", "-c", "wc -c </twice")
    assert said == str(2 * LAYER_BYTES)


@pytest.mark.skipif(ROUNDS < 2, reason="the store alone is killed in loads by default")
def test_killed_in_a_load(node: EngineNode, bystander: int, tmp_path: Path):
    (tmp_path / "file").write_bytes(os.urandom(LAYER_BYTES))
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY file /file\n")
    assert client(node, "build", "-t", "saved", str(tmp_path)).wait(60) == 0
    ok(node, "save", "-o", str(tmp_path / "saved.tar"), "saved")

    def load() -> subprocess.Popen[bytes]:
        node.docker("rmi", "saved")
        return client(node, "load", "-i", str(tmp_path / "saved.tar"))

    killed_while(node, load, timed(load))
    ok(node, "load", "-i", str(tmp_path / "saved.tar"))
    assert ok(node, "run", "--rm", *NONE, "saved", "sh", "-c", "wc -c </file") == str(LAYER_BYTES)
