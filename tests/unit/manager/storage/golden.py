"""The golden files of format version 1: `python -m tests.unit.manager.storage.golden` writes them.

They are never written again once a version is released: every later version must read them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from manager.storage.entries import Entry, HardState, SnapshotMark
from manager.storage.snapshot_dir import SnapshotDir
from manager.storage.snapshot_file import SnapshotRecord
from manager.storage.wal import SEGMENT_BYTES_MIN, Wal
from tests.unit.manager.storage.support import IDENTITY

DIRECTORY = Path(__file__).parents[3] / "golden" / "storage" / "v1"

ENTRIES = tuple(
    Entry(index, 1 if index < 6 else 3, index % 4, bytes([index]) * (index * 97 % 700))
    for index in range(1, 16)
)
HARD_STATE = HardState(3, 12345678901234567890, 14)
MARK = SnapshotMark(9, 3)
RECORDS = [SnapshotRecord(kind, f"object {kind}".encode() * kind) for kind in range(1, 8)]


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


def contents(directory: Path) -> dict[str, bytes]:
    """Relative path to bytes."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


if __name__ == "__main__":
    if DIRECTORY.exists():
        raise SystemExit(f"{DIRECTORY} exists: released formats are not written again")
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
        for name, content in contents(Path(scratch)).items():
            target = DIRECTORY / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
