"""Consensus by an etcd cluster: the Proposer of a store that mirrors what is in etcd.

A transaction is decided against the mirror and carried out by etcd only if the decision still
holds (`core`, `keys`). If it does not, or if the mirror refuses it, the mirror is first brought up
to date and asked again: a refusal is always true of a state that etcd had after the proposal. It is
answered when the mirror shows it. One transaction is one etcd transaction, never split: larger ones
than etcd takes are refused. Whoever does not lead, or not any more, writes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import NamedTuple, Self

import structlog

from manager.etcd.client import EtcdClient
from manager.etcd.core import Decision, decide, find_outcome
from manager.etcd.election import Candidate, Election, Leadership
from manager.etcd.errors import TOO_LARGE, TOO_MANY_OPS, Compacted
from manager.etcd.keys import Keys, barrier, leader_of, operations, transaction
from manager.etcd.metrics import CONTENTIONS, TRANSACTION_LATENCY
from manager.etcd.mirror import Mirror
from manager.etcd.settings import EtcdSettings
from manager.store.apply import Commit
from manager.store.store import Store, TransactionTooLarge
from shoal.aio.cancel import raise_if_cancelled
from shoal.aio.observed import Observed
from shoal.errors import DeadlineExceeded, NotLeader, SwarmError, Unavailable
from shoal.etcd.v1 import rpc_pb2 as pb
from shoal.model.objects import StoreEntry
from shoal.model.plan import CHANGES_MAX
from shoal.wire.objects import entry_to_bytes

ENTRY_BYTES_MAX = 1_572_864
"""1.5 MiB, as in the embedded log."""
IN_FLIGHT_MAX = 256
"""Proposals under way; further ones wait for a place."""
ATTEMPTS_TIMEOUT_S = 30.0
"""No further attempt at a transaction after this long."""
RETRY_PAUSE_S = 0.1
MANAGERS_SHOWN_MAX = 1_000

_log = structlog.get_logger()


class Presence(NamedTuple):
    """A manager that runs. lease: stands for this run of it, and for no other."""

    address: str
    lease: int


class EtcdConsensus:
    """Implements `manager.store.store.Proposer`; `async with` it for as long as it may propose.

    address: what followers are told as the leader's address; None: take no part in elections and
    write without a fence, which is for tools and tests (etcd decides conflicts all the same).
    node_id: under which the others are told that this manager runs; empty: they are not.
    """

    def __init__(
        self, settings: EtcdSettings, store: Store, *, address: str | None, node_id: str = ""
    ) -> None:
        self._settings = settings
        self._store = store
        self._client = EtcdClient(settings)
        self._keys = Keys(settings.prefix)
        self._mirror = Mirror(self._client, self._keys, store)
        self._election: Election | None = None
        self._always_leads = Observed(Leadership(leader=True))
        if address is not None:
            self._election = Election(
                self._client,
                self._keys,
                Candidate(address, node_id),
                ttl_s=settings.lease_ttl_s,
                catch_up=self._catch_up,
            )
        self._room = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._refusal: str | None = None

    @property
    def changes_max(self) -> int:
        """Changes that fit into one transaction when none of them makes or ends a unique name.

        Each such name takes one more operation: a transaction above etcd's --max-txn-ops is refused
        with TransactionTooLarge, at which planners propose half as many.
        """
        return min(CHANGES_MAX, self._settings.max_txn_ops - (self._election is not None))

    async def __aenter__(self) -> Self:
        """Read the state and begin to follow it and to campaign. Raises Unavailable and others."""
        try:
            await self._stack.enter_async_context(self._client)
            await self._mirror.load()
            self._start("mirror", self._mirror.follow)
            if self._election is not None:
                self._start("election", self._election.run)
                if self._settings.compact_s:
                    self._start("compaction", self._compact)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the leadership back and close; proposals under way end as Unavailable."""
        self._refusal = self._refusal or "the manager is stopping: try again later"
        try:
            for task in reversed(self._tasks):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        finally:
            await self._stack.aclose()

    async def wait_failed(self) -> None:
        """Wait until the state can be followed no more, and raise why. Ends the process."""
        if self._tasks:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()

    async def leadership(self) -> AsyncIterator[Leadership]:
        """Whether this manager leads: now, and whenever that changes. Never skips the newest."""
        if self._election is None:
            yield Leadership(leader=True)
            return
        async for one in self._election.changes():
            yield one

    @property
    def leading(self) -> Observed[Leadership]:
        """The same, for those who must act at once."""
        return self._always_leads if self._election is None else self._election.leadership

    async def resign(self) -> None:
        """Give up the leadership, if we have it, so that another manager takes it."""
        if self._election is not None:
            await self._election.resign()

    @property
    def problem(self) -> str:
        """Why nobody can be asked who leads; empty while etcd answers."""
        return "" if self._election is None else self._election.problem

    async def managers(self) -> Mapping[str, Presence]:
        """The managers that run now, by node id. Raises Unavailable, DeadlineExceeded."""
        keys = self._keys
        request = pb.RangeRequest(
            key=keys.managers, range_end=keys.managers_end, limit=MANAGERS_SHOWN_MAX
        )
        answer = await self._client.range(request)
        return {
            kv.key.removeprefix(keys.managers).decode(errors="replace"): Presence(
                kv.value.decode(errors="replace"), kv.lease
            )
            for kv in answer.kvs
        }

    async def barrier(self) -> int:
        """Return when the store shows everything that was written before the call: its version.

        For reads that must not be stale, on any manager. Raises Unavailable, DeadlineExceeded.
        """
        return await self._pass_barrier(0)

    async def propose(self, entry: StoreEntry, *, term: int | None = None) -> Commit:
        """Carry an entry out, and return what it changed once the store shows it.

        term: the fence of the only leadership in which it may be carried out.
        Raises: what `apply_entry` raises; TransactionTooLarge; NotLeader; Unavailable when it was
        not carried out; DeadlineExceeded when it may or may not have been.
        """
        size = len(entry_to_bytes(entry))
        if size > ENTRY_BYTES_MAX:
            raise TransactionTooLarge(
                f"transaction: {size} bytes, at most {ENTRY_BYTES_MAX}: make it smaller"
            )
        with TRANSACTION_LATENCY.time():
            async with self._room:
                return await self._propose(entry, term)

    async def _propose(self, entry: StoreEntry, term: int | None) -> Commit:
        up_to_date = False
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + ATTEMPTS_TIMEOUT_S
        while loop.time() < deadline_s:
            fence = self._fence(term)
            try:
                decision = decide(self._store.view, entry)
            except SwarmError:
                if up_to_date:
                    raise
                await self._pass_barrier(fence)
            else:
                if not decision.writes:
                    return Commit(version=self._store.view.version, events=())
                commit = await self._carry_out(decision, fence)
                if commit is not None:
                    return commit
                CONTENTIONS.inc()
            up_to_date = True
        raise Unavailable("transaction: others changed its objects again and again: try again")

    async def _carry_out(self, decision: Decision, fence: int) -> Commit | None:
        """One attempt. None: something else came first; the mirror has caught up with that."""
        request = transaction(self._keys, decision, fence)
        self._check_limits(request)
        try:
            answer = await self._client.txn(request)
        except (Unavailable, DeadlineExceeded) as error:
            if error.context.get("sent") is False:
                raise
            return await self._find_out(decision, error)
        if not answer.succeeded:
            self._check_fence(answer, fence)
        await self._wait_applied(answer.header.revision)
        return decision.commit(answer.header.revision) if answer.succeeded else None

    async def _find_out(self, decision: Decision, error: SwarmError) -> Commit | None:
        """The answer was lost. None: it was not carried out, and may be sent again."""
        await self._pass_barrier(0)
        outcome = find_outcome(self._store.view, decision)
        if outcome.commit is not None:
            return outcome.commit
        if outcome.untouched:
            return None
        raise DeadlineExceeded(
            f"the transaction may or may not have been carried out ({error.message}), and its "
            "objects have changed since: read them again"
        ) from error

    async def _pass_barrier(self, fence: int) -> int:
        """Bring the mirror up to date with etcd. Tried again: a barrier may be written twice."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._settings.timeout_s
        while True:
            try:
                answer = await self._client.txn(barrier(self._keys, fence))
            except (Unavailable, DeadlineExceeded):
                if self._refusal is not None or loop.time() >= deadline_s:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            if not answer.succeeded:
                raise _replaced(answer)
            await self._wait_applied(answer.header.revision)
            return answer.header.revision

    async def _catch_up(self, fence: int) -> None:
        await self._pass_barrier(fence)

    async def _wait_applied(self, revision: int) -> None:
        if self._refusal is not None:
            raise Unavailable(self._refusal)
        await self._mirror.wait_applied(revision, self._settings.timeout_s)

    def _fence(self, term: int | None) -> int:
        """The fence to write with; 0: none is needed. Raises NotLeader, Unavailable."""
        if self._refusal is not None:
            raise Unavailable(self._refusal)
        if self._election is None:
            return 0
        current = self._election.leadership.value
        if not current.leader:
            raise _not_leader(current.leader_address)
        if term not in (None, current.fence):
            raise NotLeader("proposed by a leader of an earlier term")
        return current.fence

    def _check_fence(self, answer: pb.TxnResponse, fence: int) -> None:
        """Raises NotLeader when the office is what the transaction failed for."""
        if fence:
            holder = leader_of(answer)
            if holder is None or holder.create_revision != fence:
                raise _replaced(answer)

    def _check_limits(self, request: pb.TxnRequest) -> None:
        count, limit = operations(request), self._settings.max_txn_ops
        if count > limit:
            raise TransactionTooLarge(
                f"transaction: {count} operations in etcd, at most {limit}: "
                f"make it smaller, or {TOO_MANY_OPS}"
            )
        size, limit = request.ByteSize(), self._settings.max_request_bytes
        if size > limit:
            raise TransactionTooLarge(
                f"transaction: {size} bytes in etcd, at most {limit}: "
                f"make it smaller, or {TOO_LARGE}"
            )

    async def _compact(self) -> None:
        """Drop history that is older than a period, while we lead."""
        before = 0
        while True:
            await asyncio.sleep(self._settings.compact_s)
            if self._election is None or not self._election.leadership.value.leader:
                before = 0
                continue
            try:
                if before:
                    await self._client.compact(before)
            except Compacted:
                pass  # somebody else did
            except SwarmError as error:
                raise_if_cancelled()
                _log.warning("compaction.failed", reason=error.message)
            before = self._store.view.version

    def _start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(self._keep(run), name=f"etcd-{name}"))

    async def _keep(self, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
        except BaseException as error:
            self._refusal = self._refusal or (
                f"the state in etcd cannot be followed ({error}): restart the manager"
            )
            self._mirror.fail(self._refusal)
            raise


def _replaced(answer: pb.TxnResponse) -> NotLeader:
    """Why a fenced transaction was refused."""
    holder = leader_of(answer)
    return _not_leader("" if holder is None else holder.value.decode(errors="replace"))


def _not_leader(address: str) -> NotLeader:
    if not address:
        return NotLeader("this manager does not lead the cluster, and nobody else is known to")
    return NotLeader(
        f"this manager does not lead the cluster, {address} does", leader_address=address
    )
