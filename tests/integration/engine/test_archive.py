"""`docker cp`, `diff` and `export` with the real command line."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.engine.daemon import DEADLINE_S, DOCKER, EngineNode
from tests.integration.engine.seeded import (
    UnixConnection,
    ask,
    ok,
    refused,
    remains,
    until,
)

pytestmark = pytest.mark.root
MAKE = "mkdir -p /d/e; echo text >/d/e/f; ln -s /d/e /way; rm /bin/awk; echo ready; sleep 600"


@pytest.fixture
def node(seeded: EngineNode) -> EngineNode:
    return seeded


@pytest.fixture
def container(node: EngineNode) -> Iterator[str]:
    """`box`, which has changed something and runs."""
    ok(node, "run", "-d", "--name", "box", "--network", "none", "busybox", "sh", "-c", MAKE)
    until(lambda: "/way" in ok(node, "diff", "box") and "/bin/awk" in ok(node, "diff", "box"))
    yield "box"
    ok(node, "rm", "-f", "box")
    until(lambda: not remains(node))


def piped(node: EngineNode, *arguments: str, given: bytes = b"") -> bytes:
    """Bytes of a docker command, which reads `given`."""
    assert DOCKER is not None
    done = subprocess.run(
        [DOCKER, "-H", f"unix://{node.socket}", *arguments],
        input=given, capture_output=True, timeout=DEADLINE_S, check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(node.base / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getnames()


@pytest.mark.parametrize("running", [True, False])
def test_copy_both_ways(node: EngineNode, container: str, tmp_path: Path, running: bool):
    if not running:
        ok(node, "kill", container)
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(b"1" * 300_000)
    (tree / "link").symlink_to("sub/file")
    ok(node, "cp", str(tree), f"{container}:/tmp")
    ok(node, "cp", f"{tree}/sub/file", f"{container}:/tmp/other")
    ok(node, "cp", f"{container}:/tmp/tree", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/file").read_bytes() == b"1" * 300_000
    assert os.readlink(tmp_path / "back/link") == "sub/file"
    ok(node, "cp", f"{container}:/tmp/other", str(tmp_path / "other"))
    assert (tmp_path / "other").stat().st_size == 300_000
    ok(node, "cp", "-L", f"{container}:/way/f", str(tmp_path / "f"))
    assert (tmp_path / "f").read_text() == "text\n"
    assert names(piped(node, "cp", f"{container}:/d/.", "-")) == [".", "./e", "./e/f"]
    with tarfile.open(fileobj=(packed := io.BytesIO()), mode="w:gz") as tar:
        tar.add(tree, "gz")
    piped(node, "cp", "-", f"{container}:/way", given=packed.getvalue())
    assert "e/gz/sub/file" in names(piped(node, "cp", f"{container}:/d/e", "-"))


def test_copy_is_refused_in_docker_s_words(node: EngineNode, container: str, tmp_path: Path):
    (tmp_path / "f").write_text("x")
    where = str(tmp_path / "f")
    assert refused(node, "cp", f"{container}:/nosuch", ".") == (
        f"Could not find the file /nosuch in container {container}"
    )
    assert "no such directory" in node.docker("cp", where, f"{container}:/nosuch/").err
    assert refused(node, "cp", "nobody:/x", ".") == "No such container: nobody"
    status, words = ask(node, "GET", f"/containers/{container}/archive")
    assert (status, words["message"]) == (400, "bad parameter: path cannot be empty")
    status, words = ask(node, "PUT", f"/containers/{container}/archive?path=/d/e/f")
    assert (status, words["message"]) == (400, "extraction point is not a directory")


def test_head_tells_what_is_there(node: EngineNode, container: str):
    def head(path: str) -> dict[str, object]:
        connection = UnixConnection(str(node.socket))
        try:
            connection.request("HEAD", f"/v1.41/containers/{container}/archive?path={path}")
            answer = connection.getresponse()
            assert answer.status == 200
            text = answer.getheader("X-Docker-Container-Path-Stat")
        finally:
            connection.close()
        assert text is not None
        found: dict[str, object] = json.loads(base64.b64decode(text))
        return found

    link = head("/way")
    assert link["name"] == "way"
    assert link["linkTarget"] == "/d/e"
    assert link["mode"] == (1 << 27) | 0o777
    assert head("/way/")["mode"] == (1 << 31) | 0o755
    assert head("/d/e/f")["size"] == 5
    assert str(head("/d/e/f")["mtime"]).endswith("Z")
    assert head("/")["name"] == "/"


def test_neither_host_nor_kernel_is_shown(node: EngineNode, container: str):
    """What is mounted for the container's processes is no file of the container's."""
    shown = names(piped(node, "cp", f"{container}:/", "-"))
    assert "/etc/hosts" in shown
    assert not [name for name in shown if name.startswith(("/proc/", "/sys/", "/dev/"))]
    for path in ("/proc/1/root/etc/shadow", "/dev/mem", "/sys/kernel"):
        assert "Could not find" in refused(node, "cp", f"{container}:{path}", "-")


def test_diff_and_export(node: EngineNode, container: str):
    expected = ["C /bin", "D /bin/awk", "A /d", "A /d/e", "A /d/e/f", "A /way"]
    assert ok(node, "diff", container).splitlines() == expected
    running = names(piped(node, "export", container))
    assert {".dockerenv", "bin/busybox", "d/e/f", "way", "proc"} <= set(running)
    assert "bin/awk" not in running
    assert not [name for name in running if name.startswith(("proc/", "/"))]
    ok(node, "kill", container)
    assert names(piped(node, "export", container)) == running
    assert ok(node, "diff", container).splitlines() == expected


def test_a_start_waits_for_a_copy(node: EngineNode, container: str):
    """A container at rest is not started while its files are laid out for somebody."""
    ok(node, "kill", container)
    slow = UnixConnection(str(node.socket))
    try:
        slow.putrequest("PUT", f"/containers/{container}/archive?path=/tmp")
        slow.putheader("Transfer-Encoding", "chunked")
        slow.endheaders()
        head = tarfile.TarInfo("f").tobuf()
        slow.send(f"{len(head):x}\r\n".encode() + head + b"\r\n")
        mounts = f"/proc/{child_of(node)}/mountinfo"
        until(lambda: container_dir(node) in Path(mounts).read_text())
        start = subprocess.Popen(
            [DOCKER or "docker", "-H", f"unix://{node.socket}", "start", container],
            stdout=subprocess.DEVNULL,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            start.wait(1.0)
    finally:
        slow.close()
    assert start.wait(DEADLINE_S) == 0


def container_dir(node: EngineNode) -> str:
    return str(node.state / "worker" / "containers")


def child_of(node: EngineNode) -> int:
    """The process that works in a container's files for the node."""
    found: list[int] = []

    def search() -> bool:
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"worker.files.child" in line and str(node.base).encode() in line:
                found.append(int(entry.name))
        return bool(found)

    until(search)
    return found[0]
