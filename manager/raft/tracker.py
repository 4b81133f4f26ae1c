"""What a leader knows of one follower: how far its log matches, and how it is being sent more.

    PROBE ── the log matches ─► REPLICATE        one message an interval / a window of messages
    any ── its entries are compacted ─► SNAPSHOT ── installed or failed ─► PROBE

Invariants: match < next; `match` only rises within a term; the window is never exceeded by more
than the message that filled it. Source: etcd-io/raft `tracker`.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from shoal.errors import invariant


class ProgressState(IntEnum):
    """How a follower is being sent entries."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Inflights:
    """The appends under way to one follower: last index and bytes of each, oldest first."""

    __slots__ = ("_messages", "_messages_max", "bytes", "bytes_max")

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self._messages: deque[tuple[int, int]] = deque()
        self._messages_max = messages_max
        self.bytes_max = bytes_max
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def is_full(self) -> bool:
        """Whether the next append has to wait."""
        return len(self._messages) >= self._messages_max or self.bytes >= self.bytes_max

    def add(self, index: int, size_bytes: int) -> None:
        """An append that ends at `index` is under way. Refuses when full: ask first."""
        invariant(not self.is_full, "append sent into a full window", index=index)
        self._messages.append((index, size_bytes))
        self.bytes += size_bytes

    def free_to(self, index: int) -> None:
        """Appends that end at or before `index` have arrived."""
        messages = self._messages
        while messages and messages[0][0] <= index:
            self.bytes -= messages.popleft()[1]

    def clear(self) -> None:
        """Nothing is under way."""
        self._messages.clear()
        self.bytes = 0


class Progress:
    """One follower, as seen by the leader.

    next: the first entry to send. paused: wait for an answer or the next heartbeat.
    pending_snapshot: its index, in state SNAPSHOT. sent_commit: the highest commit index sent.
    recent_active: heard of since the last quorum check. acked_read: the newest confirmed read.
    """

    __slots__ = (
        "acked_read", "inflights", "match", "next", "paused", "pending_snapshot", "recent_active",
        "sent_commit", "state",
    )  # fmt: skip

    def __init__(self, next_index: int, inflights: Inflights) -> None:
        self.match = 0
        self.next = next_index
        self.state = ProgressState.PROBE
        self.paused = False
        self.recent_active = False
        self.pending_snapshot = 0
        self.sent_commit = 0
        self.acked_read = 0
        self.inflights = inflights

    @property
    def is_paused(self) -> bool:
        """Whether no append may be sent now."""
        return self.paused or self.state is ProgressState.SNAPSHOT

    def become_probe(self) -> None:
        """Find out where the log matches, one message at a time."""
        after = self.match + 1
        if self.state is ProgressState.SNAPSHOT:
            after = max(after, self.pending_snapshot + 1)
        self._reset(ProgressState.PROBE)
        self.next = after
        self.sent_commit = min(self.sent_commit, after - 1)

    def become_replicate(self) -> None:
        """The log matches up to `match`: send what follows without waiting."""
        self._reset(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        """A snapshot of `index` is under way; nothing else is sent until it is settled."""
        self._reset(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def update(self, index: int) -> bool:
        """The follower's log matches up to `index`; false when that was known."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.paused = False
        return True

    def decrease(self, rejected: int, hint: int) -> bool:
        """An append after `rejected` was refused, try `hint`; false when the answer is old."""
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
            self.sent_commit = min(self.sent_commit, self.next - 1)
            return True
        if self.next - 1 != rejected:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.paused = False
        return True

    def sent(self, last_index: int, size_bytes: int) -> None:
        """Entries up to `last_index` were sent."""
        if self.state is ProgressState.REPLICATE:
            self.next = last_index + 1
            self.inflights.add(last_index, size_bytes)
            self.paused = self.inflights.is_full
        else:
            self.paused = True

    def may_raise_commit(self, commit: int) -> bool:
        """Whether telling the follower `commit` would let it commit more than it was told."""
        return commit > self.sent_commit and self.sent_commit < self.next - 1

    def _reset(self, state: ProgressState) -> None:
        self.state = state
        self.paused = False
        self.pending_snapshot = 0
        self.inflights.clear()
