"""Files of format version 1 are read, and version 1 is still what we write."""

from __future__ import annotations

import shutil

import pytest

from manager.storage.entries import SnapshotMark
from manager.storage.frames import HEADER_BYTES, extend
from manager.storage.snapshot_dir import SnapshotDir
from manager.storage.wal import Wal
from shoal.errors import FailedPrecondition
from tests.unit.manager.storage import golden
from tests.unit.manager.storage.support import IDENTITY


def test_version_1_is_read(tmp_path):
    shutil.copytree(golden.DIRECTORY, tmp_path / "v1")
    wal, recovered = Wal.open(tmp_path / "v1" / "wal", IDENTITY)
    wal.close()
    assert recovered.entries == golden.ENTRIES
    assert recovered.hard_state == golden.HARD_STATE
    assert recovered.mark == golden.MARK
    snapshots = SnapshotDir(tmp_path / "v1" / "snap", cluster_id=IDENTITY.cluster_id)
    loaded = snapshots.load(recovered.mark)
    assert loaded is not None
    assert list(loaded.records()) == golden.RECORDS


def test_the_same_bytes_are_written(tmp_path):
    golden.write(tmp_path)
    assert golden.contents(tmp_path) == golden.contents(golden.DIRECTORY)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [(8, 2, "format 2, this version reads 1"), (84, 9, "encrypted at rest by a newer version")],
)
def test_a_newer_segment_is_refused_and_named(tmp_path, offset, value, reason):
    shutil.copytree(golden.DIRECTORY / "wal", tmp_path / "wal")
    path = sorted((tmp_path / "wal").glob("*.wal"))[-1]
    path.write_bytes(_changed(path.read_bytes(), offset, value))
    with pytest.raises(FailedPrecondition, match=reason):
        Wal.open(tmp_path / "wal", IDENTITY)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [(8, 2, "format 2, this version reads 1"), (64, 9, "encrypted at rest by a newer version")],
)
def test_a_newer_snapshot_is_refused_and_kept(tmp_path, offset, value, reason):
    shutil.copytree(golden.DIRECTORY / "snap", tmp_path / "snap")
    (path,) = (tmp_path / "snap").iterdir()
    path.write_bytes(_changed(path.read_bytes(), offset, value))
    snapshots = SnapshotDir(tmp_path / "snap", cluster_id=IDENTITY.cluster_id)
    with pytest.raises(FailedPrecondition, match=reason):
        snapshots.load(SnapshotMark(golden.MARK.index, golden.MARK.term))
    assert path.exists()


def _changed(content: bytes, offset: int, value: int) -> bytes:
    """The file with one header byte set and the header checksum made to match."""
    head = bytearray(content[: HEADER_BYTES - 4])
    head[offset] = value
    crc = extend(0, bytes(head)).to_bytes(4, "little")
    return bytes(head) + crc + content[HEADER_BYTES:]
