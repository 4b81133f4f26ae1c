"""A stopped manager's raft directory, read and never changed.

Invariants: nothing is written, renamed or removed: a torn tail stays, a broken snapshot stays; the
log's lock is held (shared) meanwhile, so no manager starts in between. Refuses a directory that a
running manager has. For people and tools; a manager opens its own with `member.open_member`.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from manager.storage.entries import Recovered
from manager.storage.errors import corrupt_log
from manager.storage.files import FileOps
from manager.storage.frames import WalIdentity
from manager.storage.keyring import FILE_NAME, KeyRing
from manager.storage.member import SNAPSHOT_DIRECTORY, WAL_DIRECTORY
from manager.storage.replay import Replay
from manager.storage.scan import Ending, Scan
from manager.storage.segments import SegmentFile, list_segments, load_segment
from manager.storage.snapshot_dir import SnapshotDir, SnapshotFile
from shoal.errors import FailedPrecondition, NotFound
from shoal.security.unlock import WrappingKey


class SegmentView(msgspec.Struct, frozen=True):
    """One segment as it stands on the disk: every record, also those overwritten later."""

    file: SegmentFile
    scan: Scan
    key_id: bytes

    @property
    def is_torn(self) -> bool:
        """Whether the next start will cut off what follows the last whole batch."""
        return self.scan.ending is Ending.TORN


class StoppedMember:
    """What `read_member` gives; usable inside its block only."""

    def __init__(self, directory: Path, segments: list[SegmentFile], keys: KeyRing | None) -> None:
        self.directory = directory
        self.identity: WalIdentity = load_segment(segments[0]).header.identity
        self.keys = keys
        self._segments = segments

    def segments(self) -> Iterator[SegmentView]:
        """The log, oldest segment first, one in memory at a time. Raises as `recovered`."""
        replay = self._replay()
        for file in self._segments:
            scan = replay.read(file, is_last=file is self._segments[-1])
            yield SegmentView(file, scan, replay.header.key_id)

    def recovered(self) -> Recovered:
        """What a manager would recover. Raises: CorruptLog, FailedPrecondition."""
        replay = self._replay()
        for file in self._segments:
            replay.read(file, is_last=file is self._segments[-1])
        return replay.finish()

    def snapshot(self, recovered: Recovered) -> SnapshotFile | None:
        """The snapshot that a manager would load. Raises: CorruptSnapshot, FailedPrecondition."""
        snapshots = SnapshotDir(
            self.directory / SNAPSHOT_DIRECTORY,
            cluster_id=self.identity.cluster_id,
            raft_id=self.identity.raft_id,
            keys=self.keys,
        )
        return snapshots.load(recovered.mark, put_aside=False)

    def _replay(self) -> Replay:
        return Replay(FileOps(), -1, self.identity, keys=self.keys, repair=False)


@contextlib.contextmanager
def read_member(
    directory: Path,
    *,
    unlock_key: WrappingKey | None = None,
    former: Sequence[WrappingKey] = (),
) -> Iterator[StoppedMember]:
    """Read the raft directory of a manager that is not running.

    unlock_key: needed when the keys are locked; former: others that may open them.
    Raises: NotFound; FailedPrecondition while a manager runs; Locked and InvalidArgument as
    `KeyRing.open`; CorruptLog when the first header is damaged.
    """
    log = directory / WAL_DIRECTORY
    segments = list_segments(log) if log.is_dir() else []
    if not segments:
        raise NotFound(f"{log}: no log here: wrong --state-dir?")
    with _shared(log):
        keys = _keys(directory, segments[0], unlock_key, former)
        yield StoppedMember(directory, segments, keys)


def _keys(
    directory: Path,
    first: SegmentFile,
    unlock_key: WrappingKey | None,
    former: Sequence[WrappingKey],
) -> KeyRing | None:
    path = directory / FILE_NAME
    if not path.exists():
        return None
    cluster_id = load_segment(first).header.identity.cluster_id
    if not cluster_id:
        raise corrupt_log(str(first.path), 16, "no cluster id")
    return KeyRing.open(path, cluster_id, unlock_key=unlock_key, former=former)


@contextlib.contextmanager
def _shared(log: Path) -> Iterator[None]:
    files = FileOps()
    fd = files.open_dir(log)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(f"{log}: a manager has this log open: stop it first") from None
        yield
    finally:
        files.close(fd)
