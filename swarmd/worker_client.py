"""What swarmd asks of its worker process."""

from __future__ import annotations

import grpc

from shoal.api.v1 import node_pb2, node_pb2_grpc
from shoal.wire.errors import from_rpc_error
from swarmd.upstream import Upstream

RELOAD_TIMEOUT_S = 10.0
REMOVE_TASKS_TIMEOUT_S = 30.0


async def reload(upstream: Upstream) -> None:
    """Let it read identity and configuration again. Raises SwarmError."""
    stub = node_pb2_grpc.WorkerControlStub(await upstream.channel(RELOAD_TIMEOUT_S))
    try:
        await stub.Reload(node_pb2.ReloadRequest(), timeout=RELOAD_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


async def remove_tasks(upstream: Upstream) -> None:
    """Let it stop its agent and remove every container. Raises SwarmError."""
    stub = node_pb2_grpc.WorkerControlStub(await upstream.channel())
    try:
        await stub.RemoveTasks(node_pb2.RemoveTasksRequest(), timeout=REMOVE_TASKS_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
