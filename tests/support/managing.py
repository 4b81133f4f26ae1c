"""A store without a log, a clock by hand, and the manager's servers on a real loopback port."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from manager.permissions import permissions
from manager.store.apply import Commit
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.clock import SystemClock
from shoal.errors import SwarmError
from shoal.ids import ClusterId, NodeId
from shoal.model.objects import AnyObject, StoreAction, StoreEntry
from shoal.model.plan import create, update
from shoal.security.grpc_tls import (
    ServerTls,
    channel_credentials,
    secure_channel,
    server_credentials,
    server_options,
)
from shoal.security.identity import NodeIdentity, make_identity
from shoal.security.interceptor import AuthorizationInterceptor
from shoal.security.keys import make_csr, make_key
from shoal.security.peer import PeerVerifier
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.security.trust import merge_roots
from shoal.wire.errors import ErrorInterceptor
from shoal.wire.objects import entry_to_bytes

CLUSTER = ClusterId("c" * 25)
ROOT = RootCA.create(now_ns=time.time_ns())
DEADLINE_S = 40.0


class HandClock:
    """Both clocks stand still until `advance`."""

    def __init__(self) -> None:
        self.ns = 1_700_000_000_000_000_000

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)

    def now_ns(self) -> int:
        return self.ns

    def monotonic_s(self) -> float:
        return self.ns / 1e9


class MemoryProposer:
    """Applies entries in the order of their proposals, one turn of the loop later, or fails."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.index = store.view.version
        self.entries: list[StoreEntry] = []
        self.error: SwarmError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._turn = asyncio.Lock()

    async def propose(self, entry: StoreEntry) -> Commit:
        async with self._turn:
            await self.gate.wait()
            await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
            self.index += 1
            self.entries.append(entry)
            result = self._store.apply(entry, self.index, len(entry_to_bytes(entry)))
        if isinstance(result, SwarmError):
            raise result
        return result


def a_store(rows: Iterable[AnyObject] = (), clock: Any = None) -> tuple[Store, MemoryProposer]:
    """A store that holds the rows, committed one by one so that each has a version."""
    store = Store(Tables(), clock or HandClock())
    proposer = MemoryProposer(store)
    store.attach(proposer)
    for row in rows:
        put_now(store, proposer, row)
    return store, proposer


def put_now(store: Store, proposer: MemoryProposer, row: AnyObject) -> None:
    """Create or replace an object without waiting; versions are not checked."""
    exists = any(type(old) is type(row) and old.id == row.id for old in store.rows())
    change = update(row) if exists else create(row)
    proposer.index += 1
    entry = StoreEntry(
        actions=(StoreAction(kind=change.kind, object=row),), proposed_at_ns=proposer.index
    )
    result = store.apply(entry, proposer.index, len(entry_to_bytes(entry)))
    assert not isinstance(result, SwarmError), result


def an_identity(node_id: str, role: Role = Role.WORKER) -> NodeIdentity:
    key = make_key()
    peer = PeerIdentity(node_id=NodeId(node_id), role=role, cluster_id=CLUSTER)
    certificate = ROOT.sign(make_csr(key), peer, now_ns=time.time_ns())
    return make_identity(certificate, key, ROOT.certificate_pem)


class Served:
    """Where a server listens."""

    def __init__(
        self,
        port: int,
        socket_path: Path,
        verifier: PeerVerifier,
        tls: ServerTls,
        own: NodeIdentity,
    ) -> None:
        self.port = port
        self.socket_path = socket_path
        self.verifier = verifier
        self._tls = tls
        self._own = own

    def believe(self, *root_pems: bytes) -> None:
        """Believe the nodes of other roots too."""
        roots = merge_roots(ROOT.certificate_pem, *root_pems)
        self.verifier.replace_roots(roots)
        self._tls.renew(roots, self._own.certificate_pem, self._own.key_pem)

    def channel(self, identity: NodeIdentity) -> grpc.aio.Channel:
        credentials = channel_credentials(
            ROOT.certificate_pem, identity.certificate_pem, identity.key_pem
        )
        return secure_channel(f"127.0.0.1:{self.port}", credentials)


@asynccontextmanager
async def served(
    add: Callable[[grpc.aio.Server], None], socket_path: Path
) -> AsyncIterator[Served]:
    """Servers behind mutual TLS and the manager's permissions."""
    identity = an_identity("manager", Role.MANAGER)
    verifier = PeerVerifier(ROOT.certificate_pem, cluster_id=CLUSTER, clock=SystemClock())
    server = grpc.aio.server(
        interceptors=[AuthorizationInterceptor(verifier, permissions()), ErrorInterceptor()],
        options=server_options(),
    )
    add(server)
    tls = server_credentials(identity.root_pem, identity.certificate_pem, identity.key_pem)
    port = server.add_secure_port("127.0.0.1:0", tls.credentials)
    server.add_insecure_port(f"unix:{socket_path}")
    await server.start()
    try:
        yield Served(port, socket_path, verifier, tls, identity)
    finally:
        await server.stop(None)


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until it holds; fails after DEADLINE_S."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(*runs: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Eternal coroutines in the background; one that fails, fails the test."""
    tasks = [asyncio.ensure_future(run()) for run in runs]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [error for error in results if isinstance(error, Exception)]
        assert not failed, failed


async def refusal(call: Awaitable[object]) -> str:
    """`STATUS text` of a call that must fail."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {error.details()}"
    raise AssertionError("the call was not refused")
