"""The manager's own identity while it serves: replaced without dropping a connection.

What is believed is the union of the roots beside the certificate on disk and those of the store:
a manager that lags behind in one of the two still knows every root that is in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import structlog
from typing_extensions import override

from manager.ca.autolock import WantedLock
from manager.ca.server import renewed
from manager.ca.signing import STORED_KEYS, Signer
from manager.store.store import Store
from shoal.aio.observed import Observed
from shoal.api.v1 import ca_pb2, node_pb2
from shoal.api.v1.node_pb2_grpc import ManagerControlServicer
from shoal.clock import Clock
from shoal.errors import FailedPrecondition, PermissionDenied
from shoal.security.grpc_tls import channel_credentials, server_credentials
from shoal.security.identity import NodeIdentity, read_identity
from shoal.security.lock import LockKeys, decode_lock_keys
from shoal.security.peer import PeerVerifier
from shoal.security.roles import LOCAL
from shoal.security.trust import merge_roots

Lock = Callable[[LockKeys], Awaitable[None]]
"""Encrypts what a manager has on its disk with another lock key."""

_log = structlog.get_logger()


class LiveIdentity:
    """The identity in use, the server's TLS and the verifier of peers, always of one generation."""

    def __init__(
        self,
        directory: Path,
        identity: NodeIdentity,
        clock: Clock,
        lock_keys: LockKeys | None = None,
    ) -> None:
        """directory: parent of the identity's directory. lock_keys: what opens it.

        wanted_lock: what the cluster asks of this manager; None until its row is known.
        """
        self._directory = directory
        self.lock_keys = lock_keys or LockKeys()
        self._closed = False
        self.wanted_lock: Observed[WantedLock | None] = Observed(None)
        self._cluster_roots = b""
        self.identity = identity
        self.verifier = PeerVerifier(
            identity.root_pem, cluster_id=identity.peer.cluster_id, clock=clock
        )
        self._tls = server_credentials(
            identity.root_pem, identity.certificate_pem, identity.key_pem
        )

    @property
    def server_credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`; later certificates are shown without binding again."""
        return self._tls.credentials

    @property
    def root_pem(self) -> bytes:
        """Every root that is believed now."""
        return merge_roots(self.identity.root_pem, self._cluster_roots)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a new connection to another manager. Ask again for each connection."""
        identity = self.identity
        return channel_credentials(self.root_pem, identity.certificate_pem, identity.key_pem)

    async def next_lock(self, told: WantedLock | None) -> WantedLock | None:
        """What the cluster asks for, as soon as it is not what was told; None at the end."""
        return await self.wanted_lock.until(
            lambda wanted: self._closed or wanted not in (None, told)
        )

    def close(self) -> None:
        """Nobody waits any more: the manager stops."""
        self._closed = True
        self.wanted_lock.set(None)

    def believe(self, root_pem: bytes) -> None:
        """Believe the roots of the store too, from now on."""
        if root_pem != self._cluster_roots:
            self._cluster_roots = root_pem
            self._apply()

    async def reload(self, lock_keys: LockKeys | None = None) -> None:
        """Use the identity on disk. Raises FailedPrecondition if it is another node's, or damaged.

        Its role does not matter here: whether a manager runs at all is swarmd's decision.
        """
        lock_keys = lock_keys or LockKeys()
        identity = await asyncio.to_thread(read_identity, self._directory, lock_keys)
        old = self.identity.peer
        if (identity.peer.node_id, identity.peer.cluster_id) != (old.node_id, old.cluster_id):
            raise FailedPrecondition("the identity on disk is another node's: restart the manager")
        self.identity, self.lock_keys = identity, lock_keys
        self._apply()
        _log.info("identity.reloaded", role=identity.peer.role)

    def _apply(self) -> None:
        roots = self.root_pem
        self._tls.renew(roots, self.identity.certificate_pem, self.identity.key_pem)
        self.verifier.replace_roots(roots)


class ManagerControlServer(ManagerControlServicer):
    """Serves `shoal.api.v1.ManagerControl` to swarmd."""

    def __init__(
        self,
        live: LiveIdentity,
        store: Store,
        clock: Clock,
        *,
        lock: Lock,
        signer: Signer = STORED_KEYS,
    ) -> None:
        self._live = live
        self._signer = signer
        self._store = store
        self._clock = clock
        self._lock = lock

    @override
    async def ReloadIdentity(
        self,
        request: node_pb2.ReloadIdentityRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> node_pb2.ReloadIdentityResponse:
        lock_keys = decode_lock_keys(request.lock_keys)
        await self._live.reload(lock_keys)
        await self._lock(lock_keys)
        return node_pb2.ReloadIdentityResponse()

    @override
    async def RenewExpired(
        self,
        request: ca_pb2.IssueNodeCertificateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ca_pb2.IssueNodeCertificateResponse:
        own = self._live.identity
        now_ns = self._clock.now_ns()
        if now_ns < own.not_after_ns:
            raise FailedPrecondition(
                "the manager's certificate has not expired: the leader renews it"
            )
        if request.token or request.expired.certificate != own.certificate_pem:
            raise PermissionDenied("expired: must prove this manager's own certificate")
        return await renewed(self._store, request, LOCAL, self._signer, now_ns)

    @override
    async def WatchUnlockKey(
        self,
        request: node_pb2.WatchUnlockKeyRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[node_pb2.UnlockKeyNews]:
        told: WantedLock | None = None
        while (told := await self._live.next_lock(told)) is not None:
            key = told.unlock_key
            yield node_pb2.UnlockKeyNews(
                unlock_key=b"" if key is None else key.secret, version=told.since
            )
