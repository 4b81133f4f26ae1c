"""The golden files of each version: `python -m tests.unit.manager.storage.golden` writes them.

They are never written again once a version is released: every later version must read them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from manager.storage.backup import Manifest, write_backup
from manager.storage.entries import Entry, HardState, SnapshotMark
from manager.storage.keyring import KeyRing
from manager.storage.snapshot_dir import SnapshotDir
from manager.storage.snapshot_file import SnapshotRecord
from manager.storage.wal import SEGMENT_BYTES_MIN, Wal
from shoal.security.unlock import UnlockKey
from tests.unit.manager.storage.support import IDENTITY

DIRECTORY = Path(__file__).parents[3] / "golden" / "storage" / "v1"
DIRECTORY_2 = DIRECTORY.with_name("v2")
UNLOCK_KEY = UnlockKey(bytes(range(32)))
METADATA = b"metadata of the raft driver"

ENTRIES = tuple(
    Entry(index, 1 if index < 6 else 3, index % 4, bytes([index]) * (index * 97 % 700))
    for index in range(1, 16)
)
HARD_STATE = HardState(3, 12345678901234567890, 14)
MARK = SnapshotMark(9, 3)
RECORDS = [SnapshotRecord(kind, f"object {kind}".encode() * kind) for kind in range(1, 8)]
MANIFEST = Manifest(IDENTITY.cluster_id, MARK.index, MARK.term, created_ns=1, made_by="0.1.0")


def write(directory: Path) -> None:
    """Write a log of several segments, with an overwritten suffix, and a snapshot."""
    wal = Wal.create(directory / "wal", IDENTITY, segment_bytes=SEGMENT_BYTES_MIN)
    wal.append([*ENTRIES[:5], Entry(6, 2, 0, b"overwritten"), Entry(7, 2, 0, b"overwritten")])
    wal.append(ENTRIES[5:11], HardState(3, 12345678901234567890, 9))
    wal.mark_snapshot(MARK.index, MARK.term)
    wal.append(ENTRIES[11:], HARD_STATE)
    wal.close()
    snapshots = SnapshotDir(directory / "snap", cluster_id=IDENTITY.cluster_id)
    snapshots.save(MARK.index, MARK.term, RECORDS)


def write_2(directory: Path) -> None:
    """A log that begins in the clear and goes on with two keys; snapshots; the rings."""
    path = directory / "keys.json"
    keys = KeyRing.create(path, IDENTITY.cluster_id, unlock_key=UNLOCK_KEY)
    log = directory / "wal"
    wal = Wal.create(log, IDENTITY, segment_bytes=SEGMENT_BYTES_MIN)
    wal.append([*ENTRIES[:5], Entry(6, 2, 0, b"overwritten"), Entry(7, 2, 0, b"overwritten")])
    wal.close()
    wal, _ = Wal.open(log, IDENTITY, segment_bytes=SEGMENT_BYTES_MIN, keys=keys)
    wal.append(ENTRIES[5:11], HardState(3, 12345678901234567890, 9))
    wal.mark_snapshot(MARK.index, MARK.term)
    keys.rotate_data_key(since=12)
    wal.append(ENTRIES[11:], HARD_STATE)
    wal.close()
    snapshots = SnapshotDir(
        directory / "snap", cluster_id=IDENTITY.cluster_id, raft_id=IDENTITY.raft_id, keys=keys
    )
    snapshots.save(MARK.index, MARK.term, RECORDS, metadata=METADATA)
    plain = SnapshotDir(directory / "plain", cluster_id=IDENTITY.cluster_id)
    plain.save(MARK.index, MARK.term, RECORDS, metadata=METADATA)
    write_backup(directory / "cluster.backup", MANIFEST, RECORDS)
    shutil.copy(path, directory / "locked.json")
    keys.rotate_kek(None)


def contents(directory: Path) -> dict[str, bytes]:
    """Relative path to bytes."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def write_golden(target: Path, writer: Callable[[Path], None]) -> None:
    """Write the files of one version, unless they are there."""
    if target.exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        writer(Path(scratch))
        for name, content in contents(Path(scratch)).items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


if __name__ == "__main__":
    write_golden(DIRECTORY, write)
    write_golden(DIRECTORY_2, write_2)
