"""How a manager without a log becomes a member: it asks, until it is let in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import grpc
import msgspec
import structlog

from manager.consensus.roster import Member
from shoal.aio.backoff import Backoff
from shoal.aio.cancel import raise_if_cancelled
from shoal.api.v1 import raft_pb2 as pb
from shoal.api.v1.raft_pb2_grpc import RaftMembershipStub
from shoal.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotLeader,
    SequenceConflict,
    SwarmError,
    Unavailable,
    Unreachable,
)
from shoal.wire.errors import from_rpc_error

CALL_TIMEOUT_S = 20.0
PAUSE_MAX_S = 2.0
PROBES_MAX = 2
"""The leader has looked for this manager so often, 5 s each: then its address is wrong."""

_PASSING = (Unavailable, NotLeader, DeadlineExceeded, SequenceConflict, FailedPrecondition)

Dial = Callable[[str], grpc.aio.Channel]


class NotJoined(msgspec.Struct, frozen=True):
    """Why a manager is no member yet. stuck: it does not become one by itself."""

    reason: str
    stuck: bool = False


_log = structlog.get_logger()


async def ask_to_join(
    me: Member,
    addresses: Sequence[str],
    dial: Dial,
    *,
    tell: Callable[[NotJoined], None] = lambda _: None,
) -> list[Member]:
    """Join through one of the managers; the members, this one included.

    The server of this manager must be running: it is called back. Asks for as long as no manager
    can be reached, nobody leads, or the node is not to be a manager (it may be on its way out, or
    be promoted again); also when nobody reaches it, since its address may become reachable. tell:
    is told why it was not let in yet. Raises: what else the leader refuses with.
    """
    if not addresses:
        raise FailedPrecondition(
            "this manager has neither a log nor the address of another manager: leave with"
            " --force, then init or join again"
        )
    backoff, missed = Backoff(max_s=PAUSE_MAX_S), 0
    while True:
        for address in addresses:
            try:
                return await _ask(me, address, dial)
            except _PASSING as error:
                missed += isinstance(error, Unreachable)
                tell(NotJoined(error.message, stuck=missed >= PROBES_MAX))
                _log.warning("raft.not_joined", asked=address, reason=error.message)
            except SwarmError as error:
                tell(NotJoined(error.message))
                raise
            raise_if_cancelled()
        await asyncio.sleep(backoff.next_s())


async def ask_to_leave(raft_id: int, addresses: Sequence[str], dial: Dial) -> None:
    """Be removed, through one of the managers; tries each, twice around.

    A leader that is to go hands over first, so the second one asked may be the one that does it.
    Raises: what the leader refuses with; Unavailable when nobody could be asked.
    """
    error: SwarmError = Unavailable("no manager could be asked")
    for address in (*addresses, *addresses):
        async with dial(address) as channel:
            try:
                await RaftMembershipStub(channel).Leave(
                    pb.LeaveRaftRequest(raft_id=raft_id), timeout=CALL_TIMEOUT_S
                )
            except grpc.aio.AioRpcError as failed:
                error = from_rpc_error(failed)
                if not error.retryable:
                    raise error from failed
            else:
                return
    raise error


async def _ask(me: Member, address: str, dial: Dial) -> list[Member]:
    async with dial(address) as channel:
        try:
            answer = await RaftMembershipStub(channel).Join(
                pb.JoinRaftRequest(raft_id=me.raft_id, address=me.address),
                timeout=CALL_TIMEOUT_S,
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
    return [Member(one.raft_id, one.node_id, one.address) for one in answer.members]
