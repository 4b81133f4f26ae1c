"""The Raft service: messages and snapshots of other managers, in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
from typing_extensions import override

from manager.consensus.roster import Member, Roster
from manager.transport.codec import messages_of
from manager.transport.metadata import OFFSET_KEY, REMOVED_KEY, Opening, Removed, check, opening_of
from manager.transport.transport import GrpcTransport
from shoal.api.v1 import raft_pb2 as pb
from shoal.api.v1.raft_pb2_grpc import RaftServicer
from shoal.errors import InvalidArgument, Unavailable
from shoal.security.peer import current_peer
from shoal.wire.errors import CODE_KEY

Context = grpc.aio.ServicerContext[Any, Any]


class Standing(Protocol):
    """Knows who is a manager now."""

    def check(self, raft_id: int, node_id: str, roster: Roster) -> None:
        """Raises: PermissionDenied for a node that is a worker by now."""
        ...


class RaftServer(RaftServicer):
    """Serves `shoal.api.v1.Raft` for one transport."""

    def __init__(self, transport: GrpcTransport, standing: Standing | None = None) -> None:
        """standing: None where the store holds no nodes; then certificates alone count."""
        self._transport = transport
        self._standing = standing

    @override
    async def Stream(
        self, request_iterator: AsyncIterator[pb.RaftFrame], context: Context
    ) -> AsyncIterator[pb.RaftNotice]:
        opening = await self._open(context)
        receiver = self._transport.receiver
        self._transport.heard_from(Member(opening.sender, current_peer().node_id, opening.address))
        yield pb.RaftNotice(raft_id=self._transport.me.raft_id)
        roster = receiver.roster
        async for frame in request_iterator:
            messages = messages_of(frame.messages)
            if any(message.sender != opening.sender for message in messages):
                raise InvalidArgument("raft: a message in the name of another member")
            if receiver.roster is not roster or opening.sender not in roster.members:
                await self._check(opening, context)
                roster = receiver.roster
            receiver.deliver(messages)

    @override
    async def SendSnapshot(
        self, request_iterator: AsyncIterator[pb.SnapshotChunk], context: Context
    ) -> pb.SendSnapshotResponse:
        opening = await self._open(context)
        incoming = self._transport.incoming(opening.sender, opening.snapshot)
        await context.send_initial_metadata(((OFFSET_KEY, str(incoming.offset)),))
        async for chunk in request_iterator:
            await incoming.put(chunk)
            if chunk.last:
                await incoming.kept()
                return pb.SendSnapshotResponse()
        raise Unavailable("snapshot: the stream ended before its last chunk")

    async def _open(self, context: Context) -> Opening:
        opening = opening_of(context.invocation_metadata() or ())
        await self._check(opening, context)
        return opening

    async def _check(self, opening: Opening, context: Context) -> None:
        transport, peer = self._transport, current_peer()
        roster = transport.receiver.roster
        try:
            check(opening, peer, roster, transport.me.raft_id)
            if self._standing is not None:
                self._standing.check(opening.sender, peer.node_id, roster)
        except Removed as error:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                error.message,
                ((CODE_KEY, error.code.value), (REMOVED_KEY, "1")),
            )
