"""Make a stopped manager the only member of its cluster, when the majority is lost for good.

What it does in one batch of the log, so that a crash leaves the old state or the new one: the
newest snapshot is one of the whole log, written anew with a membership of this member alone; the
term goes up by one. What is not known to be committed counts as committed, as it would if this
member were elected: an entry may have been acknowledged although this member was not told so.
Repeating it after a crash is safe. The other old managers must be wiped before they start again:
nobody can tell them, and with a majority of them the old cluster would go on beside the new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from manager.storage.entries import Entry, HardState, SnapshotMark
from manager.storage.member import Member, Opening, open_member
from manager.storage.snapshot_dir import SnapshotFile
from manager.storage.snapshot_file import SnapshotRecord
from shoal.errors import FailedPrecondition


class LastState(msgspec.Struct, frozen=True):
    """What the member holds: a snapshot, and all entries that follow it."""

    raft_id: int
    snapshot: SnapshotFile | None
    entries: Sequence[Entry]


class NewState(msgspec.Struct, frozen=True):
    """The same state as records, and the membership of one as the driver keeps it."""

    records: Iterable[SnapshotRecord]
    metadata: bytes


class Forced(msgspec.Struct, frozen=True):
    """The only member now; its state is that after `index`.

    adopted: entries that were not known to be committed before.
    """

    raft_id: int
    index: int
    term: int
    adopted: int


def force_new_cluster(
    directory: Path, opening: Opening, rebuild: Callable[[LastState], NewState]
) -> Forced:
    """Make the member of a stopped manager's raft directory the only one. Blocks on the disk.

    rebuild: applies the entries to the snapshot and names this member alone in the metadata.
    Raises: NotFound when there is no log; FailedPrecondition when nothing was ever committed in it
    or a manager runs; what `open_member`, the snapshot and the log raise.
    """
    only = msgspec.structs.replace(opening, create=False, keep_old=0)
    member = open_member(directory, only)
    try:
        return _force(member, rebuild)
    finally:
        member.wal.close()


def _force(member: Member, rebuild: Callable[[LastState], NewState]) -> Forced:
    recovered, wal, raft_id = member.recovered, member.wal, member.wal.identity.raft_id
    hard_state, mark = recovered.hard_state, recovered.mark
    # A log without a term was written by a manager alone: all of it is committed.
    commit = recovered.last_index if hard_state.term == 0 else hard_state.commit
    commit = max(commit, 0 if mark is None else mark.index)
    if commit == 0:
        raise FailedPrecondition(
            f"{wal.directory}: nothing was ever committed here: there is no cluster to force"
        )
    snapshot = member.snapshots.load(mark)
    start = 0 if snapshot is None else snapshot.index
    entries = recovered.entries_after(start)
    last = entries[-1].index if entries else start
    last_term = entries[-1].term if entries else (0 if snapshot is None else snapshot.term)
    state = rebuild(LastState(raft_id, snapshot, entries))
    member.snapshots.save(last, last_term, state.records, metadata=state.metadata)
    new_mark = SnapshotMark(last, last_term)
    term = max(hard_state.term, last_term) + 1
    wal.append([], HardState(term, raft_id, last), new_mark)
    wal.release(member.snapshots.prune(new_mark))
    return Forced(raft_id, last, term, last - commit)
