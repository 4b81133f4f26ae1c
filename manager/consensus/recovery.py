"""From a state directory to what a member starts with: tables, log, membership.

What may be there: nothing (a new cluster's first entry then makes it the one voter; otherwise it
joins), the log of a member, or one written before managers spoke Raft (term 1 throughout, neither
hard state nor membership): that becomes the log of a cluster of one voter, by a snapshot that says
so. Invariant: nothing is taken for committed that the log does not know to be. Refuses damage,
foreign logs, snapshots without a log. All of it blocks: call it before the loop has work, or in a
thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from manager.consensus.roster import (
    KeptMembership,
    Member,
    Roster,
    decode_membership,
    encode_membership,
)
from manager.raft.confchange import Membership, changed, decode_change, membership_of
from manager.raft.entries import KIND_CONF_CHANGE, ConfState, Entry, HardState, Snapshot
from manager.raft.node import Start
from manager.raft.storage import MemoryStorage
from manager.storage import entries as disk
from manager.storage.errors import REJOIN, CorruptLog
from manager.storage.member import Member as Opened
from manager.storage.member import Opening, open_member
from manager.storage.snapshot_dir import SnapshotFile
from manager.storage.snapshot_file import SnapshotRecord
from manager.store.history import History
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.errors import FailedPrecondition, InvariantViolation
from shoal.model.objects import AnyObject, StoreEntry
from shoal.wire.objects import entry_from_bytes, object_from_bytes, object_to_bytes

KIND_STORE = 1
"""Entry and snapshot record kind: a StoreEntry, an Object."""
ENTRIES_KEPT = 5_000
"""Entries before a snapshot that stay in memory for followers that lag a little."""
FIRST_TERM = 1


class Place(msgspec.Struct, frozen=True):
    """Where a member keeps what it has, and who it is. address: HOST:PORT for the others."""

    directory: Path
    opening: Opening
    node_id: str
    address: str


class Recovery(NamedTuple):
    """What a member starts with. Without voters in `start` it has to join.

    history: the commits that were replayed, so that watches go on after a restart.
    """

    me: Member
    tables: Tables
    history: History
    opened: Opened
    start: Start
    roster: Roster

    @property
    def must_join(self) -> bool:
        """Whether this member has no log to continue."""
        return not self.start.conf_state.voters


def recover(place: Place, first_entry: StoreEntry | None = None) -> Recovery:
    """Load what the directory holds.

    first_entry: of a new cluster; used only when there is no log yet.
    Raises: CorruptLog, CorruptSnapshot, FailedPrecondition (locked, foreign or newer; snapshots
    without a log), ResourceExhausted when there is no space for a log.
    """
    opened = open_member(place.directory, place.opening)
    me = Member(opened.wal.identity.raft_id, place.node_id, place.address)
    try:
        return _load(me, opened, first_entry)
    except BaseException:
        opened.wal.close()
        raise


def _load(me: Member, opened: Opened, first_entry: StoreEntry | None) -> Recovery:
    wal, recovered = opened.wal, opened.recovered
    hard, mark = recovered.hard_state, recovered.mark
    if hard.term == 0 and (mark is not None or recovered.entries):
        _adopt(me, opened)
        mark, hard = wal.mark, wal.hard_state
        recovered = msgspec.structs.replace(recovered, hard_state=hard, mark=mark)
    elif mark is None and not recovered.entries and first_entry is not None:
        tables = Tables()
        _replaying(tables).apply(first_entry, 1, 0)
        _begin(me, opened, tables, 1)
        mark, hard = wal.mark, wal.hard_state
        recovered = disk.Recovered(hard, mark, 2, ())
    snapshot = opened.snapshots.load(mark)
    if snapshot is None:
        if recovered.entries:
            raise CorruptLog(f"{wal.directory}: entries without a snapshot before them; {REJOIN}")
        start = Start(storage=MemoryStorage(), hard_state=HardState(hard.term, hard.vote, 0))
        return Recovery(me, Tables(), History(), opened, start, Roster())
    return _continue(me, msgspec.structs.replace(opened, recovered=recovered), snapshot)


def _continue(me: Member, opened: Opened, snapshot: SnapshotFile) -> Recovery:
    recovered = opened.recovered
    kept = read_membership(snapshot)
    tables = read_tables(snapshot)
    hard = recovered.hard_state
    base = Snapshot(snapshot.index, snapshot.term, kept.conf_state)
    recovered.entries_after(snapshot.index)  # refuses a gap
    storage = MemoryStorage(base, [Entry(*_fields(entry)) for entry in recovered.entries])
    storage.compact(max(0, snapshot.index - ENTRIES_KEPT))
    replay = Replay(tables, membership_of(kept.conf_state), kept.roster)
    committed = max(hard.commit, snapshot.index)
    if committed > snapshot.index and committed <= storage.last_index:
        replay.apply(storage.entries(snapshot.index + 1, committed + 1, 1 << 62))
    start = Start(
        storage=storage,
        hard_state=HardState(hard.term, hard.vote, hard.commit),
        conf_state=replay.membership.conf_state(),
        applied=min(committed, storage.last_index),
    )
    return Recovery(me, tables, replay.history, opened, start, replay.roster)


class Replay:
    """Applies committed entries to tables, membership and roster, without a Raft node."""

    def __init__(self, tables: Tables, membership: Membership, roster: Roster) -> None:
        self.tables = tables
        self.membership = membership
        self.roster = roster
        self._store = _replaying(tables)

    @property
    def history(self) -> History:
        """The last commits of what was applied."""
        return self._store.history

    def apply(self, entries: Sequence[Entry]) -> None:
        """Apply entries that are known to be committed, in order."""
        for entry in entries:
            if entry.kind == KIND_STORE:
                _apply(self._store, entry)
            elif entry.kind == KIND_CONF_CHANGE:
                change = decode_change(entry.data)
                self.membership = changed(self.membership, change)
                self.roster = self.roster.after(change)


def read_membership(snapshot: SnapshotFile) -> KeptMembership:
    """The membership in a snapshot. Raises: FailedPrecondition when there is none."""
    if not snapshot.metadata:
        raise FailedPrecondition(f"{snapshot.path}: holds no membership; {REJOIN}")
    return decode_membership(snapshot.metadata)


def read_tables(snapshot: SnapshotFile) -> Tables:
    """The objects in a snapshot."""
    rows = (object_from_bytes(record.data) for record in snapshot.records())
    return Tables(rows, version=snapshot.index)


def records(rows: Iterable[AnyObject]) -> Iterator[SnapshotRecord]:
    """Objects as a snapshot keeps them."""
    for row in rows:
        yield SnapshotRecord(kind=KIND_STORE, data=object_to_bytes(row))


def _adopt(me: Member, opened: Opened) -> None:
    """Make the log of a manager that was alone the log of a cluster of one voter.

    Every entry of such a log is committed: it was durable, and nobody else was asked.
    """
    snapshot = opened.snapshots.load(opened.recovered.mark)
    tables = Tables() if snapshot is None else read_tables(snapshot)
    store = _replaying(tables)
    for entry in opened.recovered.entries_after(tables.version):
        _apply(store, Entry(*_fields(entry)))
    _begin(me, opened, tables, opened.wal.last_index)


def _begin(me: Member, opened: Opened, tables: Tables, index: int) -> None:
    """A snapshot of `index` that names this member the one voter, and the hard state after it."""
    conf_state = ConfState(voters=(me.raft_id,))
    membership = encode_membership(conf_state, Roster({me.raft_id: me}))
    rows = tuple(tables.all_rows())
    opened.snapshots.save(index, FIRST_TERM, records(rows), metadata=membership)
    opened.wal.append(
        mark=disk.SnapshotMark(index, FIRST_TERM), hard_state=disk.HardState(FIRST_TERM, 0, index)
    )


def _replaying(tables: Tables) -> Store:
    return Store(tables, _NoClock())


def _apply(store: Store, entry: Entry) -> None:
    store.apply(entry_from_bytes(entry.data), entry.index, len(entry.data))


def _fields(entry: disk.Entry) -> tuple[int, int, int, bytes]:
    return entry.index, entry.term, entry.kind, entry.data


class _NoClock:
    """Replay must not read a clock; times come from the entries."""

    def now_ns(self) -> int:
        raise InvariantViolation("replay read a clock")

    def monotonic_s(self) -> float:
        raise InvariantViolation("replay read a clock")
