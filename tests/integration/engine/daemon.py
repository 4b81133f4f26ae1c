"""The worker process with the engine in it, as swarmd starts it; and the docker command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import groups
from tests.support.patience import FACTOR
from worker.network import netns

DEADLINE_S = 60.0 * FACTOR
DOCKER = shutil.which("docker")


class Ran(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


class EngineNode:
    """A node of its own: directories, control group, process. Close it."""

    def __init__(self, *more: str) -> None:
        """more: arguments of the process beyond those every node needs."""
        self.base = Path(tempfile.mkdtemp(prefix="shoal-en-"))
        self.state, self.run = self.base / "s", self.base / "r"
        for directory in (self.state, self.run, self.base / "home"):
            directory.mkdir()
        self.cgroup_parent = f"/shoal-en-{uuid.uuid4().hex[:8]}"
        self.log = self.base / "log"
        self._more = more
        self.prefix: tuple[str, ...] = ()
        """What the process is started through, for a node that is not in the machine's network."""
        self._node_ns: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """The Docker API."""
        return self.run / "docker.sock"

    def isolate(self) -> Path:
        """Give the node a network of its own, so that its bridges meet nobody else's."""
        path = Path(tempfile.mkdtemp(prefix="shoal-net-")) / "net"
        with netns.fresh(path):
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=DEADLINE_S)
        self._node_ns = path
        self.prefix = ("nsenter", f"--net={path}")
        return path

    def start(self) -> None:
        """Start the process; returns once the API answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self.prefix, sys.executable, "-P", "-m", "engine",
                    "--state-dir", str(self.state), "--run-dir", str(self.run),
                    "--hostname", "node-1", "--cgroup-parent", self.cgroup_parent, *self._more,
                ],
                stderr=log,
            )  # fmt: skip
        deadline_s = time.monotonic() + DEADLINE_S
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise AssertionError(self.log.read_text())
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the process; its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(DEADLINE_S)
        self._process = None
        return code

    def close(self) -> None:
        """End everything and leave nothing."""
        if self._process is not None:
            self.stop()
        groups.end_all(self.cgroup_parent)  # containers outlive the process, and the helpers
        for name in ("keeper", "supervisor", "logger", "resolver", "relay"):
            self._end(name)
        self.uninstall()
        groups.end_all(self.cgroup_parent)
        shutil.rmtree(self.base)
        if self._node_ns is not None:
            netns.drop(self._node_ns)
            self._node_ns.parent.rmdir()

    def uninstall(self) -> None:
        """Take what containers stand on off the machine."""
        if (self.run / "local" / "netns").exists():
            subprocess.run(
                [*self.prefix, sys.executable, "-P", "-m", "worker.network.local",
                 "--state-dir", str(self.state), "--run-dir", str(self.run)],
                check=True, timeout=DEADLINE_S,
            )  # fmt: skip

    def _end(self, name: str) -> None:
        try:
            pid = int((self.run / f"{name}.pid").read_text().split()[0])
            os.kill(pid, signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
            return
        deadline_s = time.monotonic() + DEADLINE_S
        while os.path.exists(f"/proc/{pid}"):
            assert time.monotonic() < deadline_s, f"{name} does not end"
            time.sleep(0.02)

    def docker(self, *arguments: str, host: str = "") -> Ran:
        """Run the docker command line."""
        assert DOCKER is not None
        done = subprocess.run(
            [DOCKER, "-H", host or f"unix://{self.socket}", *arguments],
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(self.base / "home")},
        )  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)

    def docker_json(self, *arguments: str) -> Any:
        """What a command prints with `--format '{{json .}}'`."""
        ran = self.docker(*arguments, "--format", "{{json .}}")
        assert ran.code == 0, ran.err
        return json.loads(ran.out)
