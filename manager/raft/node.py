"""`Raft`: one node of a cluster, as its driver sees it.

    raft.tick() · raft.step(message) · raft.propose(data)       whenever something happens
    while raft.has_ready():
        ready = raft.ready()      # the duties are spelled out in `manager.raft.ready.Ready`
        ...send, keep, sync, send, apply...
        raft.advance(ready)

While a Ready is out, everything else may be called, too; only the next Ready has to wait. What
needs no disk may leave meanwhile: `take_messages`. Nothing here waits, reads a clock or fails on
its own; refusals are errors of `shoal.errors`, and InvariantViolation means: stop this process.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from manager.raft.commit import own_log_durable
from manager.raft.confchange import ConfChange, Membership, decode_change, membership_of
from manager.raft.config import Config
from manager.raft.core import Core, Leadership, PendingRead
from manager.raft.election import campaign
from manager.raft.entries import (
    KIND_CONF_CHANGE,
    KIND_EMPTY,
    ConfState,
    Entry,
    HardState,
    Role,
    Snapshot,
    SoftState,
    payload_bytes,
)
from manager.raft.errors import ProposalDropped
from manager.raft.invariants import check_core
from manager.raft.leader import propose, snapshot_settled, unreachable
from manager.raft.log import RaftLog
from manager.raft.membership import after_apply, apply_change, propose_change
from manager.raft.messages import ANSWERS, Message, MessageKind
from manager.raft.readindex import add_read
from manager.raft.ready import Ready
from manager.raft.replication import broadcast_append
from manager.raft.step import check_message, step, tick
from manager.raft.storage import LogStorage
from manager.raft.tracker import Progress
from manager.raft.transfer import begin_transfer
from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotLeader,
    Unavailable,
    invariant,
)


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What a node knows when it starts: what its disk gave back, or nothing.

    storage: the durable log. applied: how far the application's state has come; at least the
    snapshot's index. conf_state: the membership as of `applied`. One that joins starts with
    nothing and is sent a snapshot; the first members of a cluster start from `first_snapshot`.
    """

    storage: LogStorage
    hard_state: HardState = HardState()
    conf_state: ConfState = ConfState()
    applied: int = 0


def first_snapshot(voters: Iterable[int], data: bytes = b"") -> Snapshot:
    """What a cluster begins with, durable on each of its first members before they start.

    A membership comes from a snapshot and the changes after it; without one in front of the log a
    node that joins would apply changes to nothing. `data`: the application's first state. The hard
    state that goes with it: term 1, commit 1.
    """
    return Snapshot(index=1, term=1, conf_state=ConfState(voters=tuple(sorted(voters))), data=data)


