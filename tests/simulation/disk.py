"""A disk in memory with a disk's manners: what was synced survives a crash, of the rest a prefix.

A write is one batch of the log, atomic as the log makes it (a torn batch is cut off on recovery),
so what a crash leaves of the unsynced writes is any number of whole ones, in order.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from manager.raft.entries import Entry, HardState, Snapshot
from manager.raft.storage import MemoryStorage


class Write(NamedTuple):
    """A batch. `replaces`: the snapshot came from a leader, so the log begins anew after it."""

    entries: tuple[Entry, ...] = ()
    hard_state: HardState | None = None
    snapshot: Snapshot | None = None
    replaces: bool = False


class Disk:
    """One node's disk."""

    def __init__(self, snapshot: Snapshot) -> None:
        """`snapshot`: what a first member begins with; an empty one for a node that joins."""
        self.hard_state = HardState(term=snapshot.term, commit=snapshot.index)
        self.snapshot = snapshot
        self.before = snapshot.index
        self.entries: list[Entry] = []
        self.unsynced: list[Write] = []

    def write(self, write: Write) -> None:
        self.unsynced.append(write)

    def sync(self) -> None:
        for write in self.unsynced:
            self._keep(write)
        self.unsynced.clear()

    def crash(self, chance: random.Random) -> None:
        """Power is cut: any number of the oldest unsynced writes made it."""
        for write in self.unsynced[: chance.randint(0, len(self.unsynced))]:
            self._keep(write)
        self.unsynced.clear()

    def release(self, index: int) -> None:
        """Entries up to `index` are covered by a durable snapshot and may go."""
        if self.before < index <= self.snapshot.index:
            del self.entries[: index - self.before]
            self.before = index

    def term(self, index: int) -> int | None:
        """The term of a durable entry; None when it is not durable."""
        if index == self.snapshot.index:
            return self.snapshot.term
        place = index - self.before - 1
        return self.entries[place].term if 0 <= place < len(self.entries) else None

    def storage(self) -> MemoryStorage:
        """What a node finds when it starts."""
        following = [entry for entry in self.entries if entry.index > self.snapshot.index]
        return MemoryStorage(self.snapshot, following)

    def _keep(self, write: Write) -> None:
        if write.snapshot is not None:
            self.snapshot = write.snapshot
            if write.replaces:
                self.entries = []
                self.before = write.snapshot.index
        if write.entries:
            place = write.entries[0].index - self.before - 1
            assert 0 <= place <= len(self.entries), "the driver left a gap on its disk"
            del self.entries[place:]
            self.entries.extend(write.entries)
        if write.hard_state is not None:
            self.hard_state = write.hard_state
