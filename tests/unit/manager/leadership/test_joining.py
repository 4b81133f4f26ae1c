"""A manager that asks to be let in: what it is refused with, and when waiting helps no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from typing_extensions import override

from manager.consensus.roster import Member
from manager.leadership.joining import PROBES_MAX, NotJoined, ask_to_join
from shoal.api.v1 import raft_pb2
from shoal.api.v1.raft_pb2_grpc import (
    RaftMembershipServicer,
    add_RaftMembershipServicer_to_server,
)
from shoal.errors import NotLeader, PermissionDenied, SwarmError, Unavailable, Unreachable
from shoal.security.grpc_tls import local_channel
from shoal.wire.errors import ErrorInterceptor

ME = Member(7, "n" * 25, "192.0.2.7:2377")
NOBODY = Unreachable("192.0.2.7:2377 does not answer")


class Others(RaftMembershipServicer):
    """Refuse with one error after the other, then let in."""

    def __init__(self, errors: list[SwarmError]) -> None:
        self.errors = errors

    @override
    async def Join(self, request, context):
        if self.errors:
            raise self.errors.pop(0)
        return raft_pb2.JoinRaftResponse(
            members=[raft_pb2.RaftMember(raft_id=request.raft_id, address=request.address)]
        )


@asynccontextmanager
async def others(directory: Path, *errors: SwarmError) -> AsyncIterator[str]:
    path = directory / "others.sock"
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    add_RaftMembershipServicer_to_server(Others(list(errors)), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield str(path)
    finally:
        await server.stop(None)


async def reasons(directory: Path, *errors: SwarmError) -> list[NotJoined]:
    """What is told until this manager is let in."""
    told: list[NotJoined] = []
    async with others(directory, *errors) as address, asyncio.timeout(40):
        (member,) = await ask_to_join(
            ME, [address], lambda path: local_channel(Path(path)), tell=told.append
        )
    assert (member.raft_id, member.address) == (ME.raft_id, ME.address)
    return told


async def test_an_address_where_nobody_answers_is_wrong_but_is_tried_again(tmp_path: Path):
    told = await reasons(tmp_path, *[NOBODY] * (PROBES_MAX + 1))
    assert [one.stuck for one in told] == [False] * (PROBES_MAX - 1) + [True] * 2
    assert {one.reason for one in told} == {NOBODY.message}


async def test_managers_that_cannot_decide_say_nothing_about_the_address(tmp_path: Path):
    passing = (Unavailable("later"), NotLeader("another one leads"), Unavailable("later"))
    told = await reasons(tmp_path, NOBODY, *passing)
    assert not any(one.stuck for one in told)


async def test_any_other_refusal_ends_it(tmp_path: Path):
    with pytest.raises(PermissionDenied, match="removed"):
        await reasons(tmp_path, NOBODY, PermissionDenied("this node was removed"))
