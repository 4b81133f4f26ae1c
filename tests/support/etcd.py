"""A real etcd server on loopback, with its own directory, that can be killed and started again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from manager.etcd.backend import EtcdConsensus
from manager.etcd.client import EtcdClient
from manager.etcd.settings import EtcdSettings, parse_url
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.clock import Clock, SystemClock

MISSING = "etcd is not installed: apt-get install etcd-server etcd-client"
START_TIMEOUT_S = 30.0

needs_etcd = pytest.mark.skipif(
    shutil.which("etcd") is None or shutil.which("etcdctl") is None, reason=MISSING
)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Etcd:
    """One member. `start`, `kill`, `pause`, `resume`; `stop` at the end."""

    def __init__(self, directory: Path, *, name: str = "one", options: Sequence[str] = ()) -> None:
        self.port, self.peer_port = free_ports(2)
        self.name = name
        self.cluster: Sequence[Etcd] = (self,)
        self.scheme = "http"
        self._directory = directory
        self._options = list(options)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def peer(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    def url(self, prefix: str = "test", query: str = "") -> str:
        return f"etcd://{self.endpoint}/{prefix}" + (f"?{query}" if query else "")

    async def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        client = f"{self.scheme}://{self.endpoint}"
        with (self._directory / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
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
                stdout=log,
                stderr=log,
                env={**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"},
            )  # fmt: skip
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await self._listens():
                assert self._process.returncode is None, self.log()
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """As by a power cut of the process; start it again with `start`."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        await self._end(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")[-4000:]

    async def ctl(self, *arguments: str, text: str = "") -> str:
        """Run etcdctl against this member."""
        process = await asyncio.create_subprocess_exec(
            "etcdctl", "--endpoints", f"{self.scheme}://{self.endpoint}", *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "ETCDCTL_API": "3"},
        )  # fmt: skip
        async with asyncio.timeout(START_TIMEOUT_S):
            output, _ = await process.communicate(text.encode())
        assert process.returncode == 0, output.decode()
        return output.decode()

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def _end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)
            await self._process.wait()
        self._process = None


@asynccontextmanager
async def etcd_server(directory: Path, *, options: Sequence[str] = ()) -> AsyncIterator[Etcd]:
    server = Etcd(directory, options=options)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def etcd_cluster(directory: Path, size: int = 3) -> AsyncIterator[list[Etcd]]:
    servers = [Etcd(directory / f"m{number}", name=f"m{number}") for number in range(size)]
    for server in servers:
        server.cluster = servers
    try:
        await asyncio.gather(*(server.start() for server in servers))
        yield servers
    finally:
        for server in servers:
            await server.stop()


@asynccontextmanager
async def etcd_store(
    settings: EtcdSettings | str, *, address: str | None = None, clock: Clock | None = None
) -> AsyncIterator[tuple[Store, EtcdConsensus]]:
    """A store over etcd; with an address only once it leads."""
    if isinstance(settings, str):
        settings = parse_url(settings)
    store = Store(Tables(), clock or SystemClock())
    consensus = EtcdConsensus(settings, store, address=address)
    store.attach(consensus)
    async with consensus:
        if address is not None:
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
