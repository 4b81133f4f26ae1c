"""What swarmd asks of its worker process."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc
import msgspec

from shoal.api.v1 import node_pb2, node_pb2_grpc, types_pb2
from shoal.model.enums import NodeRole
from shoal.security.lock import LockKeys, encode_lock_keys
from shoal.wire.errors import from_rpc_error
from swarmd.upstream import Upstream

RELOAD_TIMEOUT_S = 10.0
REMOVE_TASKS_TIMEOUT_S = 30.0


class MembershipNews(msgspec.Struct, frozen=True):
    """What the managers say of this node. root_pem: every root it has to believe."""

    desired_role: NodeRole
    managers: tuple[str, ...]
    root_pem: bytes
    renew: bool


async def reload_identity(upstream: Upstream, keys: LockKeys) -> None:
    """Let it show the renewed certificate from the next connection on. Raises SwarmError."""
    stub = node_pb2_grpc.WorkerControlStub(await upstream.channel(RELOAD_TIMEOUT_S))
    request = node_pb2.ReloadIdentityRequest(lock_keys=encode_lock_keys(keys))
    try:
        await stub.ReloadIdentity(request, timeout=RELOAD_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


async def watch_membership(upstream: Upstream) -> AsyncGenerator[MembershipNews, None]:
    """The news of its session, for as long as the worker runs. Raises SwarmError at the end."""
    stub = node_pb2_grpc.WorkerControlStub(await upstream.channel())
    try:
        async for message in stub.WatchMembership(node_pb2.WatchMembershipRequest()):
            is_manager = message.desired_role == types_pb2.NODE_ROLE_MANAGER
            yield MembershipNews(
                desired_role=NodeRole.MANAGER if is_manager else NodeRole.WORKER,
                managers=tuple(message.managers),
                root_pem=message.root_ca,
                renew=message.renew_certificate,
            )
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


async def reload(upstream: Upstream, keys: LockKeys) -> None:
    """Let it read identity and configuration again. Raises SwarmError."""
    stub = node_pb2_grpc.WorkerControlStub(await upstream.channel(RELOAD_TIMEOUT_S))
    request = node_pb2.ReloadRequest(lock_keys=encode_lock_keys(keys))
    try:
        await stub.Reload(request, timeout=RELOAD_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


async def remove_tasks(upstream: Upstream) -> None:
    """Let it stop its agent and remove every container. Raises SwarmError."""
    stub = node_pb2_grpc.WorkerControlStub(await upstream.channel())
    try:
        await stub.RemoveTasks(node_pb2.RemoveTasksRequest(), timeout=REMOVE_TASKS_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
