"""What swarmd asks of its manager process."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc

from manager.ca.autolock import WantedLock
from shoal.api.v1 import node_pb2, node_pb2_grpc
from shoal.security.lock import LockKeys, encode_lock_keys
from shoal.security.unlock import UnlockKey
from shoal.wire.errors import from_rpc_error
from swarmd.upstream import Upstream

TIMEOUT_S = 10.0


async def reload_identity(upstream: Upstream, keys: LockKeys) -> None:
    """Let it show the renewed certificate, and encrypt its data keys with the lock key.

    Its connections stay. Raises SwarmError.
    """
    stub = node_pb2_grpc.ManagerControlStub(await upstream.channel(TIMEOUT_S))
    request = node_pb2.ReloadIdentityRequest(lock_keys=encode_lock_keys(keys))
    try:
        await stub.ReloadIdentity(request, timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


async def watch_lock(upstream: Upstream) -> AsyncGenerator[WantedLock, None]:
    """What the cluster asks this manager to be locked with, and every change.

    For as long as the manager runs. Raises SwarmError at the end.
    """
    stub = node_pb2_grpc.ManagerControlStub(await upstream.channel())
    try:
        async for message in stub.WatchUnlockKey(node_pb2.WatchUnlockKeyRequest()):
            key = UnlockKey(message.unlock_key) if message.unlock_key else None
            yield WantedLock(key, message.version)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
