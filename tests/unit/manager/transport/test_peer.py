"""The stream to another manager, against a real server."""

from __future__ import annotations

import asyncio

import grpc

from manager.consensus.roster import Member
from manager.transport.metadata import REMOVED_KEY
from manager.transport.peer import Peer
from shoal.api.v1.raft_pb2_grpc import RaftServicer, add_RaftServicer_to_server

DEADLINE_S = 20.0
ROUNDS = 150
STEP_S = 2e-5


class Refusing(RaftServicer):
    """Says that whoever comes was removed."""

    async def Stream(self, request_iterator, context):
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "was removed", ((REMOVED_KEY, "1"),))
        yield  # a stream of answers, that has none


class Receiver:
    """What the peer reports."""

    def __init__(self):
        self.removed = 0

    def report_removed(self, raft_id, reason):
        self.removed += 1

    def report_unreachable(self, raft_id):
        """Nobody counts on it."""


async def test_a_peer_that_is_stopped_while_it_is_refused_ends():
    """At whatever moment: the cancellation may meet the end of the call, and be lost there."""
    server = grpc.aio.server()
    add_RaftServicer_to_server(Refusing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    receiver = Receiver()
    try:
        async with asyncio.timeout(DEADLINE_S):
            for number in range(ROUNDS):
                me, other = Member(1, "a", "127.0.0.1:1"), Member(2, "b", f"127.0.0.1:{port}")
                peer = Peer(me, other, grpc.aio.insecure_channel, receiver)
                running = asyncio.create_task(peer.run())
                before = receiver.removed
                if number % 2:
                    while receiver.removed == before:
                        await asyncio.sleep(0)
                else:
                    await asyncio.sleep(number * STEP_S)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
    finally:
        await server.stop(None)
    assert receiver.removed
