"""The snapshots of a directory: written durably, loaded only when whole, a few kept.

Order that callers keep: `save` -> `Wal.mark_snapshot` -> `prune` -> `Wal.release`. A file newer
than the log's mark is an orphan of a crash between the first two and is not loaded. A file that
does not verify is renamed to `.broken` and the one before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import structlog

from manager.storage.entries import SnapshotMark
from manager.storage.errors import REJOIN, CorruptSnapshot, disk_error
from manager.storage.files import FileOps, discard, write_all
from manager.storage.snapshot_file import (
    SnapshotHeader,
    SnapshotRecord,
    encode,
    read_records,
    verify,
)
from shoal.errors import FailedPrecondition, InvalidArgument

BROKEN_KEPT = 2
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.snap")

_log = structlog.get_logger()


class SnapshotFile(msgspec.Struct, frozen=True):
    """A snapshot on disk: the state after entry `index` of `term`."""

    path: Path
    index: int
    term: int

    def records(self) -> Iterator[SnapshotRecord]:
        """Stream the records, one chunk in memory; may be called again.

        Raises: CorruptSnapshot when the file changed since it was verified.
        """
        with self.path.open("rb") as file:
            yield from read_records(file, self.path)


class SnapshotDir:
    """The snapshots of one member. One writer at a time; reading needs no lock."""

    def __init__(
        self,
        directory: Path,
        *,
        cluster_id: str,
        keep_old: int = 1,
        files: FileOps | None = None,
    ) -> None:
        if keep_old < 0:
            raise InvalidArgument(f"keep_old: {keep_old} must not be negative")
        self.directory = directory
        self._cluster_id = cluster_id
        self._keep_old = keep_old
        self._files = files or FileOps()
        self._dir_ready = False

    def save(self, index: int, term: int, records: Iterable[SnapshotRecord]) -> SnapshotFile:
        """Write a snapshot; durable under its name when this returns.

        Raises: ResourceExhausted, StorageFailed from the disk, and whatever `records` raises;
        in each case no new snapshot exists and the older ones are untouched.
        """
        path = self.directory / f"{term:016x}-{index:016x}.snap"
        temporary = path.with_suffix(".tmp")
        header = SnapshotHeader(self._cluster_id, index, term)
        try:
            self._prepare()
            self._write(temporary, encode(header, records))
            self._files.rename(temporary, path)
            self._sync_dir(self.directory)
        except OSError as error:
            discard(self._files, temporary)
            raise disk_error("writing snapshot", str(path), error) from error
        except BaseException:
            discard(self._files, temporary)
            raise
        return SnapshotFile(path, index, term)

    def load(self, mark: SnapshotMark | None) -> SnapshotFile | None:
        """The newest snapshot, at or before the log's `mark`, every byte of which verifies.

        None when the log has no mark. Check that the log continues it: `Recovered.entries_after`.
        Raises: CorruptSnapshot when none is left; FailedPrecondition for a foreign or newer file.
        """
        if mark is None:
            return None
        for snapshot in self._usable(mark):
            try:
                self._verify(snapshot)
            except CorruptSnapshot as error:
                self._put_aside(snapshot, error)
                continue
            return snapshot
        raise CorruptSnapshot(
            f"{self.directory}: no usable snapshot at or before index {mark.index}, which the log"
            f" needs; {REJOIN}"
        )

    def prune(self, mark: SnapshotMark) -> int:
        """Remove snapshots older than the marked one and `keep_old` before it.

        Returns the index of the oldest one kept: what `Wal.release` may release.
        Raises: FailedPrecondition when the marked snapshot is not there.
        """
        usable = self._usable(mark)
        if not usable or (usable[0].index, usable[0].term) != (mark.index, mark.term):
            raise FailedPrecondition(f"{self.directory}: no snapshot for the mark {mark}")
        kept, old = usable[: self._keep_old + 1], usable[self._keep_old + 1 :]
        try:
            for snapshot in old:
                self._files.unlink(snapshot.path)
            if old:
                self._sync_dir(self.directory)
        except OSError as error:
            raise disk_error("pruning snapshots in", str(self.directory), error) from error
        return kept[-1].index

    def _usable(self, mark: SnapshotMark) -> list[SnapshotFile]:
        """Snapshots at or before the mark, newest first, left-overs of another term excluded."""
        found: list[SnapshotFile] = []
        for path in self.directory.glob("*.snap") if self.directory.is_dir() else ():
            match = _NAME.fullmatch(path.name)
            if match is not None:
                found.append(SnapshotFile(path, index=int(match[2], 16), term=int(match[1], 16)))
        fits = [
            file for file in found
            if file.index < mark.index or (file.index, file.term) == (mark.index, mark.term)
        ]  # fmt: skip
        return sorted(fits, key=lambda file: (file.index, file.term), reverse=True)

    def _verify(self, snapshot: SnapshotFile) -> None:
        try:
            header = verify(snapshot.path)
        except OSError as error:
            raise disk_error("reading", str(snapshot.path), error) from error
        if (header.index, header.term) != (snapshot.index, snapshot.term):
            raise CorruptSnapshot(f"{snapshot.path}: the header is of {header}")
        if header.cluster_id != self._cluster_id:
            raise FailedPrecondition(
                f"{snapshot.path}: belongs to cluster {header.cluster_id}, not to"
                f" {self._cluster_id}: wrong --state-dir?"
            )

    def _put_aside(self, snapshot: SnapshotFile, why: CorruptSnapshot) -> None:
        target = snapshot.path.with_suffix(".snap.broken")
        _log.error("snapshot.broken", file=str(target), reason=why.message)
        try:
            self._files.rename(snapshot.path, target)
            self._sync_dir(self.directory)
        except OSError as error:
            raise disk_error("putting aside", str(snapshot.path), error) from error
        broken = self.directory.glob("*.broken")
        for old in sorted(broken, key=lambda path: path.stat().st_mtime_ns)[:-BROKEN_KEPT]:
            discard(self._files, old)

    def _prepare(self) -> None:
        if self._dir_ready:
            return
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sync_dir(self.directory.parent)
        for path in self.directory.glob("*.tmp"):
            self._files.unlink(path)
        self._dir_ready = True

    def _write(self, temporary: Path, pieces: Iterator[bytes]) -> None:
        fd = self._files.create(temporary)
        try:
            offset = 0
            for piece in pieces:
                write_all(self._files, fd, piece, offset)
                offset += len(piece)
            self._files.fsync(fd)
        finally:
            self._files.close(fd)

    def _sync_dir(self, directory: Path) -> None:
        fd = self._files.open_dir(directory)
        try:
            self._files.fsync(fd)
        finally:
            self._files.close(fd)
