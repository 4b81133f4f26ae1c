"""The part of the log that is durable, as the core sees it.

The core calls the changing methods itself, and only with what its user has already made durable
(in `Raft.advance`); an implementation needs memory only. Entries before the first index were
compacted; the snapshot that covers them is what followers that need them are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from manager.raft.entries import Entry, Snapshot, entry_bytes
from shoal.errors import InvalidArgument, invariant

NO_SNAPSHOT = Snapshot()


class LogStorage(Protocol):
    """Entries `first_index` to `last_index`, contiguous, and the newest snapshot."""

    @property
    def first_index(self) -> int:
        """The first entry held; `last_index + 1` when there is none."""
        ...

    @property
    def last_index(self) -> int:
        """The last entry held, or the one before `first_index`."""
        ...

    @property
    def snapshot(self) -> Snapshot:
        """The newest durable snapshot; index 0 when there is none."""
        ...

    def term(self, index: int) -> int | None:
        """The term of an entry from `first_index - 1` on; None for others."""
        ...

    def entries(self, low: int, high: int, size_bytes_max: int) -> list[Entry]:
        """Entries [low, high) that fit, at least one; all of them are held."""
        ...

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at their place; what stood there and after is dropped."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Forget everything and continue after a snapshot received from the leader."""
        ...

    def offer(self, snapshot: Snapshot) -> None:
        """A newer snapshot of this node's own state is durable; the entries stay."""
        ...

    def compact(self, index: int) -> None:
        """Drop the entries up to `index`."""
        ...


class MemoryStorage:
    """A LogStorage in a list."""

    __slots__ = ("_before", "_before_term", "_entries", "_snapshot")

    def __init__(self, snapshot: Snapshot = NO_SNAPSHOT, entries: Sequence[Entry] = ()) -> None:
        """`entries` continue the snapshot, or begin before it and reach it.

        Raises: InvalidArgument when they do neither or have gaps.
        """
        self._snapshot = snapshot
        self._entries: list[Entry] = []
        self._before, self._before_term = snapshot.index, snapshot.term
        for offset, entry in enumerate(entries):
            if entry.index != entries[0].index + offset:
                raise InvalidArgument(f"log: entry {entry.index} follows a gap")
        if not entries:
            return
        first, last = entries[0].index, entries[-1].index
        if first > snapshot.index + 1 or last < snapshot.index:
            raise InvalidArgument(
                f"log: entries {first} to {last} do not continue the snapshot of {snapshot.index}"
            )
        if first <= snapshot.index:
            # The first one is the anchor: it gives the term of the entry before the others.
            self._before, self._before_term = first, entries[0].term
            entries = entries[1:]
        self._entries = list(entries)

    @property
    def first_index(self) -> int:
        """The first entry held; `last_index + 1` when there is none."""
        return self._before + 1

    @property
    def last_index(self) -> int:
        """The last entry held, or the one before `first_index`."""
        return self._before + len(self._entries)

    @property
    def snapshot(self) -> Snapshot:
        """The newest durable snapshot; index 0 when there is none."""
        return self._snapshot

    def term(self, index: int) -> int | None:
        """The term of an entry from `first_index - 1` on; None for others."""
        place = index - self._before
        if place == 0:
            return self._before_term
        if 0 < place <= len(self._entries):
            return self._entries[place - 1].term
        return None

    def entries(self, low: int, high: int, size_bytes_max: int) -> list[Entry]:
        """Entries [low, high) that fit, at least one; all of them are held."""
        start = low - self._before - 1
        found = self._entries[start : high - self._before - 1]
        invariant(start >= 0 and len(found) == high - low, "entries not held", low=low, high=high)
        return fitting(found, size_bytes_max)

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at their place; what stood there and after is dropped."""
        place = entries[0].index - self._before - 1
        invariant(0 <= place <= len(self._entries), "gap in the log", index=entries[0].index)
        if place < len(self._entries):
            del self._entries[place:]
        self._entries.extend(entries)

    def restore(self, snapshot: Snapshot) -> None:
        """Forget everything and continue after a snapshot received from the leader."""
        invariant(snapshot.index > self._snapshot.index, "older snapshot", index=snapshot.index)
        self._snapshot = snapshot
        self._before, self._before_term = snapshot.index, snapshot.term
        self._entries = []

    def offer(self, snapshot: Snapshot) -> None:
        """A newer snapshot of this node's own state is durable; the entries stay."""
        if snapshot.index <= self._snapshot.index:
            return
        invariant(self.term(snapshot.index) == snapshot.term, "foreign snapshot", snapshot=snapshot)
        self._snapshot = snapshot

    def compact(self, index: int) -> None:
        """Drop the entries up to `index`."""
        if index <= self._before:
            return
        invariant(index <= self._snapshot.index, "compaction past the snapshot", index=index)
        term = self.term(index)
        invariant(term is not None, "compaction past the log", index=index)
        del self._entries[: index - self._before]
        self._before, self._before_term = index, term or 0


def fitting(entries: list[Entry], size_bytes_max: int) -> list[Entry]:
    """The longest prefix within the limit, at least one entry if there is one."""
    total = 0
    for place, entry in enumerate(entries):
        total += entry_bytes(entry)
        if total > size_bytes_max and place > 0:
            return entries[:place]
    return entries
