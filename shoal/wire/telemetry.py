"""The Telemetry service: what swarmd asks each process of the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from typing_extensions import override

from shoal.api.v1 import node_pb2 as pb
from shoal.api.v1.node_pb2_grpc import TelemetryServicer
from shoal.telemetry.metrics import exposition

Context = grpc.aio.ServicerContext[Any, Any]


class TelemetryServer(TelemetryServicer):
    """Serves `shoal.api.v1.Telemetry` for one process."""

    def __init__(
        self, why_not_ready: Callable[[], str], is_stuck: Callable[[], bool] = lambda: False
    ) -> None:
        """why_not_ready: "" when the process can do its work, the reason otherwise.

        is_stuck: whether that reason does not pass by itself.
        """
        self._why_not_ready = why_not_ready
        self._is_stuck = is_stuck

    @override
    async def GetMetrics(
        self, request: pb.GetMetricsRequest, context: Context
    ) -> pb.GetMetricsResponse:
        return pb.GetMetricsResponse(text=await asyncio.to_thread(exposition))

    @override
    async def GetReadiness(
        self, request: pb.GetReadinessRequest, context: Context
    ) -> pb.GetReadinessResponse:
        reason = self._why_not_ready()
        stuck = bool(reason) and self._is_stuck()
        return pb.GetReadinessResponse(ready=not reason, reason=reason, stuck=stuck)
