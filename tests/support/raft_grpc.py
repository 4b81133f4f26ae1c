"""Raft members in one process that talk over real gRPC with mutual TLS on loopback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc

from manager.consensus.changes import MembershipChanges
from manager.consensus.driver import RaftDriver
from manager.consensus.interfaces import Receiver
from manager.consensus.recovery import Place, recover
from manager.leadership.standing import MemberStanding
from manager.permissions import permissions
from manager.raft.messages import Message
from manager.storage.member import Opening
from manager.store.store import Store
from manager.transport.server import RaftServer
from manager.transport.transport import GrpcTransport
from shoal.api.v1 import raft_pb2_grpc
from shoal.clock import SystemClock
from shoal.model.objects import StoreEntry
from shoal.security.grpc_tls import (
    channel_credentials,
    secure_channel,
    server_credentials,
    server_options,
)
from shoal.security.identity import NodeIdentity
from shoal.security.interceptor import AuthorizationInterceptor
from shoal.security.peer import PeerVerifier
from shoal.security.roles import Role
from shoal.wire.errors import ErrorInterceptor
from tests.support.managers import SEGMENT_BYTES
from tests.support.managing import CLUSTER, ROOT, an_identity
from tests.support.ports import free_port


def dial_as(identity: NodeIdentity):
    credentials = channel_credentials(
        ROOT.certificate_pem, identity.certificate_pem, identity.key_pem
    )
    return lambda address: secure_channel(address, credentials)


class CuttableTransport(GrpcTransport):
    """A transport that can be cut off from chosen members, both ways."""

    cut: frozenset[int] = frozenset()

    def send(self, messages: Sequence[Message]) -> None:
        super().send([message for message in messages if message.to not in self.cut])

    def send_snapshot(self, message: Message) -> None:
        if message.to in self.cut:
            self.receiver.report_snapshot(message.to, ok=False)
        else:
            super().send_snapshot(message)

    def attach(self, receiver: Receiver) -> None:
        deliver = receiver.deliver

        def filtered(messages: Sequence[Message]) -> None:
            deliver([message for message in messages if message.sender not in self.cut])

        receiver.deliver = filtered  # type: ignore[method-assign]
        super().attach(receiver)


class GrpcRig:
    """One member behind its own server; the same surface as `MemberRig`."""

    def __init__(self, directory: Path, name: str, **options) -> None:
        self.name = name
        self.port = free_port()
        self.identity = an_identity(f"node{name}", Role.MANAGER)
        opening = Opening(CLUSTER, segment_bytes=SEGMENT_BYTES)
        self.address = f"127.0.0.1:{self.port}"
        self.place = Place(directory, opening, f"node{name}", self.address)
        self.options = options
        self.driver: RaftDriver | None = None

    async def start(self, first_entry: StoreEntry | None = None) -> None:
        recovery = recover(self.place, first_entry)
        self.me = recovery.me
        self.store = Store(recovery.tables, SystemClock(), recovery.history)
        self.transport = CuttableTransport(recovery.me, dial_as(self.identity))
        self.driver = RaftDriver(recovery, self.store, self.transport, **self.options)
        self.store.attach(self.driver)
        self.changes = MembershipChanges(self.driver)
        verifier = PeerVerifier(ROOT.certificate_pem, cluster_id=CLUSTER, clock=SystemClock())
        self.server = grpc.aio.server(
            interceptors=[AuthorizationInterceptor(verifier, permissions()), ErrorInterceptor()],
            options=server_options(),
        )
        self.transport.attach(self.driver)
        standing = MemberStanding(self.store, self.driver.leading, self.driver.is_reachable)
        raft_pb2_grpc.add_RaftServicer_to_server(RaftServer(self.transport, standing), self.server)
        tls = server_credentials(
            ROOT.certificate_pem, self.identity.certificate_pem, self.identity.key_pem
        )
        self.server.add_secure_port(f"127.0.0.1:{self.port}", tls.credentials)
        await self.server.start()
        await self.driver.__aenter__()

    @property
    def running(self) -> RaftDriver:
        assert self.driver is not None
        return self.driver

    async def stop(self) -> None:
        if self.driver is not None:
            driver, self.driver = self.driver, None
            await self.server.stop(None)
            await driver.__aexit__(None, None, None)
            await self.transport.__aexit__(None, None, None)

    @property
    def leads(self) -> bool:
        return self.driver is not None and self.driver.leading.value.ready
