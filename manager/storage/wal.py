"""The write-ahead log: what was appended before a power cut is there after it.

Invariants: `append` returns only after one fdatasync that covers the whole batch; a batch is
there after a crash as a whole or not at all; every segment begins with a copy of hard state and
mark, so older segments can go. Refuses: any call after the disk failed (StorageFailed), a second
process on the directory, a log that is damaged anywhere but in its torn tail, a log of another
cluster or member, and overwriting a committed entry. Not thread-safe: `driver.AsyncWal` owns it.
Idea: etcd `server/storage/wal`; differences in docs/design/storage.md.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, Self

import msgspec

from manager.storage.entries import Batch, Entry, HardState, Recovered, SnapshotMark
from manager.storage.errors import StorageFailed, disk_error, is_no_space
from manager.storage.files import FileOps, discard, write_all
from manager.storage.frames import (
    FRAME_HEAD_BYTES,
    HEADER_BYTES,
    SEGMENT_BYTES_MAX,
    SegmentHeader,
    WalIdentity,
    encode_batch,
    encode_header,
    encode_payload,
    encode_sealed,
    frame_bytes,
    home,
)
from manager.storage.replay import LogState, Replay
from manager.storage.sealing import NO_KEY, DataKey, DataKeys
from manager.storage.segments import (
    SegmentAhead,
    SegmentFile,
    list_segments,
    remove_left_overs,
    segment_path,
)
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, SwarmError

SEGMENT_BYTES = 64 << 20
SEGMENT_BYTES_MIN = 4096
APPEND_BYTES_MAX = 256 << 20


class Tail(msgspec.Struct):
    """Where the next batch goes; bytes up to `dirty_end` may be left of a failed batch.

    first_end: the end of the first record of that batch.
    """

    fd: int
    header: SegmentHeader
    offset: int
    chain: int
    dirty_end: int = 0
    first_end: int = 0


class Wal:
    """An open log. Use `Wal.create` or `Wal.open`; close it to let another process in."""

    def __init__(
        self,
        directory: Path,
        identity: WalIdentity,
        *,
        segment_bytes: int,
        files: FileOps,
        keys: DataKeys | None,
    ) -> None:
        if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
            raise InvalidArgument(
                f"segment_bytes: {segment_bytes} must be {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}"
            )
        self.directory = directory
        self.identity = identity
        self._segment_bytes = segment_bytes
        self._files = files
        self._keys = keys
        self._ahead = SegmentAhead(files, directory)
        self._segments: list[SegmentFile] = []
        self._tail: Tail | None = None
        self._state = LogState()
        self._refusal: SwarmError | None = None
        self._dir_fd = _lock(files, directory)

    @classmethod
    def create(
        cls,
        directory: Path,
        identity: WalIdentity,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        files: FileOps | None = None,
        keys: DataKeys | None = None,
    ) -> Self:
        """Begin an empty log in `directory`, which is made when missing.

        keys: encrypts what is written; without them the log is readable by whoever reads the disk.
        Raises: FailedPrecondition when a log is there or another process has it;
        ResourceExhausted, StorageFailed from the disk.
        """
        files = files or FileOps()
        _make_directory(files, directory)
        wal = cls(directory, identity, segment_bytes=segment_bytes, files=files, keys=keys)
        try:
            if list_segments(directory):
                raise FailedPrecondition(f"{directory}: holds a log already: open it instead")
            remove_left_overs(files, directory)
            wal._begin_segment(0, None if keys is None else keys.current)
        except BaseException:
            wal.close()
            raise
        return wal

    @classmethod
    def open(
        cls,
        directory: Path,
        identity: WalIdentity,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        files: FileOps | None = None,
        keys: DataKeys | None = None,
    ) -> tuple[Self, Recovered]:
        """Open the log and replay it; a torn tail is cut off and kept as a `.broken` copy.

        keys: needed when a segment is encrypted. With them, what is appended to a log that was not
        encrypted, or with another key, goes into a new segment.
        Raises: NotFound when there is no log (never silently begins one: a forgotten vote breaks
        Raft); CorruptLog; FailedPrecondition when locked, foreign or of a newer version.
        """
        files = files or FileOps()
        if not directory.is_dir():
            raise NotFound(f"{directory}: no log here: create it when the node first joins")
        wal = cls(directory, identity, segment_bytes=segment_bytes, files=files, keys=keys)
        try:
            recovered = wal._recover()
        except BaseException:
            wal.close()
            raise
        return wal, recovered

    @property
    def last_index(self) -> int:
        """Index of the last entry, or of the snapshot when no entry follows it; 0 when empty."""
        return self._state.shape.last

    @property
    def hard_state(self) -> HardState:
        """The hard state last made durable."""
        return self._state.hard_state

    @property
    def mark(self) -> SnapshotMark | None:
        """The newest snapshot mark."""
        return self._state.mark

    def key_ids(self) -> frozenset[bytes]:
        """The ids of the keys that some segment needs."""
        return frozenset(file.key_id for file in self._segments) - {NO_KEY}

    def append(
        self,
        entries: Sequence[Entry] = (),
        hard_state: HardState | None = None,
        mark: SnapshotMark | None = None,
    ) -> None:
        """Make one batch durable: one write, one fdatasync. Errors as `append_all`."""
        self.append_all([Batch(tuple(entries), hard_state, mark)])

    def append_all(self, batches: Sequence[Batch]) -> None:
        """Make several batches durable together, as one: all of them survive or none.

        Entries must follow the log or overwrite an uncommitted suffix of it.
        Raises, with nothing acknowledged: ResourceExhausted when the disk is full (the log stays
        usable); FailedPrecondition for a gap; InvariantViolation for overwriting committed
        entries. StorageFailed is final: restart the process.
        """
        tail = self._usable()
        after = self._state.after(batches)
        key = None if self._keys is None else self._keys.current
        payloads = self._payloads(batches, key)
        if not payloads:
            return
        size = sum(frame_bytes(len(payload)) for _, payload in payloads)
        if size > APPEND_BYTES_MAX:
            raise InvalidArgument(f"append: {size} bytes exceed {APPEND_BYTES_MAX}: split it")
        other_key = tail.header.key_id != (NO_KEY if key is None else key.id)
        if other_key or tail.offset + size > tail.header.size_bytes:
            tail = self._begin_segment(size, key)
        self._write(tail, payloads)
        self._state = after
        if tail.offset > tail.header.size_bytes // 2:
            self._ahead.start(self._segment_bytes)

    def mark_snapshot(self, index: int, term: int) -> None:
        """Note that the snapshot file of (index, term) is durable. Errors as `append_all`."""
        self.append(mark=SnapshotMark(index, term))

    def release(self, index: int) -> int:
        """Delete the segments whose entries are all at or before `index`; returns how many.

        index: that of the oldest snapshot one may still have to load.
        Raises: FailedPrecondition when no mark covers `index`; StorageFailed.
        """
        self._usable()
        mark = self._state.mark
        if mark is None or index > mark.index:
            raise FailedPrecondition(f"release {index}: the newest snapshot mark is {mark}")
        released = 0
        try:
            while len(self._segments) > 1 and self._segments[1].index <= index + 1:
                self._files.unlink(self._segments[0].path)
                del self._segments[0]
                released += 1
            if released:
                self._files.fsync(self._dir_fd)
        except OSError as error:
            self._fail("releasing segments of", self.directory, error)
        return released

    def close(self) -> None:
        """Let go of files and lock; idempotent. Everything acknowledged is durable already."""
        if self._refusal is None:
            self._refusal = FailedPrecondition(f"{self.directory}: the log is closed")
        self._ahead.close()
        if self._tail is not None:
            self._files.close(self._tail.fd)
            self._tail = None
        if self._dir_fd >= 0:
            self._files.close(self._dir_fd)
            self._dir_fd = -1

    def _recover(self) -> Recovered:
        segments = list_segments(self.directory)
        if not segments:
            raise NotFound(f"{self.directory}: no log here: create it when the node first joins")
        replay = Replay(self._files, self._dir_fd, self.identity, keys=self._keys)
        for position, file in enumerate(segments):
            replay.read(file, is_last=file is segments[-1])
            segments[position] = msgspec.structs.replace(file, key_id=replay.header.key_id)
        recovered = replay.finish()
        # Not before the replay: a refused log is left as it was found.
        remove_left_overs(self._files, self.directory)
        self._segments, self._state = segments, replay.state
        fd = self._files.open(segments[-1].path)
        self._tail = Tail(fd, replay.header, replay.offset, replay.chain)
        # A killed process may have written its last batch or named its last segment without the
        # sync: make both durable before they are reported, or a power cut could take them back.
        self._sync("syncing", segments[-1].path, lambda: self._files.fdatasync(fd))
        self._sync("syncing", self.directory, lambda: self._files.fsync(self._dir_fd))
        return recovered

    def _usable(self) -> Tail:
        if self._refusal is not None:
            # A new object each time: a raised exception collects tracebacks.
            raise type(self._refusal)(self._refusal.message, **self._refusal.context)
        if self._tail is None:
            raise FailedPrecondition(f"{self.directory}: the log is not open")
        return self._tail

    def _payloads(self, batches: Sequence[Batch], key: DataKey | None) -> list[tuple[int, bytes]]:
        """Type and payload of every record, entries sealed when there is a key."""
        records = [record for batch in batches for record in batch.records()]
        if key is None:
            return [encode_payload(record) for record in records]
        at_home, seal = home(self.identity), key.sealer(len(records))
        return [
            encode_sealed(record, at_home, seal)
            if isinstance(record, Entry)
            else encode_payload(record)
            for record in records
        ]

    def _write(self, tail: Tail, payloads: Sequence[tuple[int, bytes]]) -> None:
        path = self._segments[-1].path
        self._clear_dirty(tail)
        blob, chain = encode_batch(
            payloads, offset=tail.offset, header_crc=tail.header.crc, chain=tail.chain
        )
        try:
            write_all(self._files, tail.fd, blob, tail.offset)
        except OSError as error:
            tail.dirty_end = tail.offset + len(blob)
            tail.first_end = tail.offset + frame_bytes(len(payloads[0][1]))
            if not is_no_space(error):
                self._fail("writing", path, error)
            self._clear_dirty(tail)
            raise disk_error("writing", str(path), error) from error
        self._sync("syncing", path, lambda: self._files.fdatasync(tail.fd))
        tail.offset, tail.chain = tail.offset + len(blob), chain

    def _clear_dirty(self, tail: Tail) -> None:
        """Zero what a failed batch left, durably, before anything else is written over it.

        Also this may find no space anywhere in between, and what is then left must still show that
        it was cut short: so first the last byte of its first record goes, its header at the end.
        """
        if not tail.dirty_end:
            return
        path = self._segments[-1].path
        head_end = min(tail.offset + FRAME_HEAD_BYTES, tail.dirty_end)
        try:
            write_all(self._files, tail.fd, b"\0", tail.first_end - 1)
            for start in range(head_end, tail.dirty_end, 1 << 20):
                end = min(start + (1 << 20), tail.dirty_end)
                write_all(self._files, tail.fd, bytes(end - start), start)
            write_all(self._files, tail.fd, bytes(head_end - tail.offset), tail.offset)
        except OSError as error:
            if is_no_space(error):
                raise disk_error("cutting a failed batch off", str(path), error) from error
            self._fail("writing", path, error)
        self._sync("syncing", path, lambda: self._files.fdatasync(tail.fd))
        tail.dirty_end = 0

    def _begin_segment(self, need_bytes: int, key: DataKey | None) -> Tail:
        """Create the next segment with room for `need_bytes` and move on to it."""
        old, state = self._tail, self._state
        if old is not None:
            self._clear_dirty(old)
        preface = [encode_payload(record) for record in state.preface().records()]
        used = HEADER_BYTES + sum(frame_bytes(len(payload)) for _, payload in preface)
        size = max(self._segment_bytes, used + need_bytes)
        seq = old.header.seq + 1 if old is not None else 0
        index, key_id = state.shape.last + 1, NO_KEY if key is None else key.id
        file = SegmentFile(segment_path(self.directory, seq, index), seq, index, key_id)
        prev_crc = old.chain if old is not None else 0
        header = SegmentHeader(self.identity, seq, index, size, prev_crc, key_id)
        raw, crc = encode_header(header)
        blob, chain = encode_batch(preface, offset=HEADER_BYTES, header_crc=crc, chain=crc)
        fd = self._install(file.path, raw + blob, size)
        if old is not None:
            self._files.close(old.fd)
        header = msgspec.structs.replace(header, crc=crc)
        self._tail = Tail(fd, header, HEADER_BYTES + len(blob), chain)
        self._segments.append(file)
        return self._tail

    def _install(self, path: Path, head: bytes, size: int) -> int:
        """Give a zero-filled file its head and, once that is durable, its name; returns its fd."""
        temporary = self._take_ahead(size)
        fd = -1
        try:
            fd = self._files.open(temporary)
            write_all(self._files, fd, head, 0)
            self._sync("creating", path, lambda: self._files.fdatasync(fd))
            self._files.rename(temporary, path)
            self._sync("creating", path, lambda: self._files.fsync(self._dir_fd))
        except OSError as error:
            self._abandon(fd, temporary)
            if is_no_space(error):
                raise disk_error("creating", str(path), error) from error
            self._fail("creating", path, error)
        except StorageFailed:
            self._files.close(fd)
            raise
        return fd

    def _abandon(self, fd: int, temporary: Path) -> None:
        if fd >= 0:
            self._files.close(fd)
        discard(self._files, temporary)

    def _sync(self, doing: str, path: Path, sync: Callable[[], None]) -> None:
        """Sync once; any failure, also for lack of space, is final."""
        try:
            sync()
        except OSError as error:
            self._fail(doing, path, error)

    def _take_ahead(self, size: int) -> Path:
        try:
            return self._ahead.take(size)
        except StorageFailed as error:
            self._refusal = error
            raise

    def _fail(self, doing: str, path: Path, error: OSError) -> NoReturn:
        """The disk failed: never write or sync again, whatever it says next."""
        reason = error.strerror or str(error)
        self._refusal = StorageFailed(
            f"{doing} {path}: {reason}; what is durable is unknown: check the disk and restart",
            file=str(path),
        )
        raise self._refusal from error


def _make_directory(files: FileOps, directory: Path) -> None:
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The directory's own name is synced also when it exists: who made it may have crashed.
        for path in missing or [directory]:
            parent = files.open_dir(path.parent)
            try:
                files.fsync(parent)
            finally:
                files.close(parent)
    except OSError as error:
        raise disk_error("creating", str(directory), error) from error


def _lock(files: FileOps, directory: Path) -> int:
    fd = files.open_dir(directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        files.close(fd)
        raise FailedPrecondition(
            f"{directory}: another process has this log open: stop it, or use another --state-dir"
        ) from None
    return fd
