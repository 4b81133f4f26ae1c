"""Drives one Raft node: messages, ticks and proposals in, the disk, the network and the store out.

One turn of the event loop after something came, the node takes its turn: it steps all that has
come, proposes what waits, sends what needs no disk, and begins the next Ready (`rounds`): one
durable batch, then what waited for it. So entries travel to the others while they are written
here, and proposals are pipelined: all that wait go into the log together, and each is answered
when its entry is applied. A turn is a callback, not a task: a write passes through few of them.

Invariants: nothing that promises durability leaves before the sync; what is proposed under a term
enters the log in that term or not at all; no answer is given twice or never. Refuses proposals
while another leads. A disk that fails a sync, or an entry that cannot be applied, ends the process.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import msgspec
import structlog

from manager.consensus.interfaces import RemovedFromCluster, Transport
from manager.consensus.metrics import (
    APPLIED_INDEX,
    LEADER_CHANGES,
    PROPOSALS_PENDING,
    TERM,
    TRANSACTION_LATENCY,
)
from manager.consensus.recovery import KIND_STORE, Recovery
from manager.consensus.replica import Replica
from manager.consensus.roster import Roster
from manager.consensus.rounds import Rounds
from manager.consensus.snapshots import Snapshots
from manager.consensus.waiting import UNKNOWN, Proposal, Reads
from manager.raft.config import Config
from manager.raft.core import Leadership
from manager.raft.entries import Role
from manager.raft.leader import propose
from manager.raft.messages import Message, MessageKind
from manager.raft.node import Raft
from manager.storage.driver import AsyncWal
from manager.storage.snapshot_dir import SnapshotFile
from manager.storage.snapshot_file import SnapshotRecord
from manager.store.apply import Commit
from manager.store.store import Store, TransactionTooLarge
from shoal.aio.observed import Observed
from shoal.errors import (
    InvalidArgument,
    NotLeader,
    SwarmError,
    Unavailable,
    violated,
)
from shoal.model.defaults import ELECTION_TICKS, HEARTBEAT_TICKS, SNAPSHOT_INTERVAL
from shoal.model.objects import StoreEntry
from shoal.wire.objects import entry_to_bytes

TICK_S = 0.1
ENTRY_BYTES_MAX = 1_572_864
"""1.5 MiB; a larger transaction is refused (Swarm's MaxTransactionBytes)."""
PROPOSALS_MAX = 4096
"""Proposals under way; further ones wait for a place."""
GROUP_BYTES_MAX = 4 << 20
"""Proposals that enter the log in one step."""
INBOX_MAX = 8192
"""Messages waiting to be stepped; more are dropped, which Raft takes for a lossy network."""
READS_MAX = 4096
READ_TIMEOUT_S = 5.0
REACHABLE_S = 2.0
"""A member that was heard of within this time counts as reachable."""

_log = structlog.get_logger()


class Leading(msgspec.Struct, frozen=True):
    """Who leads. leader: a raft id, 0 = nobody known.

    ready: this member leads, and has applied an entry of its own term, so that its state holds all
    that was ever acknowledged.
    """

    term: int = 0
    leader: int = 0
    ready: bool = False


class RaftDriver:
    """Implements `Proposer` and `Receiver`; `async with` it for as long as the member lives."""

    def __init__(
        self,
        recovery: Recovery,
        store: Store,
        transport: Transport,
        *,
        snapshot_interval: int = SNAPSHOT_INTERVAL,
        tick_s: float = TICK_S,
    ) -> None:
        config = Config(
            id=recovery.me.raft_id,
            seed=secrets.randbits(63),
            election_ticks=ELECTION_TICKS,
            heartbeat_ticks=HEARTBEAT_TICKS,
        )
        self.raft = Raft(config, recovery.start)
        self.replica = Replica(recovery, store, self.raft)
        self.leading = Observed(Leading(term=self.raft.term))
        self.tick_s = tick_s
        self._recovery = recovery
        self._transport = transport
        self._snapshot_interval = snapshot_interval
        self._proposals = self.replica.proposals
        self._reads = Reads()
        self._inbox: deque[Message] = deque()
        self._heard_s: dict[int, float] = {}
        self._turn_is_due = False
        self._running = False
        self._room = asyncio.Semaphore(PROPOSALS_MAX)
        self._stack = AsyncExitStack()
        self._ticks: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[None] | None = None
        self._refusal: SwarmError | None = None
        self._own_index = 0

    async def __aenter__(self) -> Self:
        """Start. A member that is alone leads at once."""
        self._loop = asyncio.get_running_loop()
        self._failed = self._loop.create_future()
        wal = await self._stack.enter_async_context(AsyncWal(self._recovery.opened.wal))
        self._snapshots = Snapshots(
            self._recovery.opened, wal, self.raft, interval=self._snapshot_interval
        )
        self._rounds = Rounds(
            self.raft,
            wal,
            self.replica,
            self._snapshots,
            self._reads,
            send=self._send,
            turn=self._turn,
            fail=self._fail,
        )
        self._transport.attach(self)
        self._transport.follow(self.roster)
        self._stack.enter_context(self.replica.roster.watched(self._transport.follow))
        if self.raft.membership.all_voters == {self.raft.id}:
            self.raft.campaign()
        self._running = True
        self._ticks = asyncio.create_task(self._guard(self._tick), name="raft tick")
        self.wake()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; what waits is told so. A log that is being written is finished."""
        try:
            self._refusal = self._refusal or Unavailable("the manager is stopping: try again later")
            self._halt()
            if self._ticks is not None:
                await asyncio.gather(self._ticks, return_exceptions=True)
            self._end(self._refusal)
            await self._snapshots.finish()
            await self._rounds.finish()
        finally:
            await self._stack.aclose()
            if self._failed is not None and not self._failed.cancel():
                self._failed.exception()  # it was logged

    @property
    def roster(self) -> Roster:
        """The members as this one knows them."""
        return self.replica.roster.value

    @property
    def snapshots(self) -> Snapshots:
        """The snapshots of this member; the interval may be changed."""
        return self._snapshots

    async def propose(self, entry: StoreEntry, *, term: int | None = None) -> Commit:
        """Commit a transaction and apply it; what it changed.

        term: propose in this term only. Raises: what `apply_entry` raised; TransactionTooLarge;
        NotLeader, with nothing done; ResourceExhausted; Unavailable when leadership was lost: then
        it may or may not have been committed. A cancelled caller's entry may still commit.
        """
        data = entry_to_bytes(entry)
        if len(data) > ENTRY_BYTES_MAX:
            raise TransactionTooLarge(
                f"transaction: {len(data)} bytes, at most {ENTRY_BYTES_MAX}: make it smaller"
            )
        with TRANSACTION_LATENCY.time():
            async with self._room:
                self._check_may_propose()
                done: asyncio.Future[Commit] = self._loop.create_future()
                self._proposals.queue(Proposal(entry, data, term, self._loop.time(), done))
                if self._proposals.should_go(self.raft.committed):
                    self.wake()
                return await done

    async def read_barrier(self) -> None:
        """Return when this member's state holds everything acknowledged before the call.

        Raises: Unavailable when no leader confirms it in time, ResourceExhausted.
        """
        if self._refusal is not None:
            raise type(self._refusal)(self._refusal.message)
        if len(self._reads.new) >= READS_MAX:
            raise Unavailable(f"{READS_MAX} reads wait to be confirmed: try again later")
        done: asyncio.Future[None] = self._loop.create_future()
        self._reads.new.append(done)
        self.wake()
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await done
        except TimeoutError:
            raise Unavailable(
                f"no leader confirmed within {READ_TIMEOUT_S:g} s that this manager's state is the"
                " newest: it's possible that too few of the managers are online; try again"
            ) from None

    async def wait_failed(self) -> None:
        """Wait until this member cannot go on, and raise why. Ends the process."""
        if self._failed is not None:
            await asyncio.shield(self._failed)

    def deliver(self, messages: Sequence[Message]) -> None:
        """Messages from a member whose identity was checked."""
        if messages:
            self._heard_s[messages[0].sender] = self._loop.time()
        room = INBOX_MAX - len(self._inbox)
        self._inbox.extend(messages[:room])
        self.wake()

    def report_unreachable(self, raft_id: int) -> None:
        """Messages to a member were probably lost."""
        self.raft.report_unreachable(raft_id)

    def report_snapshot(self, raft_id: int, *, ok: bool) -> None:
        """The snapshot for a member arrived, or did not."""
        self.raft.report_snapshot(raft_id, ok=ok)
        self.wake()

    def report_removed(self, raft_id: int, reason: str) -> None:
        """A member says that this manager was removed: it is not needed any more."""
        _log.warning("raft.removed", told_by=f"{raft_id:x}", reason=reason)
        self._fail(
            RemovedFromCluster("this manager was removed from the cluster: leave and join again")
        )

    def open_snapshot(self, index: int, term: int) -> SnapshotFile | None:
        """A snapshot of this member, verified; None when it is gone. Blocking."""
        return self._snapshots.open(index, term)

    async def receive_snapshot(
        self, message: Message, membership: bytes, records: Iterator[SnapshotRecord]
    ) -> None:
        """Keep a snapshot and hand it to Raft."""
        await self._snapshots.keep(message, membership, records)
        self.deliver([message])

    def is_reachable(self, raft_id: int) -> bool:
        """Whether the member was heard of a moment ago; this one always is."""
        if raft_id == self.raft.id:
            return True
        heard_s = self._heard_s.get(raft_id)
        return heard_s is not None and self._loop.time() - heard_s <= REACHABLE_S

    def wake(self) -> None:
        """Something came, or was changed in `raft` from outside: look at it in a moment."""
        if self._running and not self._turn_is_due:
            self._turn_is_due = True
            self._loop.call_soon(self._due_turn)

    def transfer_leader(self, to: int) -> None:
        """Hand leadership to a voter; watch `leading` for the outcome.

        Raises: NotLeader; FailedPrecondition when it cannot lead.
        """
        if self.raft.role is not Role.LEADER:
            raise self.not_leader()
        self.raft.transfer_leader(to)
        _log.info("raft.transferring", to=f"{to:x}", term=self.raft.term)
        self.wake()

    def not_leader(self) -> NotLeader:
        """The refusal of what only a leader may do; names the leader when it is known."""
        member = self.roster.members.get(self.raft.leader)
        if member is None:
            return NotLeader("this manager does not lead the cluster, and nobody else is known to")
        return NotLeader(
            f"this manager does not lead the cluster, {member.address} does",
            leader_address=member.address,
        )

    @property
    def disk_full(self) -> bool:
        """Whether the log waits for space."""
        return self._rounds.disk_full is not None

    @property
    def oldest_proposal_s(self) -> float | None:
        """Since when the oldest proposal waits, on the loop's clock."""
        return self._proposals.oldest_since_s

    def _due_turn(self) -> None:
        self._turn_is_due = False
        try:
            self._turn()
        except Exception as error:  # noqa: BLE001 - a broken member ends, and says why
            self._fail(error)

    def _turn(self) -> None:
        """Step what has come, send what needs no disk, go on with the round."""
        if not self._running:
            return
        while self._inbox:
            self._take(self._inbox.popleft())
        self._observe()
        self._propose_queued()
        self._ask_reads()
        self._send(self.raft.take_messages())
        self._rounds.go_on()
        self._observe()

    async def _tick(self) -> None:
        """Ticks that a busy loop missed are not made up for: messages may be waiting as well."""
        while True:
            await asyncio.sleep(self.tick_s)
            self.raft.tick()
            self._reads.expire()
            PROPOSALS_PENDING.set(len(self._proposals))
            APPLIED_INDEX.set(self.replica.applied)
            self.wake()

    def _take(self, message: Message) -> None:
        try:
            self.raft.step(message)
        except InvalidArgument as error:
            _log.warning("raft.bad_message", sender=f"{message.sender:x}", reason=error.message)

    def _propose_queued(self) -> None:
        leading = self.raft.core.leading
        while self._proposals.should_go(self.raft.committed):
            if leading is None:
                self._proposals.refuse_queued(self.not_leader())
                return
            group: list[Proposal] = []
            for proposal in self._proposals.take_queued(GROUP_BYTES_MAX):
                if proposal.term not in (None, self.raft.term):
                    proposal.refuse(NotLeader("proposed by a leader of an earlier term"))
                elif not proposal.done.done():  # else nobody waits any more
                    group.append(proposal)
            self._log_group(leading, group)

    def _log_group(self, leading: Leadership, group: list[Proposal]) -> None:
        if not group:
            return
        try:
            last = propose(
                self.raft.core, leading, [(KIND_STORE, proposal.data) for proposal in group]
            )
        except SwarmError as error:
            for proposal in group:
                proposal.refuse(error)
            return
        self._proposals.logged(group, first_index=last + 1 - len(group), term=self.raft.term)

    def _ask_reads(self) -> None:
        try:
            self._reads.ask(self.raft.read_index)
        except SwarmError:
            return  # no leader yet, or too many: asked again with the next tick

    def _observe(self) -> None:
        """Tell who follows the leadership what became of it."""
        raft, old = self.raft, self.leading.value
        leads = raft.role is Role.LEADER
        if not leads or raft.term != old.term:
            self._own_index = 0
        if leads and self._own_index == 0:
            self._own_index = self._first_own_index()
        new = Leading(raft.term, raft.leader, leads and self.replica.applied >= self._own_index)
        if new == old:
            return
        if (new.term, new.leader) != (old.term, old.leader):
            TERM.set(new.term)
            if old.leader == raft.id:
                self._proposals.lose(Unavailable(UNKNOWN))
            if new.leader:
                LEADER_CHANGES.inc()
            self._reads.ask_again()
            _log.info("raft.leader_changed", term=new.term, leader=f"{new.leader:x}", own=leads)
        self.leading.set(new)

    def _first_own_index(self) -> int:
        """The entry with which this leader began its term: nothing else can be in it before."""
        log = self.raft.core.log
        index = log.last_index
        while log.term(index - 1) == self.raft.term:
            index -= 1
        return index

    def _send(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        if any(message.kind is MessageKind.SNAPSHOT for message in messages):
            for message in messages:
                if message.kind is MessageKind.SNAPSHOT:
                    self._transport.send_snapshot(message)
            messages = [one for one in messages if one.kind is not MessageKind.SNAPSHOT]
        self._transport.send(messages)

    def _check_may_propose(self) -> None:
        if self._refusal is not None:
            raise type(self._refusal)(self._refusal.message, **self._refusal.context)
        full = self._rounds.disk_full
        if full is not None:
            raise type(full)(full.message, **full.context)
        if self.raft.role is not Role.LEADER:
            raise self.not_leader()

    async def _guard(self, run: Callable[[], Awaitable[None]]) -> None:
        """Called here, not before: a task that is cancelled before its first turn runs nothing."""
        try:
            await run()
            violated("a task of the Raft driver has ended")
        except Exception as error:  # noqa: BLE001 - a broken member ends, and says why
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._refusal is None:
            self._refusal = Unavailable(
                f"the manager's log has failed ({error}): restart the manager"
            )
        self._end(self._refusal)
        self._halt()
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    def _halt(self) -> None:
        """A member that cannot keep its word says nothing more."""
        self._running = False
        self._rounds.stop()
        if self._ticks is not None:
            self._ticks.cancel()

    def _end(self, reason: SwarmError) -> None:
        """Nobody is left waiting; who waits for a place finds the refusal when it gets one."""
        self._proposals.refuse_queued(reason)
        self._proposals.lose(Unavailable(f"{reason.message}; {UNKNOWN}"))
        self._reads.refuse(reason)
        self.leading.set(msgspec.structs.replace(self.leading.value, leader=0, ready=False))
