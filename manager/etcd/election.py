"""Who leads, by a lease in etcd.

The leader's key is bound to a lease; its create_revision is the fence that every write of that
leader is compared with, so a leader that does not know yet that it was replaced writes nothing.
Leadership ends here before it ends there: a fifth of the lease before it would run out, counted
from when the last renewal was *sent*. It is announced only when the store has caught up with it.

Whoever campaigns also says that it runs, by a key of its own on the same lease. What an earlier run
of the same manager left (it was killed) is taken away first, so that a restart waits for no lease.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import msgspec
import structlog

from manager.etcd.client import EtcdClient
from manager.etcd.errors import Compacted
from manager.etcd.keys import Keys, announcement, campaign, leader_of
from shoal.aio.backoff import Backoff
from shoal.aio.cancel import apart, raise_if_cancelled
from shoal.aio.observed import Observed
from shoal.errors import NotFound, SwarmError, Unavailable
from shoal.etcd.v1 import rpc_pb2 as pb

RENEWALS_PER_TTL = 3
MARGIN = 0.2
"""Part of the lease that is given up, for clocks that run at different rates."""
RETRY_PAUSE_MAX_S = 1.0
REVOKE_TIMEOUT_S = 1.0

_log = structlog.get_logger()


class Leadership(msgspec.Struct, frozen=True):
    """Whether this manager leads.

    fence: rises with every change of the leader; that of the last leader that is known of.
    leader_address: of whoever leads; empty when nobody does, or nobody knows.
    """

    leader: bool = False
    fence: int = 0
    leader_address: str = ""


class Candidate(msgspec.Struct, frozen=True):
    """Who campaigns. node_id: ""; then it tells nobody that it runs."""

    address: str
    node_id: str = ""


class LeadershipLost(Unavailable):
    """The lease was not renewed in time, or somebody took the key away."""


class _Resigned(Exception):
    """We gave the office up."""


class Election:
    """Campaigns for as long as `run` runs."""

    def __init__(
        self,
        client: EtcdClient,
        keys: Keys,
        candidate: Candidate,
        *,
        ttl_s: int,
        catch_up: Callable[[int], Awaitable[None]],
    ) -> None:
        self._client = client
        self._keys = keys
        self._me = candidate
        self._ttl_s = ttl_s
        self._catch_up = catch_up
        self._resign = asyncio.Event()
        self._valid_until_s = 0.0
        self.leadership = Observed(Leadership())
        self.problem = ""
        """Why etcd could not be asked the last time; empty when it could."""

    async def run(self) -> None:
        """Campaign, lead, and again, until cancelled."""
        backoff = Backoff(max_s=RETRY_PAUSE_MAX_S)
        while True:
            pause_s = 0.0
            try:
                await apart(self._candidacy(backoff))
            except* _Resigned:
                _log.info("leadership.resigned")
                pause_s = self._ttl_s * MARGIN  # let another one take it
            except* SwarmError as errors:
                self.problem = _reason(errors)
                _log.warning("leadership.interrupted", reason=self.problem)
                pause_s = backoff.next_s(0)
            raise_if_cancelled()
            await asyncio.sleep(pause_s)

    async def changes(self) -> AsyncIterator[Leadership]:
        """The present state, then every later one; one that is not waited for may be left out."""
        seen = self.leadership.value
        while True:
            yield seen
            seen = await self.leadership.until(partial(operator.ne, seen))

    async def resign(self) -> None:
        """Give the office up, if we hold it, and let others have it first."""
        if self.leadership.value.leader:
            self._nobody_leads()
            self._resign.set()

    async def _candidacy(self, backoff: Backoff) -> None:
        """With one lease, as long as it lasts. Always ends with an error."""
        self._resign.clear()
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        lease = await self._client.grant(self._ttl_s)
        self._renewed(sent_s)
        try:
            await self._announce(lease)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._renew(lease), name="lease")
                group.create_task(self._campaign(lease, backoff), name="campaign")
                group.create_task(self._wait_resigned(), name="resign")
        finally:
            self._nobody_leads()
            await self._revoke(lease)

    async def _announce(self, lease: int) -> None:
        """Say that this manager runs, and end what an earlier run of it left."""
        node_id = self._me.node_id
        if not node_id:
            return
        before = await self._client.range(pb.RangeRequest(key=self._keys.manager(node_id)))
        for left in (kv.lease for kv in before.kvs if kv.lease):
            await self._revoke(left)
        await self._client.txn(announcement(self._keys, node_id, self._me.address, lease))

    async def _renew(self, lease: int) -> None:
        """Keep the lease alive. Raises LeadershipLost while it still is, when that fails."""
        loop = asyncio.get_running_loop()
        period_s = self._ttl_s / RENEWALS_PER_TTL
        backoff = Backoff(max_s=period_s)
        pause_s = period_s
        while True:
            left_s = self._valid_until_s - loop.time()
            await asyncio.sleep(min(pause_s, max(0.0, left_s)))
            sent_s = loop.time()
            left_s = self._valid_until_s - sent_s
            if left_s <= 0:
                raise LeadershipLost("etcd: the leader's lease could not be renewed")
            try:
                await self._client.keep_alive(lease, timeout_s=min(period_s, left_s))
            except NotFound:
                raise
            except SwarmError as error:
                raise_if_cancelled()
                _log.warning("lease.not_renewed", reason=error.message)
                pause_s = backoff.next_s(0)
            else:
                self._renewed(sent_s)
                backoff.reset()
                pause_s = period_s

    def _renewed(self, sent_s: float) -> None:
        self._valid_until_s = sent_s + self._ttl_s * (1 - MARGIN)

    async def _campaign(self, lease: int, backoff: Backoff) -> None:
        while True:
            answer = await self._client.txn(campaign(self._keys, self._me.address, lease))
            holder = leader_of(answer)
            self.problem = ""
            backoff.reset()
            if answer.succeeded:
                await self._lead(answer.header.revision)
            elif holder is not None:
                address = holder.value.decode(errors="replace")
                self.leadership.set(Leadership(False, holder.create_revision, address))
                await self._wait_gone(answer.header.revision)
                self._nobody_leads()

    async def _lead(self, fence: int) -> None:
        await self._catch_up(fence)
        _log.info("leadership.won", fence=fence)
        self.leadership.set(Leadership(True, fence, self._me.address))
        while True:
            if not await self._wait_gone(fence):
                answer = await self._client.range(pb.RangeRequest(key=self._keys.leader))
                if answer.kvs and answer.kvs[0].create_revision == fence:
                    continue
            raise LeadershipLost("etcd: the leader's key was removed")

    async def _wait_gone(self, revision: int) -> bool:
        """Wait until the leader's key changes after a revision. False: history is lost, look."""
        while True:
            try:
                async with self._client.watch(
                    self._keys.leader, b"", start_revision=revision + 1
                ) as watch:
                    async for one in watch:
                        if one.events:
                            return True
            except Compacted:
                return False
            except LeadershipLost:
                raise
            except SwarmError as error:
                raise_if_cancelled()
                _log.warning("leadership.watch_interrupted", reason=error.message)
                await asyncio.sleep(RETRY_PAUSE_MAX_S / 2)

    async def _wait_resigned(self) -> None:
        await self._resign.wait()
        raise _Resigned

    async def _revoke(self, lease: int) -> None:
        """Best effort: without it the key goes when the lease runs out."""
        try:
            async with asyncio.timeout(REVOKE_TIMEOUT_S):
                await self._client.revoke(lease)
        except (SwarmError, TimeoutError) as error:
            _log.warning("lease.not_revoked", reason=str(error))

    def _nobody_leads(self) -> None:
        self.leadership.set(Leadership(fence=self.leadership.value.fence))


def _reason(errors: BaseExceptionGroup[SwarmError]) -> str:
    return "; ".join(str(one) for one in errors.exceptions)
