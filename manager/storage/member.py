"""The raft directory of one manager, opened as a whole: id, keys, log and snapshots.

    <directory>/raft_id      this member's id, made once
    <directory>/keys.json    data keys (keyring)
    <directory>/wal/         the log
    <directory>/snapshots/   snapshots

Invariants: the keys are durable before the log that needs them, and made only under the lock, so
two processes never make two rings. Refuses: snapshots or an encrypted log whose other half is
gone, for to begin anew there would forget a cluster.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from manager.storage.entries import HardState, Recovered
from manager.storage.errors import REJOIN, disk_error
from manager.storage.files import FileOps, discard, write_all
from manager.storage.frames import HEADER_BYTES, BadHeader, WalIdentity, decode_header
from manager.storage.keyring import FILE_NAME, KeyRing
from manager.storage.sealing import NO_KEY
from manager.storage.segments import list_segments
from manager.storage.snapshot_dir import SnapshotDir
from manager.storage.wal import SEGMENT_BYTES, Wal
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound
from shoal.security.unlock import WrappingKey

WAL_DIRECTORY = "wal"
SNAPSHOT_DIRECTORY = "snapshots"
RAFT_ID_FILE = "raft_id"
RAFT_ID_MAX = (1 << 63) - 1


class Member(msgspec.Struct, frozen=True):
    """An opened directory; close `wal` to let it go. `is_new`: the log was begun just now."""

    keys: KeyRing
    wal: Wal
    recovered: Recovered
    snapshots: SnapshotDir
    is_new: bool


class Opening(msgspec.Struct, frozen=True):
    """How to open a directory.

    unlock_key: needed when the keys are locked; former_keys: others that may open them.
    create: whether an empty directory becomes a new member, or is refused.
    keep_old: how many snapshots to keep before the newest.
    """

    cluster_id: str
    unlock_key: WrappingKey | None = None
    former_keys: tuple[WrappingKey, ...] = ()
    create: bool = True
    keep_old: int = 1
    segment_bytes: int = SEGMENT_BYTES
    files: FileOps = msgspec.field(default_factory=FileOps)


def open_member(directory: Path, opening: Opening) -> Member:
    """Open a member's directory, or begin one. Blocks on the disk.

    Raises: Locked and InvalidArgument (wrong key) as `KeyRing.open`; CorruptLog;
    FailedPrecondition when another process has it, or a part of it is missing, foreign or newer;
    NotFound when there is none and none is to be made; ResourceExhausted, StorageFailed.
    """
    try:
        return _open_member(directory, opening)
    except OSError as error:  # a disk that cannot be read, or has become read-only
        raise disk_error("opening", str(error.filename or directory), error) from error


def _open_member(directory: Path, opening: Opening) -> Member:
    files = opening.files
    if not opening.create and not directory.is_dir():
        raise NotFound(f"{directory}: no manager's log here")
    _make(files, directory)
    with _exclusively(files, directory):
        log = directory / WAL_DIRECTORY
        is_new = not any(log.glob("*.wal"))
        if is_new:
            if not opening.create:
                raise NotFound(f"{log}: no log here")
            _refuse_orphans(directory / SNAPSHOT_DIRECTORY)
        identity = WalIdentity(opening.cluster_id, raft_id(directory, files=files))
        keys = _open_keys(directory, opening)
        if is_new:
            wal = Wal.create(
                log, identity, segment_bytes=opening.segment_bytes, files=files, keys=keys
            )
            recovered = Recovered(HardState(), None, 1, ())
        else:
            wal, recovered = Wal.open(
                log, identity, segment_bytes=opening.segment_bytes, files=files, keys=keys
            )
    snapshots = SnapshotDir(
        directory / SNAPSHOT_DIRECTORY,
        cluster_id=opening.cluster_id,
        raft_id=identity.raft_id,
        keep_old=opening.keep_old,
        keys=keys,
        files=files,
    )
    return Member(keys, wal, recovered, snapshots, is_new)


def raft_id(directory: Path, *, files: FileOps | None = None) -> int:
    """This member's id, made once: 1 to 2**63 - 1.

    Raises: FailedPrecondition for a damaged file; ResourceExhausted, StorageFailed.
    """
    path = directory / RAFT_ID_FILE
    if path.exists():
        return _read_raft_id(path)
    new = secrets.randbits(63) | 1
    write_raft_id(directory, new, files=files)
    return new


def write_raft_id(directory: Path, number: int, *, files: FileOps | None = None) -> None:
    """Write the id of a member that has none. Raises: InvalidArgument; as `raft_id`."""
    files = files or FileOps()
    if not 1 <= number <= RAFT_ID_MAX:
        raise InvalidArgument(f"raft_id: {number} must be 1 to {RAFT_ID_MAX}")
    path = directory / RAFT_ID_FILE
    temporary = path.with_suffix(".tmp")
    try:
        if temporary.exists():
            files.unlink(temporary)
        fd = files.create(temporary)
        try:
            write_all(files, fd, f"{number:016x}\n".encode(), 0)
            files.fsync(fd)
        finally:
            files.close(fd)
        files.rename(temporary, path)
        sync_directory(files, directory)
    except OSError as error:
        discard(files, temporary)
        raise disk_error("writing", str(path), error) from error


def sync_directory(files: FileOps, directory: Path) -> None:
    """Make the names in a directory durable. Raises: OSError."""
    fd = files.open_dir(directory)
    try:
        files.fsync(fd)
    finally:
        files.close(fd)


def _make(files: FileOps, directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(files, directory.parent)
    except OSError as error:
        raise disk_error("creating", str(directory), error) from error


def _read_raft_id(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"), 16)
    except ValueError as error:
        raise FailedPrecondition(f"{path}: damaged ({error}); {REJOIN}") from error


def _open_keys(directory: Path, opening: Opening) -> KeyRing:
    path = directory / FILE_NAME
    if path.exists():
        return KeyRing.open(
            path,
            opening.cluster_id,
            unlock_key=opening.unlock_key,
            former=opening.former_keys,
            files=opening.files,
        )
    needed = _needed_keys(directory / WAL_DIRECTORY)
    if needed:
        raise FailedPrecondition(
            f"{path} is missing, and the log is encrypted with a key in it: restore the file,"
            f" or {REJOIN}"
        )
    return KeyRing.create(
        path, opening.cluster_id, unlock_key=opening.unlock_key, files=opening.files
    )


def _needed_keys(log: Path) -> frozenset[bytes]:
    """Key ids in the headers of the log; damaged headers are left to `Wal.open` to refuse."""
    needed: set[bytes] = set()
    for file in list_segments(log) if log.is_dir() else ():
        with contextlib.suppress(BadHeader), file.path.open("rb") as content:
            needed.add(decode_header(content.read(HEADER_BYTES), str(file.path)).key_id)
    return frozenset(needed) - {NO_KEY}


def _refuse_orphans(snapshots: Path) -> None:
    """Snapshots without a log: somebody took the log away; to begin anew would lose the cluster."""
    if any(snapshots.glob("*.snap")):
        raise FailedPrecondition(
            f"{snapshots} holds snapshots, but the log beside it is gone: restore it, or {REJOIN}"
        )


@contextlib.contextmanager
def _exclusively(files: FileOps, directory: Path) -> Iterator[None]:
    """Hold the directory while it is being opened; afterwards the log's own lock guards it."""
    fd = files.open_dir(directory)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"{directory}: another process is opening it: stop it, or use another --state-dir"
            ) from None
        yield
    finally:
        files.close(fd)
