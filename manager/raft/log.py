"""The log: a durable part (`storage`) and a tail that is not durable yet.

    first ........ stable | stable + 1 ........ last      applied <= committed <= last
    ◄─── storage ────────►|◄──── unstable ─────►          applied <= stable

Invariants: indexes are contiguous, terms never fall; a committed entry is never replaced; only
durable entries are given out to be applied, so no crash can leave an application ahead of its
log (etcd #14370). Entries that match are never truncated: an old or repeated append changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from manager.raft.entries import Entry, Snapshot
from manager.raft.storage import LogStorage, fitting
from shoal.errors import invariant


class RaftLog:
    """The log of one node. Entries outside of it have no term (None)."""

    __slots__ = ("applied", "committed", "pending_snapshot", "stable", "storage", "unstable")

    def __init__(self, storage: LogStorage, *, committed: int, applied: int) -> None:
        self.storage = storage
        self.stable = storage.last_index
        self.unstable: list[Entry] = []
        self.pending_snapshot: Snapshot | None = None
        self.committed = committed
        self.applied = applied

    @property
    def first_index(self) -> int:
        """The first entry that can still be read."""
        if self.pending_snapshot is not None:
            return self.pending_snapshot.index + 1
        return self.storage.first_index

    @property
    def last_index(self) -> int:
        """The last entry, durable or not."""
        return self.stable + len(self.unstable)

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        if self.unstable:
            return self.unstable[-1].term
        return self.known_term(self.stable)

    def term(self, index: int) -> int | None:
        """The term of an entry or of the one before the first; None when it is not known."""
        place = index - self.stable
        if place > 0:
            return self.unstable[place - 1].term if place <= len(self.unstable) else None
        if self.pending_snapshot is not None:
            # The snapshot has replaced everything before it.
            return self.pending_snapshot.term if place == 0 else None
        return self.storage.term(index)

    def known_term(self, index: int) -> int:
        """The term of an entry that must be there."""
        term = self.term(index)
        invariant(term is not None, "entry is not in the log", index=index, last=self.last_index)
        return term or 0

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Whether a log that ends with (index, term) holds all that this one may have committed."""
        last_term = self.last_term
        return term > last_term or (term == last_term and index >= self.last_index)

    def entries(self, low: int, high: int, size_bytes_max: int) -> list[Entry]:
        """Entries [low, high) that fit, at least one; all of them must be held."""
        if low >= high:
            return []
        split = self.stable + 1
        if low >= split:
            return fitting(self.unstable[low - split : high - split], size_bytes_max)
        if high <= split:
            return self.storage.entries(low, high, size_bytes_max)
        found = self.storage.entries(low, split, size_bytes_max)
        if len(found) == split - low:
            found = fitting(found + self.unstable[: high - split], size_bytes_max)
        return found

    def snapshot(self) -> Snapshot | None:
        """The newest snapshot that can be sent, if there is one."""
        snapshot = self.pending_snapshot or self.storage.snapshot
        return snapshot if snapshot.index > 0 else None

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at their place; what stood there and after is dropped."""
        first = entries[0].index
        invariant(first > self.committed, "committed entry replaced", index=first)
        place = first - self.stable - 1
        if place < 0:
            # The durable entries from here on are dropped when the new ones become durable.
            self.stable = first - 1
            self.unstable = list(entries)
            return
        invariant(place <= len(self.unstable), "gap in the log", index=first, last=self.last_index)
        if place < len(self.unstable):
            del self.unstable[place:]
        self.unstable.extend(entries)

    def follow(self, index: int, term: int, entries: Sequence[Entry]) -> int | None:
        """Take a leader's entries after (index, term): the last index that now matches.

        None when the entry before them differs. Entries already here are left alone.
        """
        if self.term(index) != term:
            return None
        if index == self.last_index:
            if entries:
                self.append(entries)
            return index + len(entries)
        for place, entry in enumerate(entries):
            if self.term(entry.index) != entry.term:
                self.append(entries[place:])
                break
        return index + len(entries)

    def conflict_hint(self, index: int, term: int) -> tuple[int, int]:
        """The last entry at or before `index` whose term is at most `term`: (its index, its term).

        Everything after it certainly differs from a log whose entry `index` has `term`. The term
        is 0 when the entry is not known here.
        """
        index = min(index, self.last_index)
        while index > 0:
            own = self.term(index)
            if own is None:
                return index, 0
            if own <= term:
                return index, own
            index -= 1
        return 0, 0

    def commit_to(self, index: int) -> bool:
        """Raise the commit index; true when it rose.

        Committed entries that are missing here were acknowledged once: the disk has lost them.
        """
        if index <= self.committed:
            return False
        invariant(
            index <= self.last_index,
            "the log has lost entries that were acknowledged: remove this manager and join anew",
            commit=index,
            last=self.last_index,
        )
        self.committed = index
        return True

    def restore(self, snapshot: Snapshot) -> None:
        """Replace everything by a snapshot of the leader's."""
        invariant(snapshot.index > self.committed, "older snapshot", index=snapshot.index)
        self.pending_snapshot = snapshot
        self.stable = self.committed = snapshot.index
        self.unstable = []

    @property
    def applicable(self) -> int:
        """The last entry that may be applied: committed and durable."""
        return min(self.committed, self.stable)

    def next_committed(self, size_bytes_max: int) -> list[Entry]:
        """What is to be applied next; nothing while a snapshot waits to be kept."""
        if self.pending_snapshot is not None:
            return []
        return self.entries(self.applied + 1, self.applicable + 1, size_bytes_max)

    def applied_to(self, index: int) -> None:
        """The application has applied entries up to `index`."""
        invariant(
            self.applied <= index <= self.applicable,
            "applied is out of range",
            index=index,
            applied=self.applied,
            committed=self.committed,
            stable=self.stable,
        )
        self.applied = index

    def snapshot_stable(self, snapshot: Snapshot) -> None:
        """A received snapshot is durable; ignored when a newer one came meanwhile."""
        if self.pending_snapshot is snapshot:
            self.storage.restore(snapshot)
            self.pending_snapshot = None

    def entries_stable(self, entries: Sequence[Entry]) -> None:
        """Entries given out before are durable; those replaced meanwhile do not count.

        Entries of the same index and term are the same, and so is all before them.
        """
        if self.pending_snapshot is not None:
            return
        for given in reversed(entries):
            place = given.index - self.stable - 1
            if place < 0:
                return
            if place < len(self.unstable) and self.unstable[place].term == given.term:
                durable = place + 1
                self.storage.append(self.unstable[:durable])
                del self.unstable[:durable]
                self.stable += durable
                return
