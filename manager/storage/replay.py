"""From segments to the state of the log, and the rules by which batches change that state.

Invariant: replaying what was appended gives the state the appender had. Refuses, naming file and
offset: a broken chain between segments, damage, missing entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from manager.storage.entries import Batch, Entry, HardState, Record, Recovered, SnapshotMark
from manager.storage.errors import corrupt_log
from manager.storage.files import FileOps
from manager.storage.frames import SegmentHeader, Unseal, WalIdentity
from manager.storage.scan import Ending, Scan, scan_segment
from manager.storage.sealing import NO_KEY, DataKeys
from manager.storage.segments import Loaded, SegmentFile, cut_torn_tail, load_segment
from manager.storage.shape import LogShape
from shoal.errors import FailedPrecondition, invariant, violated


class LogState(msgspec.Struct):
    """Hard state, newest mark and shape of the log."""

    hard_state: HardState = HardState()
    mark: SnapshotMark | None = None
    shape: LogShape = msgspec.field(default_factory=lambda: LogShape(1))

    def preface(self) -> Batch:
        """What a new segment begins with, so that it does not need its predecessors."""
        return Batch((), self.hard_state, self.mark)

    def after(self, batches: Sequence[Batch]) -> LogState:
        """The state once `batches` are durable; this one stays as it is.

        Raises: FailedPrecondition for a gap; InvariantViolation for what Raft never does.
        """
        state = LogState(self.hard_state, self.mark, self.shape.copy())
        for batch in batches:
            state._add(batch)
        return state

    def _add(self, batch: Batch) -> None:
        mark, shape = batch.mark, self.shape
        if mark is not None:
            invariant(
                self.mark is None or mark.index >= self.mark.index,
                "snapshot mark goes back", old=self.mark, new=mark,
            )  # fmt: skip
            held = shape.term(mark.index)
            invariant(
                held in (None, mark.term) or mark.index > self.hard_state.commit,
                "snapshot contradicts a committed entry", mark=mark, term=held,
            )  # fmt: skip
            shape.mark(mark.index, mark.term)
            self.mark = mark
        floor = max(self.hard_state.commit, self.mark.index if self.mark is not None else 0)
        for entry in batch.entries:
            if entry.index <= floor:
                violated("overwrites a committed entry", index=entry.index, commit=floor)
            shape.append(entry.index, entry.term)
        if batch.hard_state is not None:
            self._vote(batch.hard_state)

    def _vote(self, new: HardState) -> None:
        old = self.hard_state
        invariant(
            new.term >= old.term and new.commit >= old.commit and new.commit <= self.shape.last,
            "hard state goes back or beyond the log", old=old, new=new, last=self.shape.last,
        )  # fmt: skip
        self.hard_state = new


class Replay:
    """Feeds segments, oldest first, into a LogState and the list of live entries.

    keys: opens segments with a key. repair: whether a torn tail is cut off; without it nothing on
    the disk changes.
    """

    def __init__(
        self,
        files: FileOps,
        dir_fd: int,
        identity: WalIdentity,
        *,
        keys: DataKeys | None = None,
        repair: bool = True,
    ) -> None:
        self.state = LogState()
        self._files = files
        self._dir_fd = dir_fd
        self._identity = identity
        self._keys = keys
        self._repair = repair
        self._entries: list[Entry] = []
        self._end: tuple[Loaded, Scan] | None = None
        self._repaired: str | None = None

    @property
    def header(self) -> SegmentHeader:
        """The header of the last segment read."""
        return self._last()[0].header

    @property
    def offset(self) -> int:
        """Where the next batch goes in the last segment."""
        return self._last()[1].offset

    @property
    def chain(self) -> int:
        """The crc the next record continues."""
        return self._last()[1].chain

    def read(self, file: SegmentFile, *, is_last: bool) -> Scan:
        """Read the next segment; a torn tail of the last one is repaired."""
        loaded = load_segment(file)
        path = str(file.path)
        self._check_origin(loaded, path)
        unseal = self._unseal(loaded.header.key_id, path)
        scan = scan_segment(loaded.content, loaded.header, path, unseal=unseal)
        if scan.ending is Ending.DAMAGED:
            raise corrupt_log(path, scan.bad_offset, scan.reason)
        if scan.ending is Ending.TORN and not is_last:
            reason = f"{scan.reason}, though later segments exist"
            raise corrupt_log(path, scan.bad_offset, reason)
        if not scan.batches:
            raise corrupt_log(path, scan.offset, "the hard state at the beginning is missing")
        if self._end is None:
            self.state.shape = LogShape(file.index)
        for batch in scan.batches:
            self._apply(batch, path)
        if scan.ending is Ending.TORN and self._repair:
            copy = cut_torn_tail(self._files, self._dir_fd, loaded, scan)
            self._repaired = str(copy)
        # The content can be 64 MiB and is not needed again.
        self._end = (Loaded(file, loaded.header, b""), scan)
        return scan

    def finish(self) -> Recovered:
        """What was recovered. Raises: CorruptLog when entries after the snapshot are missing."""
        state, mark = self.state, self.state.mark
        covered = mark.index if mark is not None else 0
        if covered < state.shape.first - 1:
            reason = (
                f"the log begins at entry {state.shape.first}, its newest snapshot is of {covered}"
            )
            raise corrupt_log(str(self._last()[0].file.path), 0, reason)
        entries = tuple(self._entries)
        return Recovered(state.hard_state, mark, state.shape.first, entries, self._repaired)

    def _unseal(self, key_id: bytes, path: str) -> Unseal | None:
        if key_id == NO_KEY:
            return None
        if self._keys is None:
            raise FailedPrecondition(
                f"{path}: encrypted with key {key_id.hex()}, and no keys were given"
            )
        return self._keys.get(key_id).unseal

    def _check_origin(self, loaded: Loaded, path: str) -> None:
        identity = loaded.header.identity
        if identity != self._identity:
            raise FailedPrecondition(
                f"{path}: belongs to member {identity.raft_id} of cluster {identity.cluster_id},"
                f" not to {self._identity.raft_id} of {self._identity.cluster_id}:"
                " wrong --state-dir?"
            )
        if self._end is not None and loaded.header.prev_crc != self.chain:
            raise corrupt_log(path, 0, "does not continue the segment before it")

    def _apply(self, records: Sequence[Record], path: str) -> None:
        shape = self.state.shape
        for record in records:
            match record:
                case HardState():
                    self.state.hard_state = record
                case SnapshotMark(index, term):
                    if shape.mark(index, term):
                        self._entries.clear()
                    self.state.mark = record
                case Entry(index, term):
                    try:
                        shape.append(index, term)
                    except FailedPrecondition as error:
                        raise corrupt_log(path, 0, str(error)) from error
                    del self._entries[index - shape.first :]
                    self._entries.append(record)

    def _last(self) -> tuple[Loaded, Scan]:
        if self._end is None:
            violated("no segment was read")
        return self._end
