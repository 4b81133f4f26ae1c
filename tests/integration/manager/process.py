"""A real manager process on directories as init leaves them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.founding import Founded, found
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.security.grpc_tls import local_channel
from shoal.settings.paths import NodePaths
from tests.support.ports import free_port

DEADLINE_S = 60.0


class ManagerProcess:
    """Start it, kill it, start it again."""

    def __init__(self, directory: Path) -> None:
        self.paths = NodePaths(state=directory / "state", run=directory / "run")
        self.address = f"127.0.0.1:{free_port()}"
        self.paths.run.mkdir(parents=True)
        self.founded = self._initialise()
        self.secrets, self.node_id = self.founded.secrets, self.founded.node_id
        self.cluster_id = self.founded.cluster_id
        self.process: subprocess.Popen[bytes] | None = None
        self._log = (directory / "manager.log").open("ab")

    def _initialise(self) -> Founded:
        return found(self.paths, self.address)

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8")

    def start(self, module: str = "manager", *, before: tuple[str, ...] = ()) -> None:
        """module: what is run in the manager's place, and `before`: its own arguments."""
        command = [
            sys.executable, "-P", "-m", module, *before,
            "--state-dir", str(self.paths.state), "--run-dir", str(self.paths.run),
            "--parent-pid", str(os.getpid()),
        ]  # fmt: skip
        root = str(Path(__file__).parents[3])
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, env={**os.environ, "PYTHONPATH": root}
        )

    async def start_serving(self) -> None:
        """Start, and wait until it answers."""
        self.start()
        async with asyncio.timeout(DEADLINE_S), local_channel(self.paths.manager_socket) as channel:
            request = pb.GetClusterRequest()
            await ControlStub(channel).GetCluster(request, wait_for_ready=True)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=DEADLINE_S)

    def stop(self) -> int:
        """SIGTERM. Result: the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=DEADLINE_S)

    def close(self) -> None:
        self.kill()
        self._log.close()


@contextlib.contextmanager
def a_manager(directory: Path) -> Iterator[ManagerProcess]:
    manager = ManagerProcess(directory)
    try:
        yield manager
    finally:
        manager.close()
