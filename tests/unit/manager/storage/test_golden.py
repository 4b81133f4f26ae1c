"""Files of versions 1 and 2 are read; version 1 is still what is written without keys."""

from __future__ import annotations

import shutil

import pytest

from manager.storage.backup import encode_backup, read_backup
from manager.storage.entries import SnapshotMark
from manager.storage.errors import CorruptLog, CorruptSnapshot
from manager.storage.frames import HEADER_BYTES, extend
from manager.storage.keyring import KeyRing
from manager.storage.snapshot_dir import SnapshotDir
from manager.storage.snapshot_file import verify
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
    [(8, 3, "format 3, this version reads 1 to 2"), (84, 9, "key id that does not fit it")],
)
def test_a_newer_segment_is_refused_and_named(tmp_path, offset, value, reason):
    shutil.copytree(golden.DIRECTORY / "wal", tmp_path / "wal")
    path = sorted((tmp_path / "wal").glob("*.wal"))[-1]
    path.write_bytes(_changed(path.read_bytes(), offset, value))
    with pytest.raises(FailedPrecondition, match=reason):
        Wal.open(tmp_path / "wal", IDENTITY)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [(8, 3, "format 3, this version reads 1 to 2")],
)
def test_a_newer_snapshot_is_refused_and_kept(tmp_path, offset, value, reason):
    shutil.copytree(golden.DIRECTORY / "snap", tmp_path / "snap")
    (path,) = (tmp_path / "snap").iterdir()
    path.write_bytes(_changed(path.read_bytes(), offset, value))
    snapshots = SnapshotDir(tmp_path / "snap", cluster_id=IDENTITY.cluster_id)
    with pytest.raises(FailedPrecondition, match=reason):
        snapshots.load(SnapshotMark(golden.MARK.index, golden.MARK.term))
    assert path.exists()


def test_version_2_is_read(tmp_path):
    shutil.copytree(golden.DIRECTORY_2, tmp_path / "v2")
    (tmp_path / "v2" / "keys.json").chmod(0o600)
    keys = KeyRing.open(tmp_path / "v2" / "keys.json", IDENTITY.cluster_id)
    wal, recovered = Wal.open(tmp_path / "v2" / "wal", IDENTITY, keys=keys)
    assert wal.key_ids() == keys.retired | {keys.current.id}
    wal.close()
    assert recovered.entries == golden.ENTRIES
    assert (recovered.hard_state, recovered.mark) == (golden.HARD_STATE, golden.MARK)
    for name, ring in (("snap", keys), ("plain", None)):
        snapshots = SnapshotDir(tmp_path / "v2" / name, cluster_id=IDENTITY.cluster_id, keys=ring)
        loaded = snapshots.load(recovered.mark)
        assert loaded is not None
        assert list(loaded.records()) == golden.RECORDS
        assert loaded.metadata == golden.METADATA


def test_a_locked_ring_of_version_2_is_read(tmp_path):
    path = tmp_path / "keys.json"
    shutil.copy(golden.DIRECTORY_2 / "locked.json", path)
    path.chmod(0o600)
    locked = KeyRing.open(path, IDENTITY.cluster_id, unlock_key=golden.UNLOCK_KEY)
    path.write_bytes((golden.DIRECTORY_2 / "keys.json").read_bytes())
    opened = KeyRing.open(path, IDENTITY.cluster_id)
    assert locked.current.secret == opened.current.secret
    assert locked.retired == opened.retired


def test_a_backup_of_version_1_is_read_and_still_written():
    path = golden.DIRECTORY_2 / "cluster.backup"
    backup = read_backup(path)
    assert (backup.manifest, list(backup.records())) == (golden.MANIFEST, golden.RECORDS)
    assert b"".join(encode_backup(golden.MANIFEST, golden.RECORDS)) == path.read_bytes()


def test_a_version_that_does_not_fit_its_fields_is_refused(tmp_path):
    shutil.copytree(golden.DIRECTORY_2, tmp_path / "v2")
    (path,) = (tmp_path / "v2" / "snap").iterdir()
    path.write_bytes(_changed(path.read_bytes(), 8, 1))
    with pytest.raises(CorruptSnapshot, match="version 1 with fields of version 2"):
        verify(path)
    (path,) = (tmp_path / "v2" / "plain").iterdir()
    path.write_bytes(_changed(path.read_bytes(), 8, 1))
    with pytest.raises(CorruptSnapshot):
        verify(path)
    path = sorted((tmp_path / "v2" / "wal").iterdir())[1]
    path.write_bytes(_changed(path.read_bytes(), 8, 1))
    with pytest.raises(CorruptLog, match="key id that does not fit"):
        Wal.open(tmp_path / "v2" / "wal", IDENTITY)


def _changed(content: bytes, offset: int, value: int) -> bytes:
    """The file with one header byte set and the header checksum made to match."""
    head = bytearray(content[: HEADER_BYTES - 4])
    head[offset] = value
    crc = extend(0, bytes(head)).to_bytes(4, "little")
    return bytes(head) + crc + content[HEADER_BYTES:]
