"""Backups: one file with everything the cluster stores, and a manager's directory made of it.

A backup is a manifest, a snapshot in the clear, and a SHA-256 over both. It holds the private
key of the cluster's root, every secret and the join tokens: the file is made 0600, and whoever has
it has the cluster. Invariants: what `read_backup` returns has been verified to its last byte; a
restored directory appears whole under its name or not at all. Refuses to overwrite: a backup, or a
directory that is not empty. The format: docs/formats.md.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from manager.storage.entries import HardState, SnapshotMark
from manager.storage.errors import CorruptSnapshot, disk_error
from manager.storage.files import FileOps, discard, write_all
from manager.storage.frames import check_cluster_id, extend
from manager.storage.member import Opening, open_member, sync_directory
from manager.storage.snapshot_file import (
    SnapshotHeader,
    SnapshotReader,
    SnapshotRecord,
    encode,
)
from manager.storage.wal import SEGMENT_BYTES
from shoal.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from shoal.security.unlock import WrappingKey

MAGIC = b"SHOALBAK"
END_MAGIC = b"SHOALEND"
VERSION = 1
REMEDY = "take another copy of the backup"
MANIFEST_BYTES_MAX = 64 << 10
BUILDING_SUFFIX = ".restoring"
"""Of a directory that is being made; what a crash leaves may be removed."""

_HEAD = struct.Struct("<8sII")  # magic, version, bytes of the manifest
_CRC = struct.Struct("<I")
_END = struct.Struct("<8sQ32s")  # magic, bytes of the snapshot, SHA-256 of everything before


class Manifest(msgspec.Struct, frozen=True):
    """What a backup is of: the state after entry `index` of `term`.

    created_ns: wall time, nanoseconds since 1970. made_by: the version of Shoal.
    """

    cluster_id: str
    index: int
    term: int
    created_ns: int
    made_by: str = ""


class Backup(msgspec.Struct, frozen=True):
    """A verified backup. objects: how many records it holds; sha256: of the file, but its end.

    label: what errors call it.
    """

    path: Path
    manifest: Manifest
    objects: int
    sha256: str
    label: Path

    def records(self) -> Iterator[SnapshotRecord]:
        """Stream the records, one chunk in memory; may be called again.

        Raises: CorruptSnapshot when the file changed since it was verified.
        """
        with self.path.open("rb") as file:
            yield from _Verifier(file, self.label).records()


class Restored(msgspec.Struct, frozen=True):
    """What was restored, and the id of the member that the directory now belongs to."""

    cluster_id: str
    raft_id: int
    index: int
    term: int
    objects: int


class Restoring(msgspec.Struct, frozen=True):
    """How to restore.

    unlock_key: locks the new directory's keys. membership: makes the metadata of the snapshot for
    the new raft id (the Raft driver's; the log then begins in the backup's term). Without it the
    log is that of a manager alone, which the Raft driver makes a cluster of one voter.
    records: what the state is to be instead of the backup's own. leap: how far the log's index
    moves, so that no version is given again that the old cluster gave after the backup.
    """

    unlock_key: WrappingKey | None = None
    membership: Callable[[int], bytes] | None = None
    records: Iterable[SnapshotRecord] | None = None
    leap: int = 0
    segment_bytes: int = SEGMENT_BYTES
    files: FileOps = msgspec.field(default_factory=FileOps)


def encode_backup(manifest: Manifest, records: Iterable[SnapshotRecord]) -> Iterator[bytes]:
    """The file piece by piece, at most about 1 MiB each; for a stream to somewhere else.

    records: of one consistent state. Raises: InvalidArgument for what a snapshot cannot hold.
    """
    digest = hashlib.sha256()
    check_cluster_id(manifest.cluster_id)
    body = msgspec.json.encode(manifest)
    if len(body) > MANIFEST_BYTES_MAX:
        raise InvalidArgument(f"manifest: {len(body)} bytes exceed {MANIFEST_BYTES_MAX}")
    head = _HEAD.pack(MAGIC, VERSION, len(body)) + body
    head += _CRC.pack(extend(0, head))
    digest.update(head)
    yield head
    size = 0
    header = SnapshotHeader(manifest.cluster_id, manifest.index, manifest.term)
    for piece in encode(header, records):
        digest.update(piece)
        size += len(piece)
        yield piece
    yield _END.pack(END_MAGIC, size, digest.digest())


def write_backup(
    path: Path,
    manifest: Manifest,
    records: Iterable[SnapshotRecord],
    *,
    files: FileOps | None = None,
) -> None:
    """Write a backup, 0600, durable under its name when this returns; verify it with `read_backup`.

    Raises: AlreadyExists; ResourceExhausted, StorageFailed, and whatever `records` raises; in each
    case no file of that name is new.
    """
    files = files or FileOps()
    if path.exists():
        raise AlreadyExists(f"{path} exists already: backups are not overwritten")
    temporary = path.with_name(path.name + ".tmp")
    try:
        if temporary.exists():
            files.unlink(temporary)
        fd = files.create(temporary)
        try:
            offset = 0
            for piece in encode_backup(manifest, records):
                write_all(files, fd, piece, offset)
                offset += len(piece)
            files.fsync(fd)
        finally:
            files.close(fd)
        files.rename(temporary, path)
        sync_directory(files, path.parent)
    except OSError as error:
        discard(files, temporary)
        raise disk_error("writing backup", str(path), error) from error
    except BaseException:
        discard(files, temporary)
        raise


def read_backup(path: Path, *, label: Path | None = None) -> Backup:
    """Verify every byte of a backup, in bounded memory.

    label: what errors call it; its path if none is given. Raises: NotFound; CorruptSnapshot when it
    is damaged or cut; FailedPrecondition when a newer version wrote it.
    """
    label = label or path
    try:
        with path.open("rb") as file:
            verifier = _Verifier(file, label)
            objects = sum(1 for _ in verifier.records())
            return Backup(path, verifier.manifest, objects, verifier.sha256, label)
    except FileNotFoundError:
        raise NotFound(f"{label}: no such file") from None
    except OSError as error:
        raise disk_error("reading", str(label), error) from error


def restore(source: Path | Backup, directory: Path, restoring: Restoring | None = None) -> Restored:
    """Make a raft directory for a new first manager out of a backup. Blocks on the disk.

    source: a file, which is verified, or a backup that was. directory: absent or empty, its parent
    exists. The member gets a new raft id, so that it is never taken for one of the old cluster's.
    A crash leaves at most `<directory>.restoring`. Raises: as `read_backup`; FailedPrecondition
    when the directory is not empty; ResourceExhausted, StorageFailed.
    """
    restoring = restoring or Restoring()
    backup = source if isinstance(source, Backup) else read_backup(source)
    if directory.exists() and any(directory.iterdir()):
        raise FailedPrecondition(
            f"{directory} is not empty: restore into an empty --state-dir, or move it away"
        )
    building = directory.with_name(directory.name + BUILDING_SUFFIX)
    if building.exists():
        shutil.rmtree(building)
    restored = _build(building, backup, restoring)
    files = restoring.files
    try:
        sync_directory(files, building)
        files.rename(building, directory)
        sync_directory(files, directory.parent)
    except OSError as error:
        raise disk_error("restoring", str(directory), error) from error
    return restored


def _build(directory: Path, backup: Backup, restoring: Restoring) -> Restored:
    manifest = backup.manifest
    opening = Opening(
        manifest.cluster_id,
        unlock_key=restoring.unlock_key,
        segment_bytes=restoring.segment_bytes,
        files=restoring.files,
    )
    index, term = manifest.index + restoring.leap, manifest.term
    member = open_member(directory, opening)
    try:
        raft_id, metadata, hard_state = member.wal.identity.raft_id, b"", None
        if restoring.membership is not None:
            metadata = restoring.membership(raft_id)
            hard_state = HardState(term, 0, index)
        records = backup.records() if restoring.records is None else restoring.records
        member.snapshots.save(index, term, records, metadata=metadata)
        member.wal.append((), hard_state, SnapshotMark(index, term))
    finally:
        member.wal.close()
    return Restored(manifest.cluster_id, raft_id, index, term, backup.objects)


class _Part:
    """The part of a file that is the snapshot, summed up as it is read."""

    def __init__(self, file: BinaryIO, size: int, head: bytes) -> None:
        self._file = file
        self.size_left = size
        self.digest = hashlib.sha256(head)

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end of the part."""
        piece = self._file.read(min(size, self.size_left))
        self.size_left -= len(piece)
        self.digest.update(piece)
        return piece


