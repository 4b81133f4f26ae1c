"""What the log stores: entries, the hard state and the snapshot mark, all opaque to storage.

A `Batch` is the unit of atomicity: after a crash all of it is there or none of it.
"""

from __future__ import annotations

import msgspec

from manager.storage.errors import CorruptLog


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One Raft entry; `kind` (0-255) and `data` mean nothing here."""

    index: int
    term: int
    kind: int
    data: bytes


class HardState(msgspec.Struct, frozen=True, gc=False):
    """What a Raft node must never forget: its term, its vote in it (0 = none), its commit index."""

    term: int = 0
    vote: int = 0
    commit: int = 0


class SnapshotMark(msgspec.Struct, frozen=True, gc=False):
    """A snapshot file of this index and term is durable; the log may start after it."""

    index: int
    term: int


Record = Entry | HardState | SnapshotMark


class Batch(msgspec.Struct, frozen=True):
    """What one `append` makes durable together; the mark comes first, the hard state last."""

    entries: tuple[Entry, ...] = ()
    hard_state: HardState | None = None
    mark: SnapshotMark | None = None

    def records(self) -> list[Record]:
        """The records in the order in which they are written."""
        head: list[Record] = [self.mark] if self.mark is not None else []
        tail: list[Record] = [self.hard_state] if self.hard_state is not None else []
        return [*head, *self.entries, *tail]


class Recovered(msgspec.Struct, frozen=True):
    """What the log held when it was opened.

    `entries` are contiguous from `first_index`; they may begin before the mark, so that an older
    snapshot can be used. `repaired` names the `.broken` copy of a torn tail, if one was cut off.
    """

    hard_state: HardState
    mark: SnapshotMark | None
    first_index: int
    entries: tuple[Entry, ...]
    repaired: str | None = None

    @property
    def last_index(self) -> int:
        """The index of the last entry; `first_index - 1` when there is none."""
        return self.first_index + len(self.entries) - 1

    def entries_after(self, index: int) -> tuple[Entry, ...]:
        """The entries that follow a snapshot of `index`.

        Raises: CorruptLog when entries between the snapshot and the log are missing.
        """
        if index < self.first_index - 1 or index > self.last_index:
            raise CorruptLog(
                f"the log holds entries {self.first_index} to {self.last_index} and does not"
                f" continue a snapshot of index {index}; remove this manager from the cluster,"
                " wipe its state directory and join it again",
                index=index,
            )
        return self.entries[index + 1 - self.first_index :]
