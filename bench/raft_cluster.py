"""Clusters of one or three members on loopback, ours and etcd's, behind one face.

Both are spoken to with etcd's `Put`, over HTTP/2 without TLS. Invariant: when the context ends,
their processes are gone. etcd runs with the defaults of its package (heartbeat 100 ms, election
1 s), which are ours too; its members speak without TLS and write unencrypted, ours do both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc
import msgspec

from bench.lab import cpu_s
from bench.raft_member import Answer, Load, MemberPlan, Request, arguments
from manager.consensus.roster import Member
from shoal.etcd.v1 import rpc_pb2
from shoal.ids import ClusterId, NodeId, new_id
from shoal.security.identity import make_identity, write_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA

START_TIMEOUT_S = 60.0
POLL_S = 0.02
PUT_TIMEOUT_S = 5.0


def why_not() -> str:
    """Why etcd cannot be measured here; "" when it can."""
    missing = [name for name in ("etcd", "h2load") if shutil.which(name) is None]
    return f"{', '.join(missing)} not installed: run `make bench-peers`" if missing else ""


class Server:
    """A member's process, and a channel to it."""

    def __init__(self, words: Sequence[str], directory: Path, port: int) -> None:
        self.port = port
        self._words = words
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)
        self.open()

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self._words[0]} has ended: {self._log.read_text()[-2000:]}")
        return self._process.pid

    def open(self) -> None:
        """A new channel, which connects at once."""
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200))
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)

    def start(self) -> None:
        """Start the process."""
        with self._log.open("ab") as log:
            environment = {**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"}
            self._process = subprocess.Popen(self._words, stdout=log, stderr=log, env=environment)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def call(self, method: str, request: Any, answer: Any, timeout_s: float) -> Any:
        """One call; answers raise grpc.aio.AioRpcError."""
        call: Any = self.channel.unary_unary(
            method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return await call(request, timeout=timeout_s)

    async def put(self, key: str, value: bytes, timeout_s: float = PUT_TIMEOUT_S) -> int:
        """Write a key; the revision after it."""
        request = rpc_pb2.PutRequest(key=key.encode(), value=value)
        answer = await self.call("/etcdserverpb.KV/Put", request, rpc_pb2.PutResponse, timeout_s)
        return int(answer.header.revision)


class Cluster(Protocol):
    """What is compared."""

    name: str
    servers: list[Server]

    async def leads(self, server: Server) -> bool:
        """Whether the server answers and leads."""
        ...

    async def is_up(self, server: Server) -> bool:
        """Whether the server answers and follows or leads."""
        ...


async def leader_of(cluster: Cluster) -> Server:
    """The leading member, once there is one."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            for server in cluster.servers:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    if await cluster.leads(server):
                        return server
            await asyncio.sleep(POLL_S)


async def until_up(cluster: Cluster, server: Server) -> None:
    """Wait for a member that was started."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                if await cluster.is_up(server):
                    return
            await asyncio.sleep(POLL_S)


def used_s(cluster: Cluster) -> float:
    """Processor time of all members."""
    return sum(cpu_s(server.pid) for server in cluster.servers)


class Etcd:
    """Debian's etcd."""

    name = "etcd"

    def __init__(self, directory: Path, size: int) -> None:
        ports = free_ports(2 * size)
        peers = [f"http://127.0.0.1:{port}" for port in ports[size:]]
        everybody = ",".join(f"m{n}={peer}" for n, peer in enumerate(peers))
        self.servers = [
            Server(
                [
                    "etcd", "--name", f"m{n}", "--data-dir", str(directory / f"m{n}" / "data"),
                    "--listen-client-urls", f"http://127.0.0.1:{ports[n]}",
                    "--advertise-client-urls", f"http://127.0.0.1:{ports[n]}",
                    "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                    "--initial-cluster", everybody, "--logger", "zap", "--log-level", "error",
                ],
                directory / f"m{n}",
                ports[n],
            )
            for n, peer in enumerate(peers)
        ]  # fmt: skip

    async def status(self, server: Server) -> rpc_pb2.StatusResponse:
        """As one member sees it."""
        answer: rpc_pb2.StatusResponse = await server.call(
            "/etcdserverpb.Maintenance/Status", rpc_pb2.StatusRequest(), rpc_pb2.StatusResponse, 1.0
        )
        return answer

    async def leads(self, server: Server) -> bool:
        """See `Cluster`."""
        status = await self.status(server)
        return status.leader == status.header.member_id

    async def is_up(self, server: Server) -> bool:
        """See `Cluster`."""
        return bool((await self.status(server)).leader)


class Shoal:
    """Our members."""

    name = "shoal"

    def __init__(self, directory: Path, size: int) -> None:
        ports = free_ports(2 * size)
        root = RootCA.create(now_ns=time.time_ns())
        cluster_id = ClusterId(new_id())
        self.servers = []
        for n in range(size):
            home, node_id = directory / f"m{n}", NodeId(new_id())
            plan = MemberPlan(
                directory=str(home / "raft"),
                identity=str(home),
                node_id=node_id,
                cluster_id=cluster_id,
                port=ports[size + n],
                client_port=ports[n],
                first=n == 0,
                parent_pid=os.getpid(),
            )
            self.servers.append(Server(arguments(plan), home, ports[n]))
            peer, key = PeerIdentity(node_id, Role.MANAGER, cluster_id), make_key()
            certificate = root.sign(make_csr(key), peer, now_ns=time.time_ns())
            write_identity(home, make_identity(certificate, key, root.certificate_pem))

    async def ask(self, server: Server, request: Request, timeout_s: float = 5.0) -> Answer:
        """One call to a member."""
        call = server.channel.unary_unary(
            "/shoal.bench.Member/Do",
            request_serializer=msgspec.json.encode,
            response_deserializer=msgspec.json.Decoder(Answer).decode,
        )
        answer: Answer = await call(request, timeout=timeout_s)
        return answer

    async def load(self, server: Server, load: Load) -> Answer:
        """Writes from inside of the leader."""
        return await self.ask(server, Request(load=load), load.seconds + 60)

    async def leads(self, server: Server) -> bool:
        """See `Cluster`."""
        return (await self.ask(server, Request(), 1.0)).leads

    async def is_up(self, server: Server) -> bool:
        """See `Cluster`."""
        return (await self.ask(server, Request(), 1.0)).applied > 0

    async def gather(self) -> None:
        """Make the others members."""
        first, *others = self.servers
        await leader_of(self)
        for server in others:
            me: Member = (await self._answer(server)).me
            await self.ask(first, Request(add=me), START_TIMEOUT_S)

    async def _answer(self, server: Server) -> Answer:
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    return await self.ask(server, Request(), 1.0)
                await asyncio.sleep(POLL_S)


@asynccontextmanager
async def cluster_of(cluster: Etcd | Shoal) -> AsyncIterator[None]:
    """Its members run, and one leads."""
    try:
        for server in cluster.servers:
            server.start()
        if isinstance(cluster, Shoal):
            await cluster.gather()
        await leader_of(cluster)
        for server in cluster.servers:
            await until_up(cluster, server)
        yield
    finally:
        for server in cluster.servers:
            server.kill()
            await server.channel.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in found]
