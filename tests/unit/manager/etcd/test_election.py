"""A campaign ends when it is to end, whatever its calls make of that."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from manager.etcd.election import Candidate, Election
from manager.etcd.keys import Keys
from shoal.errors import Unavailable
from shoal.etcd.v1 import rpc_pb2 as pb

DEADLINE_S = 20.0


class DeafClient:
    """An etcd that lets everybody lead. The call `deaf` drops the cancellation that meets it."""

    def __init__(self, deaf: str) -> None:
        self.deaf = deaf
        self.waits = asyncio.Event()

    async def _call(self, name: str) -> None:
        if name != self.deaf:
            return
        self.waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Unavailable(f"etcd: {name}: how the call ended") from None

    async def grant(self, ttl_s: int) -> int:
        await self._call("grant")
        return 7

    async def keep_alive(self, lease: int, *, timeout_s: float) -> None:
        await self._call("keep_alive")

    async def revoke(self, lease: int) -> None:
        pass

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        await self._call("txn")
        return pb.TxnResponse(succeeded=True)

    @asynccontextmanager
    async def watch(self, *_: object, **__: object):
        await self._call("watch")
        await asyncio.Event().wait()
        yield


@pytest.mark.parametrize("deaf", ["grant", "txn", "watch", "keep_alive"])
async def test_a_cancellation_that_a_call_drops_ends_the_campaign_all_the_same(deaf):
    async def catch_up(revision: int) -> None:
        pass

    client = DeafClient(deaf)
    election = Election(client, Keys("p"), Candidate("me:1"), ttl_s=1, catch_up=catch_up)
    campaign = asyncio.create_task(election.run())
    async with asyncio.timeout(DEADLINE_S):
        await client.waits.wait()
        campaign.cancel()
        with pytest.raises(asyncio.CancelledError):
            await campaign
