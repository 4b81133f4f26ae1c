"""What swarmd asks of its manager process."""

from __future__ import annotations

import grpc

from shoal.api.v1 import node_pb2, node_pb2_grpc
from shoal.wire.errors import from_rpc_error
from swarmd.upstream import Upstream

TIMEOUT_S = 10.0


async def reload_identity(upstream: Upstream) -> None:
    """Let it show the renewed certificate; its connections stay. Raises SwarmError."""
    stub = node_pb2_grpc.ManagerControlStub(await upstream.channel(TIMEOUT_S))
    try:
        await stub.ReloadIdentity(node_pb2.ReloadIdentityRequest(), timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
