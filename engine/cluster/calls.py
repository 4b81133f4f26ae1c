"""Calls to the cluster over the node's own socket, as swarmctl makes them.

Every unary call has a deadline. What fails says so as Docker does: on a node that is no manager
with 503 and the reason, otherwise with the status and the words that Docker has for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

import grpc

from engine.cluster.standing import Standing
from engine.cluster.words import told
from engine.http.errors import Refused
from shoal.api.v1 import control_pb2_grpc, logs_pb2_grpc, node_pb2, node_pb2_grpc, types_pb2
from shoal.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    PermissionDenied,
    SwarmError,
    Unavailable,
)
from shoal.security.grpc_tls import local_channel
from shoal.wire.errors import from_rpc_error

CALL_TIMEOUT_S = 20.0
PAGE_SIZE = 250

AnswerT = TypeVar("AnswerT")


class Calls:
    """What every part of the client stands on. Close it."""

    def __init__(self, socket: Path) -> None:
        """socket: swarmd's. Where there is none, the node is in no cluster."""
        self._socket = socket
        self._channel = local_channel(socket)
        self._node = node_pb2_grpc.NodeControlStub(self._channel)
        self._control = control_pb2_grpc.ControlStub(self._channel)
        self._logs = logs_pb2_grpc.LogsStub(self._channel)

    async def close(self) -> None:
        """End every call."""
        await self._channel.close()

    async def standing(self) -> Standing:
        """What the node is to its cluster. Raises: SwarmError when its daemon does not answer."""
        if not self._socket.exists():
            return Standing()
        try:
            answer = await self._node.Info(node_pb2.InfoRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return Standing(
            state=answer.state,
            error=answer.error,
            node_id=answer.node_id,
            address=answer.advertise_address,
            is_manager=bool(answer.node_id) and answer.role == types_pb2.NODE_ROLE_MANAGER,
            managers=tuple(answer.managers),
        )

    async def _pages(self, method: Any, request: Any) -> AsyncIterator[Any]:
        """The answers of a list call, page after page."""
        while True:
            answer = await self._call(method(request, timeout=CALL_TIMEOUT_S))
            yield answer
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                return

    async def _call(self, call: Awaitable[AnswerT]) -> AnswerT:
        """The answer of a manager."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise await self._told(from_rpc_error(error)) from error

    async def _told(self, error: SwarmError) -> SwarmError:
        if isinstance(
            error, FailedPrecondition | Unavailable | DeadlineExceeded | PermissionDenied
        ):
            try:
                refusal = (await self.standing()).refusal
            except SwarmError:
                return told(error)
            if refusal:
                return Refused(503, refusal)
        return told(error)
