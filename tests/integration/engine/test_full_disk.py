"""The disk of a node's state is full: what is refused says so, what gives space back works.

Containers that run are not touched, nothing is left of what failed, and it goes on by itself once
there is space.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import ok, refused, remains, seed, state_of, until

pytestmark = pytest.mark.root
NONE = ("--network", "none")
DISK_BYTES = 900 << 20  # nothing is unpacked where less than 512 MiB would stay free
FULL = "no space left on device"
TICK = "while :; do date +%s >/tmp/tick; sleep 0.05; done"


@contextlib.contextmanager
def a_disk(base: Path) -> Iterator[Path]:
    """An ext4 of its own; what is not written takes no space on the machine's."""
    image, place = base / "disk", base / "place"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, timeout=60)
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, timeout=60)
    try:
        yield place
    finally:
        until(lambda: subprocess.run(["umount", str(place)], check=False, timeout=60,
                                     capture_output=True).returncode == 0)  # fmt: skip


@pytest.fixture
def node(tmp_path: Path) -> Iterator[EngineNode]:
    with a_disk(tmp_path) as place:
        made = EngineNode()
        made.state = place
        try:
            made.isolate()
            seed(made)
            made.start()
            yield made
            for container in ok(made, "ps", "-aq").split():
                ok(made, "rm", "-f", container)
        finally:
            made.close()


def fill(node: EngineNode) -> Path:
    """Take every block that is left."""
    filler = node.state / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while free := os.statvfs(node.state).f_bavail // 2:
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free * 4096)
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


def test_a_full_disk(node: EngineNode, tmp_path: Path):
    begin = ("run", "-d", *NONE, "--name")
    for name, script in (("ticks", TICK), ("stays", "sleep 600"), ("leaves", "sleep 600")):
        ok(node, *begin, name, *(("--tmpfs", "/tmp") if name == "ticks" else ()), "busybox", "sh",
           "-c", script)  # fmt: skip
    ok(node, "create", *NONE, "--name", "waits", "busybox", "true")
    pids = {name: state_of(node, name)["Pid"] for name in ("ticks", "stays")}
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM busybox\nCOPY Dockerfile /d\n")
    filler = fill(node)
    for words in (
        (*begin, "new", "busybox", "sleep", "600"),
        ("start", "waits"),
        ("rename", "waits", "other"),
        ("commit", "ticks", "image"),
        ("commit", "--pause=false", "ticks", "image"),
        ("tag", "busybox", "name"),
        ("volume", "create", "data"),
        ("network", "create", "net"),
        ("update", "--cpus", "0.5", "ticks"),
        ("cp", "/bin/busybox", "waits:/file"),
    ):
        assert FULL in refused(node, *words).lower(), words
    assert FULL in node.docker("pause", "ticks").err
    assert node.docker("build", str(tmp_path / "context")).code != 0
    assert node.docker("load", "-i", str(node.base / "busybox.tar")).code != 0
    assert FULL in node.docker("import", str(node.base / "busybox.tar"), "imported").err.lower()
    check_untouched(node, pids)
    end_the_supervisor(node)
    check_untouched(node, pids)
    until(lambda: node.docker("top", "ticks").code == 0)
    ok(node, "stop", "-t", "0", "leaves")
    assert state_of(node, "leaves")["ExitCode"] == 137
    ok(node, "kill", "stays")
    ok(node, "rm", "-f", "leaves", "waits", "stays")
    filler.unlink()
    assert ok(node, "run", "--rm", *NONE, "busybox", "echo", "again") == "again"
    assert ok(node, "ps", "-a", "--format", "{{.Names}}") == "ticks"
    assert ok(node, "images", "--format", "{{.Repository}}") == "busybox"
    ok(node, "rm", "-f", "ticks")
    until(lambda: not remains(node))
    ingest = node.state / "images/content/ingest"
    assert [path.name for path in ingest.iterdir()] == ["trash"]
    assert not list((node.state / "engine/builds").iterdir())


def check_untouched(node: EngineNode, pids: dict[str, int]) -> None:
    """They run as before, and one of them says so itself."""
    for name, pid in pids.items():
        assert state_of(node, name)["Pid"] == pid
    tick = Path(f"/proc/{pids['ticks']}/root/tmp/tick")
    before = tick.stat().st_mtime_ns
    until(lambda: tick.stat().st_mtime_ns > before)


def end_the_supervisor(node: EngineNode) -> None:
    """Another one must find the containers without writing anything."""
    path = node.run / "supervisor.pid"
    before = path.read_text()
    os.kill(int(before.split()[0]), signal.SIGKILL)
    until(lambda: path.exists() and path.read_text() not in {"", before})