class Raft:
    """One node; not thread-safe. The constructor raises InvalidArgument for what cannot be."""

    __slots__ = (
        "_changes_due",
        "_core",
        "_durable_commit",
        "_own",
        "_ready",
        "_told_hard",
        "_told_soft",
    )

    def __init__(self, config: Config, start: Start) -> None:
        config.validate()
        storage, hard = start.storage, start.hard_state
        if not storage.first_index - 1 <= start.applied <= storage.last_index:
            raise InvalidArgument(
                f"applied: {start.applied} is outside of the log"
                f" ({storage.first_index - 1} to {storage.last_index})"
            )
        if hard.commit > storage.last_index:
            raise InvalidArgument(
                f"commit: {hard.commit} is beyond the log's end ({storage.last_index}): entries"
                " that were acknowledged are lost; remove this manager and join it anew"
            )
        if start.conf_state.voters and storage.snapshot.index == 0:
            raise InvalidArgument("membership: without a snapshot; begin with `first_snapshot`")
        committed = max(hard.commit, start.applied)
        log = RaftLog(storage, committed=committed, applied=start.applied)
        self._core = Core(config, log, hard, membership_of(start.conf_state))
        if self._core.term < log.last_term:
            raise InvalidArgument(
                f"term: {hard.term} is before that of the log's last entry ({log.last_term})"
            )
        self._told_hard = hard
        self._told_soft = SoftState()
        self._durable_commit = hard.commit
        self._ready: Ready | None = None
        self._own: list[Message] = []
        self._changes_due = 0

    @property
    def id(self) -> int:
        """This node."""
        return self._core.id

    @property
    def role(self) -> Role:
        """What this node is now."""
        return self._core.role

    @property
    def term(self) -> int:
        """The newest term this node knows."""
        return self._core.term

    @property
    def leader(self) -> int:
        """Whom this node follows or, leading, itself; 0 when nobody is known."""
        return self._core.leader

    @property
    def committed(self) -> int:
        """The last entry known to be committed."""
        return self._core.log.committed

    @property
    def applied(self) -> int:
        """The last entry whose application was confirmed by `advance`."""
        return self._core.log.applied

    @property
    def last_index(self) -> int:
        """The last entry, durable or not."""
        return self._core.log.last_index

    @property
    def membership(self) -> Membership:
        """Who belongs to the cluster, as of the changes applied."""
        return self._core.membership

    @property
    def core(self) -> Core:
        """Everything inside, to look at: for tests, simulations and diagnosis."""
        return self._core

    def tick(self) -> None:
        """One tick of the driver's clock has passed."""
        tick(self._core)

    def campaign(self) -> bool:
        """Try to lead now, without waiting for a timeout; false when this node must not."""
        return campaign(self._core)

    def step(self, message: Message) -> None:
        """Take a message from a peer. Answers of nodes that are no members are ignored.

        Raises: InvalidArgument when it makes no sense by itself; nothing was changed then.
        """
        check_message(self._core, message)
        if message.kind in ANSWERS and message.sender not in self._core.membership.nodes:
            return
        step(self._core, message)

    def propose(self, data: bytes, kind: int = 1) -> int | None:
        """Propose an entry: its index in this term's log, or None when it was passed on.

        It is committed when an entry of this index *and term* comes by in `committed_entries`;
        when another term's does, it is lost. kind: 1 to 254, the application's.
        Raises: ProposalDropped (no leader, handing over, too much uncommitted), InvalidArgument.
        """
        if kind in (KIND_EMPTY, KIND_CONF_CHANGE) or not 0 < kind < 255:
            raise InvalidArgument(f"kind: {kind} is not between 1 and 254")
        core = self._core
        if core.leading is not None:
            return propose(core, core.leading, ((kind, data),))
        if core.leader == 0:
            raise ProposalDropped("no leader is known: try again when one is elected")
        self._pass_on(MessageKind.PROPOSE, entries=(Entry(0, 0, kind, data),))
        return None

    def propose_conf_change(self, change: ConfChange) -> int:
        """Propose a change of the membership, on the leader only; its index.

        Raises: NotLeader; FailedPrecondition while another one may be under way; InvalidArgument
        when it cannot be made; ProposalDropped while handing over.
        """
        core = self._core
        leading = self._must_lead("membership changes")
        if leading.transferee:
            raise ProposalDropped(f"leadership is being handed to node {leading.transferee}")
        if core.id not in core.membership.all_voters:
            raise ProposalDropped("this node is leaving the cluster: propose to the next leader")
        index = propose_change(core, leading, change)
        broadcast_append(core, leading)
        return index

    def read_index(self, context: bytes) -> None:
        """Ask for an index from which a linearizable read may be served; see `read_states`.

        Passed on to the leader by others. No answer comes when the leader changes meanwhile.
        Raises: Unavailable when no leader is known; ResourceExhausted.
        """
        core = self._core
        if core.leading is not None:
            add_read(core, core.leading, PendingRead(core.id, context))
        elif core.leader == 0:
            raise Unavailable("read: no leader is known: try again when one is elected")
        else:
            self._pass_on(MessageKind.READ_INDEX, context=context)

    def transfer_leader(self, to: int) -> None:
        """Hand leadership to a voter; watch `soft_state` for the outcome.

        Passed on to the leader by others. Given up after `election_ticks`.
        Raises: FailedPrecondition when `to` cannot lead; NotLeader when no leader is known.
        """
        core = self._core
        if core.leading is not None:
            begin_transfer(core, core.leading, to)
        elif core.leader == 0:
            raise NotLeader("leadership transfer: no leader is known: try again later")
        else:
            self._pass_on(MessageKind.TRANSFER_LEADER, target=to)

    def report_unreachable(self, node: int) -> None:
        """Messages to a follower were probably lost."""
        progress = self._progress(node)
        if progress is not None:
            unreachable(progress)

    def report_snapshot(self, node: int, *, ok: bool) -> None:
        """The snapshot sent to a follower was delivered, or was not.

        Owed for every SNAPSHOT message: until then the follower is sent nothing else.
        """
        progress = self._progress(node)
        if progress is not None:
            snapshot_settled(progress, ok=ok)

    def has_ready(self) -> bool:
        """Whether `ready` has something to give; false while a Ready is out."""
        core = self._core
        log = core.log
        return self._ready is None and bool(
            core.messages
            or core.messages_after_sync
            or log.unstable
            or log.pending_snapshot is not None
            or log.applied < log.applicable
            or core.read_states
            or core.hard_state != self._told_hard
            or core.soft_state != self._told_soft
        )

    def ready(self) -> Ready:
        """The next round of work; `advance` it before asking for another."""
        invariant(self._ready is None, "the previous Ready was not advanced")
        core, log = self._core, self._core.log
        hard, soft = core.hard_state, core.soft_state
        after_sync = core.messages_after_sync
        core.messages_after_sync = []
        self._own = [message for message in after_sync if message.to == core.id]
        committed, waits = self._to_apply()
        ready = Ready(
            messages=self.take_messages(),
            messages_after_sync=tuple(m for m in after_sync if m.to != core.id),
            entries=tuple(log.unstable),
            hard_state=hard if waits or hard != self._told_hard else None,
            snapshot=log.pending_snapshot,
            must_sync=bool(
                waits
                or log.unstable
                or log.pending_snapshot is not None
                or (hard.term, hard.vote) != (self._told_hard.term, self._told_hard.vote)
            ),
            committed_entries=committed,
            soft_state=soft if soft != self._told_soft else None,
            read_states=tuple(core.read_states),
        )
        core.read_states = []
        if core.leading is not None and committed:
            left = core.leading.uncommitted_bytes - payload_bytes(committed)
            core.leading.uncommitted_bytes = max(0, left)
        self._changes_due = sum(1 for entry in committed if entry.kind == KIND_CONF_CHANGE)
        self._told_hard, self._told_soft = hard, soft
        self._ready = ready
        return ready

    def take_messages(self) -> tuple[Message, ...]:
        """The messages that need no disk and may leave at once, also while a Ready is out."""
        messages = tuple(self._core.messages)
        self._core.messages = []
        return messages

    def apply_conf_change(self, change: ConfChange | bytes) -> ConfState:
        """A committed change (or the data of its entry) takes effect; the membership after it."""
        invariant(self._changes_due > 0, "a membership change that was not committed")
        self._changes_due -= 1
        if isinstance(change, bytes):
            change = decode_change(change)
        apply_change(self._core, change)
        return self._core.membership.conf_state()

    def advance(self, ready: Ready) -> None:
        """Everything the Ready asked for is done and durable."""
        invariant(ready is self._ready, "advance of another Ready than the one given out")
        invariant(self._changes_due == 0, "membership changes not applied", due=self._changes_due)
        self._ready = None
        core, log = self._core, self._core.log
        if ready.must_sync and ready.hard_state is not None:
            self._durable_commit = ready.hard_state.commit
        if ready.snapshot is not None:
            log.snapshot_stable(ready.snapshot)
        if ready.entries:
            log.entries_stable(ready.entries)
        applied = log.applied
        if ready.committed_entries:
            applied = ready.committed_entries[-1].index
        if ready.snapshot is not None and log.pending_snapshot is None:
            applied = ready.snapshot.index
        if applied > log.applied:
            log.applied_to(applied)
            after_apply(core)
        own, self._own = self._own, []
        for message in own:
            step(core, message)
        own_log_durable(core)

    def snapshot_now(self, data: bytes = b"") -> Snapshot:
        """What a snapshot of the application's state after `applied` has to carry.

        Raises: FailedPrecondition while that state is being replaced by a leader's snapshot.
        """
        core = self._core
        index = core.log.applied
        if core.log.pending_snapshot is not None:
            raise FailedPrecondition("snapshot: a newer one of the leader is being kept")
        return Snapshot(index, core.log.known_term(index), core.membership.conf_state(), data)

    def offer_snapshot(self, snapshot: Snapshot) -> None:
        """A snapshot of this node's state is durable: it is sent to those who lag too far."""
        if self._core.log.pending_snapshot is None:
            self._core.log.storage.offer(snapshot)

    def compact(self, index: int) -> None:
        """Forget the entries up to `index`; keep some for followers that lag a little.

        Raises: FailedPrecondition when no offered snapshot covers them. Already gone: nothing.
        """
        log = self._core.log
        if log.pending_snapshot is not None:
            return  # everything goes when it is kept
        if index > min(log.storage.snapshot.index, log.applied):
            raise FailedPrecondition(
                f"compaction: entry {index} is in no snapshot (the newest is of"
                f" {log.storage.snapshot.index}); offer one first"
            )
        log.storage.compact(index)

    def check(self) -> None:
        """Verify every invariant of this node. Raises: InvariantViolation."""
        check_core(self._core)

    def _to_apply(self) -> tuple[tuple[Entry, ...], bool]:
        """What may be applied now, and whether a change waits for the commit index to be durable.

        A change must not be forgotten by whoever acted on it: with the removed node switched off,
        the others could not find the quorum of the time before.
        """
        core = self._core
        entries = core.log.next_committed(core.config.apply_bytes_max)
        for place, entry in enumerate(entries):
            if entry.kind == KIND_CONF_CHANGE and entry.index > self._durable_commit:
                return tuple(entries[:place]), True
        return tuple(entries), False

    def _must_lead(self, what: str) -> Leadership:
        core = self._core
        if core.leading is None:
            raise NotLeader(f"{what} are taken by the leader only", leader=core.leader)
        return core.leading

    def _progress(self, node: int) -> Progress | None:
        leading = self._core.leading
        return None if leading is None else leading.progress.get(node)

    def _pass_on(
        self,
        kind: MessageKind,
        *,
        entries: tuple[Entry, ...] = (),
        context: bytes = b"",
        target: int = 0,
    ) -> None:
        core = self._core
        step(
            core,
            Message(
                kind=kind,
                to=core.id,
                sender=core.id,
                entries=entries,
                context=context,
                target=target,
            ),
        )
