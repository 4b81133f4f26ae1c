"""The state of one node and its changes of role; the other modules are functions on it.

Invariants: the term only rises; one vote a term; `leading` is there exactly while this node leads
its term. Everything a node says goes through `send`, which knows what has to wait for the disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from manager.raft.confchange import Membership
from manager.raft.config import Config
from manager.raft.entries import (
    KIND_EMPTY,
    Entry,
    HardState,
    ReadState,
    Role,
    SoftState,
    payload_bytes,
)
from manager.raft.errors import ProposalDropped
from manager.raft.log import RaftLog
from manager.raft.messages import AFTER_SYNC, Message
from manager.raft.prng import SplitMix64
from manager.raft.tracker import Inflights, Progress
from shoal.errors import invariant


class PendingRead:
    """A read that waits for its round of heartbeats. reader: who asked, maybe this node."""

    __slots__ = ("context", "index", "reader", "sequence")

    def __init__(self, reader: int, context: bytes) -> None:
        self.reader = reader
        self.context = context
        self.index = 0
        self.sequence = 0


class Leadership:
    """What only a leader has.

    pending_conf: no membership change is taken until this index is applied. transferee: who shall
    lead next (0 = nobody). uncommitted_bytes: data of own proposals not given out to be applied.
    postponed_reads wait for the first commit of this term, reads for their heartbeats.
    """

    __slots__ = (
        "pending_conf", "postponed_reads", "progress", "read_sequence", "reads", "transferee",
        "uncommitted_bytes",
    )  # fmt: skip

    def __init__(self, pending_conf: int) -> None:
        self.progress: dict[int, Progress] = {}
        self.pending_conf = pending_conf
        self.transferee = 0
        self.uncommitted_bytes = 0
        self.read_sequence = 0
        self.reads: deque[PendingRead] = deque()
        self.postponed_reads: list[PendingRead] = []


class Core:
    """One node.

    leader: whom it follows (0 = nobody known). votes: of a running campaign.
    """

    __slots__ = (
        "config", "election_elapsed", "election_timeout", "heartbeat_elapsed", "id", "leader",
        "leading", "log", "membership", "messages", "messages_after_sync", "prng", "read_states",
        "role", "term", "vote", "votes",
    )  # fmt: skip

    def __init__(
        self, config: Config, log: RaftLog, hard_state: HardState, membership: Membership
    ) -> None:
        self.config = config
        self.id = config.id
        self.log = log
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.membership = membership
        self.leader = 0
        self.role = Role.FOLLOWER
        self.leading: Leadership | None = None
        self.votes: dict[int, bool] = {}
        self.messages: list[Message] = []
        self.messages_after_sync: list[Message] = []
        self.read_states: list[ReadState] = []
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.prng = SplitMix64(config.seed)
        self.election_timeout = 0
        draw_timeout(self)

    @property
    def hard_state(self) -> HardState:
        """What has to be durable."""
        return HardState(self.term, self.vote, self.log.committed)

    @property
    def soft_state(self) -> SoftState:
        """What the node is."""
        return SoftState(self.leader, self.role)

    @property
    def is_promotable(self) -> bool:
        """Whether this node may campaign: a voter, or one that just lost its vote.

        The latter does not count its own vote then. It may be the only one that knows of the
        change: the others, not knowing, may need its vote for a quorum, and it has to refuse where
        its log is longer. Then it is the one to lead until they know. Where they have a leader, or
        a longer log, it cannot win the question before a campaign.
        """
        membership = self.membership
        is_voter = self.id in membership.voters or self.id in membership.outgoing
        return (is_voter or self.id in membership.former) and self.log.pending_snapshot is None

    def send(self, message: Message) -> None:
        """Queue a message; promises wait for the disk. What goes to oneself waits with them."""
        if message.kind in AFTER_SYNC:
            self.messages_after_sync.append(message)
        else:
            invariant(message.to != self.id, "message to oneself", got=message)
            self.messages.append(message)


def draw_timeout(core: Core) -> None:
    """Wait for a random time from now before a campaign, so that rivals rarely meet."""
    core.election_elapsed = 0
    ticks = core.config.election_ticks
    core.election_timeout = ticks + core.prng.below(ticks)


def become_follower(core: Core, term: int, leader: int) -> None:
    """Follow `leader` (0 = not known yet) in a term that is not below the own."""
    _enter(core, term, Role.FOLLOWER, leader)


def become_pre_candidate(core: Core) -> None:
    """Ask whether a campaign could be won; neither term nor vote change."""
    invariant(core.role is not Role.LEADER, "a leader campaigns")
    core.role = Role.PRE_CANDIDATE
    core.leader = 0
    core.votes = {}


def become_candidate(core: Core) -> None:
    """Begin a term of one's own and vote for oneself in it."""
    invariant(core.role is not Role.LEADER, "a leader campaigns")
    _enter(core, core.term + 1, Role.CANDIDATE, 0)
    core.vote = core.id


def become_leader(core: Core) -> None:
    """Lead the term that was won, and begin it with an empty entry.

    Entries of earlier terms are committed only with that one (Raft paper §5.4.2), and no change of
    the membership is taken before everything now in the log is applied: one of an earlier leader
    may be among it (Ongaro 2015).
    """
    invariant(core.role is Role.CANDIDATE, "elected without a campaign", role=core.role)
    _enter(core, core.term, Role.LEADER, core.id)
    leading = core.leading = Leadership(pending_conf=core.log.last_index)
    for node in core.membership.nodes:
        leading.progress[node] = new_progress(core, core.log.last_index + 1)
    own = leading.progress.get(core.id)
    if own is not None:  # a leader that lost its vote is none of those it leads
        own.match = core.log.stable
        own.become_replicate()
    append_entries(core, leading, ((KIND_EMPTY, b""),))


def new_progress(core: Core, next_index: int) -> Progress:
    """A follower of whose log nothing is known."""
    config = core.config
    return Progress(next_index, Inflights(config.inflight_messages_max, config.inflight_bytes_max))


def append_entries(core: Core, leading: Leadership, proposals: Sequence[tuple[int, bytes]]) -> int:
    """Give (kind, data) pairs their place in a leader's log; the last index.

    Raises: ProposalDropped when too much is uncommitted; one proposal is always taken.
    """
    first = core.log.last_index + 1
    entries = [
        Entry(first + offset, core.term, kind, data)
        for offset, (kind, data) in enumerate(proposals)
    ]
    size, before = payload_bytes(entries), leading.uncommitted_bytes
    if before and size and before + size > core.config.uncommitted_bytes_max:
        raise ProposalDropped(
            f"{before} bytes of proposals wait to be committed, at most"
            f" {core.config.uncommitted_bytes_max}: wait for answers and propose again"
        )
    leading.uncommitted_bytes = before + size
    core.log.append(entries)
    return core.log.last_index


def _enter(core: Core, term: int, role: Role, leader: int) -> None:
    invariant(term >= core.term, "the term falls", term=term, own=core.term)
    if term != core.term:
        core.term = term
        core.vote = 0
    core.role = role
    core.leader = leader
    core.leading = None
    core.votes = {}
    core.heartbeat_elapsed = 0
    draw_timeout(core)
