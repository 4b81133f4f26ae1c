"""The gRPC server on `<run>/swarmd.sock`: NodeControl, and everything else passed on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from shoal.api.v1 import node_pb2_grpc
from shoal.errors import FailedPrecondition
from shoal.security.grpc_tls import server_options
from shoal.settings.sockets import open_to_group
from shoal.wire.errors import ErrorInterceptor
from swarmd.node_server import NodeServer
from swarmd.proxy import Proxy

CONCURRENT_CALLS_MAX = 1_000
_GRACE_S = 1.0


@asynccontextmanager
async def serve(socket_path: Path, node_server: NodeServer, proxy: Proxy) -> AsyncIterator[None]:
    """Serve until left. The caller holds the lock of the run directory.

    Raises: FailedPrecondition when the socket cannot be made.
    """
    await asyncio.to_thread(socket_path.unlink, missing_ok=True)  # a killed daemon's
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor()],
        options=server_options(),
        maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX,
    )
    node_pb2_grpc.add_NodeControlServicer_to_server(node_server, server)
    server.add_generic_rpc_handlers((proxy,))
    try:
        server.add_insecure_port(f"unix:{socket_path}")
    except RuntimeError as error:
        raise FailedPrecondition(f"{socket_path}: cannot be listened on: {error}") from error
    await server.start()
    try:
        await asyncio.to_thread(open_to_group, socket_path)
        yield
    finally:
        await server.stop(_GRACE_S)
