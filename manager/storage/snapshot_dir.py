"""The snapshots of a directory: written durably, loaded only when whole, a few kept.

Order that callers keep: `save` -> `Wal.mark_snapshot` -> `prune` -> `Wal.release`. A file newer
than the log's mark is an orphan of a crash between the first two and is not loaded. A file that
does not verify is renamed to `.broken` and the one before it is used.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import structlog

from manager.storage.entries import SnapshotMark
from manager.storage.errors import REJOIN, CorruptSnapshot, disk_error
from manager.storage.files import FileOps, discard, write_all
from manager.storage.sealing import NO_KEY, DataKey, DataKeys
from manager.storage.snapshot_file import (
    SnapshotHeader,
    SnapshotReader,
    SnapshotRecord,
    encode,
    read_header,
    verify,
)
from shoal.errors import FailedPrecondition, InvalidArgument

BROKEN_KEPT = 2
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.snap")

_log = structlog.get_logger()


class SnapshotFile(msgspec.Struct, frozen=True):
    """A snapshot on disk: the state after entry `index` of `term`.

    metadata: what `save` was given with it. keys: what opens it.
    """

    path: Path
    index: int
    term: int
    metadata: bytes = b""
    keys: DataKeys | None = None

    def records(self) -> Iterator[SnapshotRecord]:
        """Stream the records, one chunk in memory; may be called again.

        Raises: CorruptSnapshot when the file changed since it was verified.
        """
        with self.path.open("rb") as file:
            yield from SnapshotReader(file, self.path, keys=self.keys).records()


class SnapshotDir:
    """The snapshots of one member. One writer at a time; reading needs no lock."""

    def __init__(
        self,
        directory: Path,
        *,
        cluster_id: str,
        raft_id: int = 0,
        keep_old: int = 1,
        keys: DataKeys | None = None,
        files: FileOps | None = None,
    ) -> None:
        """keep_old: how many snapshots to keep before the newest. keys: encrypts new ones."""
        if keep_old < 0:
            raise InvalidArgument(f"keep_old: {keep_old} must not be negative")
        self.directory = directory
        self._cluster_id = cluster_id
        self._raft_id = raft_id
        self._keys = keys
        self._saving: DataKey | None = None
        self._saving_lock = threading.Lock()
        self._keep_old = keep_old
        self._files = files or FileOps()
        self._dir_ready = False

    def save(
        self, index: int, term: int, records: Iterable[SnapshotRecord], *, metadata: bytes = b""
    ) -> SnapshotFile:
        """Write a snapshot; durable under its name when this returns.

        metadata: opaque, at most 1 MiB; `load` gives it back.
        Raises: ResourceExhausted, StorageFailed from the disk, and whatever `records` raises;
        in each case no new snapshot exists and the older ones are untouched.
        """
        path = self.directory / f"{term:016x}-{index:016x}.snap"
        temporary = path.with_suffix(".tmp")
        key = self._begin_saving()
        key_id = NO_KEY if key is None else key.id
        raft_id = 0 if key is None else self._raft_id
        header = SnapshotHeader(self._cluster_id, index, term, raft_id, key_id, metadata)
        try:
            self._prepare()
            self._write(temporary, encode(header, records, key=key))
            self._files.rename(temporary, path)
            self._sync_dir(self.directory)
        except OSError as error:
            discard(self._files, temporary)
            raise disk_error("writing snapshot", str(path), error) from error
        except BaseException:
            discard(self._files, temporary)
            raise
        finally:
            self._saving = None
        return SnapshotFile(path, index, term, metadata, self._keys)

    def load(self, mark: SnapshotMark | None, *, put_aside: bool = True) -> SnapshotFile | None:
        """The newest snapshot, at or before the log's `mark`, every byte of which verifies.

        None when the log has no mark. Check that the log continues it: `Recovered.entries_after`.
        put_aside: whether one that does not verify is renamed.
        Raises: CorruptSnapshot when none is left; FailedPrecondition for a foreign or newer file.
        """
        if mark is None:
            return None
        for snapshot in self._usable(mark):
            try:
                metadata = self._verify(snapshot)
            except CorruptSnapshot as error:
                if put_aside:
                    self._put_aside(snapshot, error)
                continue
            return msgspec.structs.replace(snapshot, metadata=metadata, keys=self._keys)
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

    def key_ids(self) -> frozenset[bytes]:
        """The ids of the keys that some snapshot needs, or one that is being written.

        A file whose header is damaged needs none that anybody could tell.
        """
        with self._saving_lock:
            saving = self._saving
        ids = set() if saving is None else {saving.id}
        for path in self.directory.glob("*.snap"):
            try:
                with path.open("rb") as file:
                    ids.add(read_header(file, path)[0].key_id)
            except CorruptSnapshot:
                continue
            except OSError as error:
                raise disk_error("reading", str(path), error) from error
        return frozenset(ids) - {NO_KEY}

    def _begin_saving(self) -> DataKey | None:
        # Chosen and noted in one step: `key_ids` must not miss a key that was retired in between.
        with self._saving_lock:
            self._saving = None if self._keys is None else self._keys.current
            return self._saving

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

    def _verify(self, snapshot: SnapshotFile) -> bytes:
        """Check every byte of it; returns the metadata."""
        try:
            header = verify(snapshot.path, keys=self._keys)
        except OSError as error:
            raise disk_error("reading", str(snapshot.path), error) from error
        if (header.index, header.term) != (snapshot.index, snapshot.term):
            raise CorruptSnapshot(f"{snapshot.path}: the header is of {header}")
        if header.cluster_id != self._cluster_id:
            raise FailedPrecondition(
                f"{snapshot.path}: belongs to cluster {header.cluster_id}, not to"
                f" {self._cluster_id}: wrong --state-dir?"
            )
        return header.metadata

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
