"""A real etcd server on loopback, with its own directory, that can be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self

import pytest

from manager.etcd.backend import EtcdConsensus
from manager.etcd.client import EtcdClient
from manager.etcd.settings import EtcdSettings, parse_url
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.clock import Clock, SystemClock
from tests.support.ports import free_port

MISSING = "etcd is not installed: apt-get install etcd-server etcd-client"
START_TIMEOUT_S = 60.0

needs_etcd = pytest.mark.skipif(
    shutil.which("etcd") is None or shutil.which("etcdctl") is None, reason=MISSING
)


class Etcd:
    """One member; blocking, so that it may outlive an event loop."""

    def __init__(self, directory: Path, *, name: str = "one", options: Sequence[str] = ()) -> None:
        self.port, self.peer_port = free_port(), free_port()
        self.name = name
        self.cluster: Sequence[Etcd] = (self,)
        self.scheme = "http"
        self.ctl_options: tuple[str, ...] = ()
        self._directory = directory
        self._options = list(options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def peer(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    def url(self, prefix: str = "test", query: str = "") -> str:
        return f"etcd://{self.endpoint}/{prefix}" + (f"?{query}" if query else "")

    def start(self, *, wait: bool = True) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        client = f"{self.scheme}://{self.endpoint}"
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "etcd",
                    "--name", self.name,
                    "--data-dir", str(self._directory / "data"),
                    "--listen-client-urls", client,
                    "--advertise-client-urls", client,
                    "--listen-peer-urls", self.peer,
                    "--initial-advertise-peer-urls", self.peer,
                    "--initial-cluster", ",".join(f"{one.name}={one.peer}" for one in self.cluster),
                    "--logger", "zap",
                    *self._options,
                ],
                stdout=log,
                stderr=log,
                # Version 3.4 does not start on another architecture than amd64 without this.
                env={**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"},
            )  # fmt: skip
        if wait:
            self.wait_listening()

    def wait_listening(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            assert self._process.poll() is None, self.log()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            time.sleep(0.02)
        raise AssertionError(f"etcd does not listen: {self.log()}")

    def kill(self) -> None:
        """Without a chance to write anything more; start it again with `start`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")[-4000:]

    def ctl(self, *arguments: str, text: str = "") -> str:
        """Run etcdctl against this member."""
        endpoint = f"{self.scheme}://{self.endpoint}"
        done = subprocess.run(
            ["etcdctl", "--endpoints", endpoint, *self.ctl_options, *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
            env={**os.environ, "ETCDCTL_API": "3"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def etcd_server(directory: Path, *, options: Sequence[str] = ()) -> Iterator[Etcd]:
    server = Etcd(directory, options=options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def etcd_cluster(directory: Path, size: int = 3) -> Iterator[list[Etcd]]:
    servers = [Etcd(directory / f"m{number}", name=f"m{number}") for number in range(size)]
    for server in servers:
        server.cluster = servers
    try:
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.wait_listening()
        yield servers
    finally:
        for server in servers:
            server.kill()


class Wire:
    """A TCP relay before etcd: hold or drop what goes either way, or cut all connections."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.requests = asyncio.Event()
        self.answers = asyncio.Event()
        self.drop_answers = False
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.requests.set()
        self.answers.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection; new ones are let through."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        both = {writer, far_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer, self.requests))
                group.create_task(self._pump(far_reader, writer, self.answers, back=True))
        except* (OSError, _Ended):
            pass
        finally:
            self._writers -= both
            for one in both:
                one.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: asyncio.Event,
        *,
        back: bool = False,
    ) -> None:
        while piece := await reader.read(65_536):
            await gate.wait()
            if not (back and self.drop_answers):
                writer.write(piece)
                await writer.drain()
        raise _Ended


class _Ended(Exception):
    """One side closed: the other is closed too."""


@asynccontextmanager
async def etcd_store(
    settings: EtcdSettings | str,
    *,
    address: str | None = None,
    lead: bool = True,
    clock: Clock | None = None,
) -> AsyncIterator[tuple[Store, EtcdConsensus]]:
    """A store over etcd; with an address once it leads, or at once."""
    if isinstance(settings, str):
        settings = parse_url(settings)
    store = Store(Tables(), clock or SystemClock())
    consensus = EtcdConsensus(settings, store, address=address)
    store.attach(consensus)
    async with consensus:
        if address is not None and lead:
            async with asyncio.timeout(START_TIMEOUT_S):
                await until_leader(consensus)
        yield store, consensus


async def until_leader(consensus: EtcdConsensus, leader: bool = True) -> int:
    """The fence."""
    async for one in consensus.leadership():
        if one.leader is leader:
            return one.fence
    raise AssertionError


@asynccontextmanager
async def etcd_client(url: str) -> AsyncIterator[EtcdClient]:
    async with EtcdClient(parse_url(url)) as client:
        yield client