class _Verifier:
    """Reads a backup once. `manifest` is there from the start, `sha256` after the last record."""

    def __init__(self, file: BinaryIO, label: Path) -> None:
        self._file = file
        self._label = label
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or head[:8] != MAGIC:
            raise self._corrupt("not a backup of Shoal")
        _, version, size = _HEAD.unpack(head)
        if size > MANIFEST_BYTES_MAX:
            raise self._corrupt("the manifest is larger than any writer makes")
        raw = head + file.read(size)
        if file.read(_CRC.size) != _CRC.pack(extend(0, raw)):
            raise self._corrupt("the manifest does not match its checksum")
        if version != VERSION:
            raise FailedPrecondition(
                f"{label}: backup format {version}, this version reads {VERSION}: run the newer one"
            )
        try:
            self.manifest = msgspec.json.decode(raw[_HEAD.size :], type=Manifest)
        except msgspec.MsgspecError as error:
            raise self._corrupt(f"the manifest: {error}") from error
        left = os.fstat(file.fileno()).st_size - len(raw) - _CRC.size - _END.size
        if left < 0:
            raise self._corrupt("the file is cut short")
        self._size = left
        self._part = _Part(file, left, raw + _CRC.pack(extend(0, raw)))
        self.sha256 = ""

    def records(self) -> Iterator[SnapshotRecord]:
        """Yield the records; snapshot and end are checked with the last one."""
        try:
            yield from self._snapshot_records()
        except CorruptSnapshot as error:
            raise CorruptSnapshot(f"{error.message}; {REMEDY}", **error.context) from error
        end = _END.pack(END_MAGIC, self._size, self._part.digest.digest())
        if self._file.read(_END.size + 1) != end:
            raise self._corrupt("the end does not match what is before it")
        self.sha256 = self._part.digest.hexdigest()

    def _snapshot_records(self) -> Iterator[SnapshotRecord]:
        reader = SnapshotReader(self._part, self._label)
        wanted = self.manifest
        found = (reader.header.cluster_id, reader.header.index, reader.header.term)
        if found != (wanted.cluster_id, wanted.index, wanted.term):
            raise CorruptSnapshot(
                f"{self._label}: the snapshot is of {found}, not what the manifest says",
                file=str(self._label),
            )
        yield from reader.records()

    def _corrupt(self, reason: str) -> CorruptSnapshot:
        return CorruptSnapshot(f"{self._label}: {reason}; {REMEDY}", file=str(self._label))
