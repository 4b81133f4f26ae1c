"""Backups: whole or refused, restored as a new member, crash-safe."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import pytest

from manager.storage.backup import (
    Manifest,
    Restoring,
    encode_backup,
    read_backup,
    restore,
    write_backup,
)
from manager.storage.entries import Entry, HardState, SnapshotMark
from manager.storage.errors import CorruptSnapshot
from manager.storage.keyring import KeyRing, Locked
from manager.storage.member import Opening, open_member
from manager.storage.snapshot_file import SnapshotRecord
from manager.storage.wal import SEGMENT_BYTES_MIN
from shoal.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
)
from shoal.security.unlock import make_unlock_key
from tests.unit.manager.storage.support import Crash, CrashingFiles, FaultyFiles

CLUSTER = "cluster"
MANIFEST = Manifest(CLUSTER, index=4711, term=6, created_ns=1, made_by="0.1.0")
RECORDS = [SnapshotRecord(1, f"object {n} with a secret".encode()) for n in range(40)]


def restoring(**options) -> Restoring:
    return Restoring(segment_bytes=SEGMENT_BYTES_MIN, **options)


def opened(directory: Path, **options):
    options = {"create": False, **options}
    return open_member(directory, Opening(CLUSTER, segment_bytes=SEGMENT_BYTES_MIN, **options))


@pytest.fixture
def backup(tmp_path):
    path = tmp_path / "cluster.backup"
    write_backup(path, MANIFEST, iter(RECORDS))
    return path


def test_a_backup_says_and_holds_what_was_written(backup):
    found = read_backup(backup)
    assert (found.manifest, found.objects) == (MANIFEST, len(RECORDS))
    assert list(found.records()) == list(found.records()) == RECORDS
    assert len(found.sha256) == 64
    assert backup.stat().st_mode & 0o777 == 0o600
    assert b"".join(encode_backup(MANIFEST, RECORDS)) == backup.read_bytes()
    assert [path.name for path in backup.parent.iterdir()] == [backup.name]


@pytest.mark.parametrize("records", [[], [SnapshotRecord(1, b"r" * (5 << 20))] * 2])
def test_edges_come_back(tmp_path, records):
    write_backup(tmp_path / "b", MANIFEST, records)
    assert list(read_backup(tmp_path / "b").records()) == records


def test_every_flip_and_cut_is_noticed(backup):
    content = backup.read_bytes()
    for offset in range(len(content)):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << offset % 8
        for wrong in (bytes(flipped), content[:offset]):
            backup.write_bytes(wrong)
            with pytest.raises(CorruptSnapshot, match=r"cluster\.backup"):
                read_backup(backup)
    for more in (b"\0", content):
        backup.write_bytes(content + more)
        with pytest.raises(CorruptSnapshot):
            read_backup(backup)


def test_the_snapshot_of_another_manifest_is_refused(backup):
    pieces = list(encode_backup(MANIFEST, RECORDS))
    others = list(encode_backup(Manifest(CLUSTER, 9, 6, 1, "0.1.0"), RECORDS))
    backup.write_bytes(b"".join([pieces[0], *others[1:]]))
    with pytest.raises(CorruptSnapshot, match="not what the manifest says"):
        read_backup(backup)


def test_a_backup_is_streamed(tmp_path):
    tracemalloc.start()
    try:
        records = (SnapshotRecord(1, n.to_bytes(4, "big") * 110) for n in range(50_000))
        write_backup(tmp_path / "b", MANIFEST, records)
        assert read_backup(tmp_path / "b").objects == 50_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "b").stat().st_size > 20 << 20
    assert peak < 12 << 20


def test_what_is_refused(tmp_path, backup):
    with pytest.raises(AlreadyExists, match="not overwritten"):
        write_backup(backup, MANIFEST, [])
    with pytest.raises(NotFound, match="no such file"):
        read_backup(tmp_path / "none")
    (tmp_path / "text").write_text("something else")
    with pytest.raises(CorruptSnapshot, match="not a backup"):
        read_backup(tmp_path / "text")
    (tmp_path / "raft").mkdir()
    (tmp_path / "raft" / "wal").mkdir()
    with pytest.raises(FailedPrecondition, match="is not empty"):
        restore(backup, tmp_path / "raft", restoring())


def test_nothing_is_left_of_a_backup_that_fails(tmp_path):
    def failing():
        yield RECORDS[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_backup(tmp_path / "b", MANIFEST, failing())
    files = FaultyFiles(space_bytes=500)
    with pytest.raises(ResourceExhausted):
        write_backup(tmp_path / "b", MANIFEST, RECORDS, files=files)
    assert list(tmp_path.iterdir()) == []
    assert files.open_fds == set()


def test_a_restored_directory_is_a_new_member_with_the_same_state(tmp_path, backup):
    first = restore(backup, tmp_path / "one", restoring())
    second = restore(backup, tmp_path / "two", restoring())
    assert first.raft_id != second.raft_id
    assert (first.cluster_id, first.index, first.term) == (CLUSTER, 4711, 6)
    assert first.objects == len(RECORDS)
    member = opened(tmp_path / "one")
    assert member.wal.identity.raft_id == first.raft_id
    assert member.recovered.mark == SnapshotMark(4711, 6)
    assert member.recovered.hard_state == HardState()
    assert member.recovered.entries == ()
    snapshot = member.snapshots.load(member.recovered.mark)
    assert (list(snapshot.records()), snapshot.metadata) == (RECORDS, b"")
    member.wal.append([Entry(4712, 6, 1, b"goes on")])
    member.wal.close()
    again = opened(tmp_path / "one")
    assert [entry.data for entry in again.recovered.entries] == [b"goes on"]
    again.wal.close()
    for path in (tmp_path / "one").rglob("*"):
        assert path.is_dir() or b"with a secret" not in path.read_bytes()


def test_the_raft_driver_gives_its_membership(tmp_path, backup):
    unlock_key = make_unlock_key()
    given = []

    def membership(raft_id: int) -> bytes:
        given.append(raft_id)
        return b"only me"

    options = restoring(membership=membership, unlock_key=unlock_key)
    restored = restore(backup, tmp_path / "raft", options)
    assert given == [restored.raft_id]
    with pytest.raises(Locked):
        opened(tmp_path / "raft")
    member = opened(tmp_path / "raft", unlock_key=unlock_key)
    assert member.recovered.hard_state == HardState(6, 0, 4711)
    assert member.snapshots.load(member.recovered.mark).metadata == b"only me"
    member.wal.close()


def test_a_damaged_backup_restores_nothing(tmp_path, backup):
    backup.write_bytes(backup.read_bytes()[:-1])
    with pytest.raises(CorruptSnapshot):
        restore(backup, tmp_path / "raft", restoring())
    assert not (tmp_path / "raft").exists()
    assert not (tmp_path / "raft.restoring").exists()


def test_a_crash_at_any_operation_restores_all_or_nothing(tmp_path, backup):
    (tmp_path / "node").mkdir()
    directory = tmp_path / "node" / "raft"
    for at in range(200):
        try:
            restore(backup, directory, restoring(files=CrashingFiles(at)))
        except Crash:
            crashed = True
        else:
            crashed = False
        if directory.exists():
            member = opened(directory)
            snapshot = member.snapshots.load(member.recovered.mark)
            assert list(snapshot.records()) == RECORDS
            member.wal.close()
            shutil.rmtree(directory)
        else:
            assert crashed
        if not crashed:
            assert at > 20
            return
    pytest.fail("never finished")


def test_a_full_disk_restores_nothing_and_the_next_try_works(tmp_path, backup):
    for space in (0, 100, 5000):
        with pytest.raises(ResourceExhausted):
            restore(backup, tmp_path / "raft", restoring(files=FaultyFiles(space_bytes=space)))
        assert not (tmp_path / "raft").exists()
    restore(backup, tmp_path / "raft", restoring())
    assert not (tmp_path / "raft.restoring").exists()
    KeyRing.open(tmp_path / "raft" / "keys.json", CLUSTER)
