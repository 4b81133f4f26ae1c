"""Asks a process of the node for its metrics and whether it is ready."""

from __future__ import annotations

import grpc
import msgspec

from shoal.api.v1 import node_pb2, node_pb2_grpc
from shoal.errors import SwarmError
from shoal.wire.errors import from_rpc_error
from swarmd.upstream import Upstream

TIMEOUT_S = 2.0


class Readiness(msgspec.Struct, frozen=True):
    """Whether a process does its work, and if not, why.

    stuck: the reason does not pass by itself.
    """

    ready: bool
    reason: str = ""
    stuck: bool = False


async def metrics(upstream: Upstream, timeout_s: float = TIMEOUT_S) -> bytes:
    """Its registry in Prometheus text. Raises SwarmError if it does not answer in time."""
    stub = node_pb2_grpc.TelemetryStub(await upstream.channel(0))
    try:
        answer = await stub.GetMetrics(node_pb2.GetMetricsRequest(), timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    return answer.text


async def readiness(upstream: Upstream, timeout_s: float = TIMEOUT_S) -> Readiness:
    """Whether it is ready; a process that does not answer is not."""
    try:
        stub = node_pb2_grpc.TelemetryStub(await upstream.channel(0))
        answer = await stub.GetReadiness(node_pb2.GetReadinessRequest(), timeout=timeout_s)
    except SwarmError as error:
        return Readiness(ready=False, reason=error.message)
    except grpc.aio.AioRpcError as error:
        text = error.details() or error.code().name
        return Readiness(ready=False, reason=f"the {upstream.name} process: {text}")
    return Readiness(ready=answer.ready, reason=answer.reason, stuck=answer.stuck)
