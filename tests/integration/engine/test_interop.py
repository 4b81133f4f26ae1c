"""An image made here runs under a real dockerd, and one made there runs here; skipped without."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.engine.daemon import DEADLINE_S, DOCKER, EngineNode
from tests.integration.engine.seeded import ok, seeded_node
from tests.support.registry import MISSING, REGISTRY, a_registry
from worker.runtime.lean import cgroups

DOCKERD = shutil.which("dockerd")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(DOCKER is None or DOCKERD is None, reason="dockerd is not installed"),
    pytest.mark.skipif(REGISTRY is None, reason=MISSING),
]


@pytest.fixture
def node() -> Iterator[EngineNode]:
    made = seeded_node()
    try:
        made.start()
        yield made
    finally:
        made.close()


class Dockerd:
    """A dockerd of its own, in the node's network."""

    def __init__(self, base: Path, node: EngineNode) -> None:
        self.socket = base / "docker.sock"
        self._cgroup = f"/{base.name}"
        with (base / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *node.prefix, str(DOCKERD), "--data-root", str(base / "data"),
                    "--exec-root", str(base / "exec"), "--pidfile", str(base / "pid"),
                    "--host", f"unix://{self.socket}", "--iptables=false", "--bridge=none",
                    "--cgroup-parent", self._cgroup,
                ],
                stdout=log, stderr=log,
            )  # fmt: skip

    def wait(self) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while self.ran("version").returncode != 0:
            assert time.monotonic() < deadline_s, "dockerd does not start"
            time.sleep(0.1)

    def ran(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(DOCKER), "-H", f"unix://{self.socket}", *arguments],
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
            env={**os.environ, "DOCKER_BUILDKIT": "0"},
        )  # fmt: skip

    def ok(self, *arguments: str) -> str:
        ran = self.ran(*arguments)
        assert ran.returncode == 0, ran
        return ran.stdout.strip()

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(DEADLINE_S)
        cgroups.remove_parent(self._cgroup, Path("/proc/self/mountinfo").read_text())


@contextlib.contextmanager
def a_dockerd(node: EngineNode) -> Iterator[tuple[Dockerd, Path]]:
    base = Path(tempfile.mkdtemp(prefix="shoal-dockerd-", dir="/dev/shm"))
    daemon = Dockerd(base, node)
    try:
        daemon.wait()
        yield daemon, base
    finally:
        daemon.close()
        points = Path("/proc/self/mounts").read_text().split("\n")
        for point in (line.split()[1] for line in points if f" {base}/" in line):
            subprocess.run(["umount", "--lazy", point], check=False)
        shutil.rmtree(base)


def test_images_there_and_back(node: EngineNode) -> None:
    with (
        a_dockerd(node) as (dockerd, base),
        a_registry(base / "registry", inside=node.prefix) as place,
    ):
        ours, theirs = f"{place}/ours:1", f"{place}/theirs:1"
        none = ("run", "--rm", "--network", "none")
        ok(node, "create", "--network", "none", "--name", "maker", "busybox", "sh", "-c",
           "echo ours > /f; rm /etc/passwd")  # fmt: skip
        ok(node, "start", "-a", "maker")
        ok(node, "commit", "maker", ours)
        ok(node, "push", ours)
        dockerd.ok("pull", ours)
        assert dockerd.ok(*none, ours, "sh", "-c", "cat /f; ls /etc/passwd || true") == "ours"
        ok(node, "save", "-o", str(base / "ours.tar"), ours)
        dockerd.ok("rmi", ours)
        assert dockerd.ok("load", "-i", str(base / "ours.tar")) == f"Loaded image: {ours}"
        assert dockerd.ok(*none, ours, "cat", "/f") == "ours"

        context = base / "context"
        context.mkdir()
        (context / "x").write_text("theirs\n")
        (context / "Dockerfile").write_text(f'FROM {ours}\nCOPY x /x\nCMD ["cat","/x"]\n')
        built = dockerd.ok("build", "-q", "-t", theirs, str(context))
        dockerd.ok("push", theirs)
        ok(node, "pull", theirs)
        assert ok(node, *none, theirs) == "theirs"
        assert ok(node, "images", "-q", "--no-trunc", theirs) == built
        dockerd.ok("save", "-o", str(base / "theirs.tar"), theirs)
        ok(node, "rmi", theirs)
        assert ok(node, "load", "-i", str(base / "theirs.tar")) == f"Loaded image: {theirs}"
        assert ok(node, *none, theirs) == "theirs"
