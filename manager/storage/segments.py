"""Segment files in their directory: names, creation ahead of need, reading, cutting a torn tail.

A segment gets its final name only when it is zero-filled, headed and synced, so a file with that
name is never half made. `.tmp` files are left-overs of a crash and are removed at the start;
`.broken` files are copies of torn tails, kept for people, at most `BROKEN_KEPT`.
"""

from __future__ import annotations

import itertools
import re
import threading
from pathlib import Path

import msgspec
import structlog

from manager.storage.errors import corrupt_log, disk_error
from manager.storage.files import FileOps, discard, write_all, write_zeros
from manager.storage.frames import BadHeader, SegmentHeader, decode_header
from manager.storage.scan import Scan
from manager.storage.sealing import NO_KEY
from shoal.errors import SwarmError

BROKEN_KEPT = 3
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal")

_log = structlog.get_logger()


class SegmentFile(msgspec.Struct, frozen=True):
    """A segment on disk; `index` was the next index of the log when it was begun.

    `key_id`: the key of its entries, known once the segment was read or written.
    """

    path: Path
    seq: int
    index: int
    key_id: bytes = NO_KEY


class Loaded(msgspec.Struct, frozen=True):
    """A segment read into memory."""

    file: SegmentFile
    header: SegmentHeader
    content: bytes


def segment_path(directory: Path, seq: int, index: int) -> Path:
    """The name of a segment."""
    return directory / f"{seq:016x}-{index:016x}.wal"


def list_segments(directory: Path) -> list[SegmentFile]:
    """The segments, oldest first. Raises: CorruptLog when one in the middle is missing."""
    found: list[SegmentFile] = []
    for path in sorted(directory.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            found.append(SegmentFile(path, int(match[1], 16), int(match[2], 16)))
    for before, after in itertools.pairwise(found):
        if after.seq != before.seq + 1:
            reason = f"segments between {before.seq:016x} and {after.seq:016x} are missing"
            raise corrupt_log(str(after.path), 0, reason)
    return found


def remove_left_overs(files: FileOps, directory: Path) -> None:
    """Remove the temporary files of a crashed process."""
    for path in directory.glob("*.tmp"):
        files.unlink(path)


def load_segment(file: SegmentFile) -> Loaded:
    """Read a segment and its header. Raises: CorruptLog; StorageFailed when unreadable."""
    path = str(file.path)
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise disk_error("reading", path, error) from error
    try:
        header = decode_header(content, path)
    except BadHeader as error:
        raise corrupt_log(path, 0, str(error)) from error
    if (header.seq, header.index) != (file.seq, file.index):
        reason = f"the header belongs to {header.seq:016x}-{header.index:016x}.wal"
        raise corrupt_log(path, 0, reason)
    if len(content) != header.size_bytes:
        reason = f"the file ends here, its header says {header.size_bytes} bytes"
        raise corrupt_log(path, len(content), reason)
    return Loaded(file, header, content)


def cut_torn_tail(files: FileOps, dir_fd: int, loaded: Loaded, scan: Scan) -> Path:
    """Copy the segment up to its last byte aside, then zero what follows the last whole batch.

    Safe to repeat: a crash in between leaves a tail that is torn or already clean.
    Returns the copy. Raises: ResourceExhausted, StorageFailed.
    """
    path = loaded.file.path
    copy = _free_name(path)
    temporary = copy.with_suffix(".tmp")
    try:
        fd = files.create(temporary)
        try:
            write_all(files, fd, memoryview(loaded.content)[: scan.dirty_end], 0)
            files.fdatasync(fd)
        finally:
            files.close(fd)
        files.rename(temporary, copy)
        files.fsync(dir_fd)
        fd = files.open(path)
        try:
            write_zeros(files, fd, scan.offset, max(scan.offset, scan.dirty_end))
        finally:
            files.close(fd)
    except OSError as error:
        discard(files, temporary)
        raise disk_error("repairing the torn tail of", str(path), error) from error
    for old in _broken_copies(path.parent)[:-BROKEN_KEPT]:
        discard(files, old)
    _log.warning("wal.tail_cut", file=str(path), offset=scan.offset, copy=str(copy))
    return copy


def _broken_copies(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.broken"), key=lambda path: path.stat().st_mtime_ns)


def _free_name(path: Path) -> Path:
    taken = {copy.name for copy in _broken_copies(path.parent)}
    number = 0
    while (name := f"{path.name}.{number}.broken") in taken:
        number += 1
    return path.with_name(name)


class SegmentAhead:
    """Makes the next zero-filled segment file in a thread before it is needed.

    At most one file and one thread exist. `take` waits for the thread; a failure of the thread is
    raised there, where the caller can refuse a batch for it.
    """

    def __init__(self, files: FileOps, directory: Path) -> None:
        self._files = files
        self._directory = directory
        self._thread: threading.Thread | None = None
        self._size_bytes = 0
        self._error: OSError | None = None

    def start(self, size_bytes: int) -> None:
        """Begin to make a file of that size, unless one is being made or ready."""
        if self._thread is not None:
            return
        self._size_bytes, self._error = size_bytes, None
        self._thread = threading.Thread(target=self._fill, name="wal-ahead", daemon=True)
        self._thread.start()

    def take(self, size_bytes: int) -> Path:
        """A durable file of exactly that many zeros, still under its temporary name.

        Raises: ResourceExhausted when there is no space, StorageFailed for other disk errors.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        if thread is None or self._error is not None or self._size_bytes != size_bytes:
            discard(self._files, self._path)
            self._size_bytes, self._error = size_bytes, None
            self._fill()
        if self._error is not None:
            raise self._failure(self._error)
        return self._path

    def close(self) -> None:
        """Wait for the thread and remove its file."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            discard(self._files, self._path)

    @property
    def _path(self) -> Path:
        return self._directory / "next.wal.tmp"

    def _fill(self) -> None:
        try:
            fd = self._files.create(self._path)
            try:
                write_zeros(self._files, fd, 0, self._size_bytes)
            finally:
                self._files.close(fd)
        except OSError as error:
            self._error = error
            discard(self._files, self._path)

    def _failure(self, error: OSError) -> SwarmError:
        return disk_error("creating", str(self._path), error)
