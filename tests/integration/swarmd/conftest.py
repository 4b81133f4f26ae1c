"""A daemon in this process with scripted children, and the real command in another."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from shoal.api.v1 import node_pb2_grpc
from shoal.security.grpc_tls import local_channel
from swarmd.app import Daemon
from swarmd.settings import DaemonSettings, make_paths
from tests.integration.swarmd.daemon import scripted

WAIT_S = 60.0


class Node:
    """A directory of its own, a daemon in it, and a channel to that daemon."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.paths = make_paths(base / "state", base / "run")
        self.channel: grpc.aio.Channel | None = None
        self.daemon: Daemon | None = None

    @asynccontextmanager
    async def running(self, **settings) -> AsyncIterator[Node]:
        command = settings.pop("command", scripted)
        settings.setdefault("metrics_address", "127.0.0.1:0")
        self.paths.state.mkdir(parents=True, exist_ok=True)
        made = DaemonSettings(paths=self.paths, hostname="node-1", **settings)
        async with (
            Daemon(made, command=command) as self.daemon,
            local_channel(self.paths.swarmd_socket) as self.channel,
        ):
            yield self

    @property
    def control(self) -> node_pb2_grpc.NodeControlStub:
        return node_pb2_grpc.NodeControlStub(self.channel)

    def tell(self, name: str, text: str = "") -> None:
        (self.paths.state / name).write_text(text)

    def untell(self, name: str) -> None:
        (self.paths.state / name).unlink()

    def calls(self, name: str) -> list[str]:
        path = self.paths.state / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def told(self) -> list[str]:
        """What the worker was asked. That it is to read its identity again is left out: this
        follows the manager's first word about its lock, before or after anything else.
        """
        return [line for line in self.calls("worker") if line != "reload identity"]

    async def until_called(self, name: str, line: str, times: int = 1) -> None:
        await until(lambda: self.calls(name).count(line) >= times)


async def until(condition: Callable[[], object]) -> None:
    """Poll with a deadline."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


@pytest.fixture
def base() -> Iterator[Path]:
    """A short directory: paths of sockets must fit into 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="shoal-t-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def node(base: Path) -> Node:
    return Node(base)


class Launched:
    """swarmd as a process of its own."""

    def __init__(self, base: Path, command: list[str]) -> None:
        self.log = base / "log"
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)

    async def exit_code(self) -> int:
        await until(lambda: self.process.poll() is not None)
        return self.process.returncode


@pytest.fixture
def launch(base: Path) -> Iterator[Callable[..., Launched]]:
    """Start `swarmd` or the daemon with scripted children; ended with the test."""
    started: list[Launched] = []

    def start(*command: str) -> Launched:
        launched = Launched(base, [sys.executable, "-P", *command])
        started.append(launched)
        return launched

    yield start
    for launched in started:
        if launched.process.poll() is None:
            launched.process.terminate()
            try:
                launched.process.wait(15)
            except subprocess.TimeoutExpired:
                launched.process.kill()
        launched.process.wait(5)
