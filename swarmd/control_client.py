"""What swarmd asks of the cluster for its own node: to be no manager any more, to be forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
import structlog

from manager.ca.autolock import WantedLock
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.errors import (
    DeadlineExceeded,
    NotFound,
    PermissionDenied,
    SwarmError,
    Unavailable,
    Unimplemented,
)
from shoal.model.enums import NodeRole
from shoal.model.objects import Node
from shoal.security.grpc_tls import channel_credentials, secure_channel
from shoal.security.identity import NodeIdentity
from shoal.security.unlock import parse_unlock_key
from shoal.wire.errors import from_rpc_error
from shoal.wire.objects import from_pb, to_pb

TIMEOUT_S = 8.0
"""For one call; longer than a manager waits for a leader."""
ATTEMPTS_MAX = 5
_POLL_PERIOD_S = 0.1

AnswerT = TypeVar("AnswerT")

_log = structlog.get_logger()


class ClusterClient:
    """Calls the managers at these addresses, each in turn, as the node with this identity."""

    def __init__(self, addresses: Sequence[str], identity: NodeIdentity) -> None:
        self._addresses = tuple(addresses)
        self._identity = identity

    async def demote(self, *, timeout_s: float) -> None:
        """Make this node a worker, and wait until it has left the consensus group.

        From then on its certificate of a manager is refused, which says the same as the row.
        Raises: what the managers refuse with; DeadlineExceeded.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._wish_to_be_a_worker()
                while True:
                    node = await self._node()
                    if node.certified_role is NodeRole.WORKER:
                        return
                    await asyncio.sleep(_POLL_PERIOD_S)
        except PermissionDenied:
            return  # to the managers it is none any more
        except TimeoutError:
            raise DeadlineExceeded(
                f"the managers did not let this node go within {timeout_s:g} s"
            ) from None

    async def wanted_lock(self, *, timeout_s: float) -> WantedLock:
        """What a manager of this cluster is to be locked with. Raises SwarmError.

        Managers of versions that know no lock ask for none.
        """
        request = pb.GetUnlockKeyRequest()
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._ask(lambda stub: stub.GetUnlockKey(request, timeout=TIMEOUT_S))
        except Unimplemented:
            return WantedLock(None, 0)
        except TimeoutError:
            raise DeadlineExceeded(f"the managers did not answer within {timeout_s:g} s") from None
        key = parse_unlock_key(answer.unlock_key) if answer.unlock_key else None
        return WantedLock(key, answer.version.index)

    async def remove(self, *, timeout_s: float) -> None:
        """Take this node, a worker, out of the cluster's list. Raises SwarmError."""
        request = pb.RemoveNodeRequest(node=self._identity.peer.node_id, force=True)
        try:
            async with asyncio.timeout(timeout_s):
                await self._ask(lambda stub: stub.RemoveNode(request, timeout=TIMEOUT_S))
        except NotFound:
            return
        except TimeoutError:
            raise DeadlineExceeded(f"the managers did not answer within {timeout_s:g} s") from None

    async def _wish_to_be_a_worker(self) -> None:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            node = await self._node()
            if node.spec.desired_role is NodeRole.WORKER:
                return
            request = pb.UpdateNodeRequest(node=node.id)
            request.version.index = node.meta.version.index
            spec = node.spec.replaced(desired_role=NodeRole.WORKER)
            request.spec.CopyFrom(to_pb(spec, type(request.spec)))
            try:
                await self._update(request)
            except SwarmError as error:
                if not error.retryable or attempt == ATTEMPTS_MAX:
                    raise

    async def _update(self, request: pb.UpdateNodeRequest) -> None:
        await self._ask(lambda stub: stub.UpdateNode(request, timeout=TIMEOUT_S))

    async def _node(self) -> Node:
        request = pb.GetNodeRequest(node=self._identity.peer.node_id)
        answer = await self._ask(lambda stub: stub.GetNode(request, timeout=TIMEOUT_S))
        return from_pb(answer.node, Node)

    async def _ask(self, call: Callable[[ControlStub], Awaitable[AnswerT]]) -> AnswerT:
        """The first answer; only managers that cannot serve are passed over."""
        identity = self._identity
        credentials = channel_credentials(
            identity.root_pem, identity.certificate_pem, identity.key_pem
        )
        failure: SwarmError = Unavailable("no manager is known")
        for address in self._addresses:
            async with secure_channel(address, credentials) as channel:
                try:
                    return await call(ControlStub(channel))
                except grpc.aio.AioRpcError as error:
                    failure = from_rpc_error(error)
                    if not failure.retryable:
                        raise failure from error
                    _log.debug("control.not_answered", asked=address, reason=failure.message)
        raise failure
