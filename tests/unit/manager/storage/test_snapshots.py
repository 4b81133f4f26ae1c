"""Snapshot files: streaming, verification of every byte, falling back, pruning."""

from __future__ import annotations

import errno
import tracemalloc

import pytest

from manager.storage.entries import SnapshotMark
from manager.storage.errors import CorruptSnapshot, StorageFailed
from manager.storage.snapshot_dir import BROKEN_KEPT, SnapshotDir
from manager.storage.snapshot_file import CHUNK_BYTES_MAX, SnapshotRecord
from shoal.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from tests.unit.manager.storage.support import IDENTITY, FaultyFiles


def snapshots(tmp_path, **options) -> SnapshotDir:
    return SnapshotDir(tmp_path / "snap", cluster_id=IDENTITY.cluster_id, **options)


def some(count: int, size: int = 20) -> list[SnapshotRecord]:
    return [SnapshotRecord(n % 9, f"{n}:".encode() + b"o" * size) for n in range(count)]


@pytest.mark.parametrize(
    "records",
    [
        [],
        some(1),
        some(5000, 500),
        [SnapshotRecord(0, b""), SnapshotRecord(65535, b"\0" * 10)],
        [SnapshotRecord(1, bytes(CHUNK_BYTES_MAX + extra)) for extra in range(-8, 3)],
        [SnapshotRecord(1, b"q" * (5 << 20)), *some(3), SnapshotRecord(2, b"r" * (2 << 20))],
    ],
    ids=["none", "one", "many", "edges", "chunk", "large"],
)
def test_records_come_back_in_order(tmp_path, records):
    directory = snapshots(tmp_path)
    directory.save(7, 2, iter(records))
    loaded = directory.load(SnapshotMark(7, 2))
    assert loaded is not None
    assert (loaded.index, loaded.term) == (7, 2)
    assert list(loaded.records()) == records
    assert list(loaded.records()) == records


def test_a_large_snapshot_is_streamed(tmp_path):
    directory = snapshots(tmp_path)
    tracemalloc.start()
    try:
        records = (SnapshotRecord(1, n.to_bytes(4, "big") * 110) for n in range(100_000))
        saved = directory.save(7, 2, records)
        loaded = directory.load(SnapshotMark(7, 2))
        assert sum(1 for _ in loaded.records()) == 100_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert saved.path.stat().st_size > 40 << 20
    assert peak < 12 << 20


def test_a_flip_or_a_cut_anywhere_is_noticed(tmp_path):
    directory = snapshots(tmp_path)
    saved = directory.save(7, 2, some(6))
    content = saved.path.read_bytes()
    for offset in range(len(content)):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << offset % 8
        for wrong in (bytes(flipped), content[:offset]):
            saved.path.write_bytes(wrong)
            with pytest.raises(CorruptSnapshot, match="no usable snapshot"):
                directory.load(SnapshotMark(7, 2))
    saved.path.write_bytes(content + b"\0")
    with pytest.raises(CorruptSnapshot, match="no usable snapshot"):
        directory.load(SnapshotMark(7, 2))
    assert len(list(directory.directory.glob("*.broken"))) <= BROKEN_KEPT


def test_a_broken_snapshot_is_put_aside_and_the_older_one_used(tmp_path):
    directory = snapshots(tmp_path)
    directory.save(5, 1, some(3))
    newest = directory.save(9, 1, some(4))
    newest.path.write_bytes(newest.path.read_bytes()[:-1])
    loaded = directory.load(SnapshotMark(9, 1))
    assert loaded.index == 5
    assert list(loaded.records()) == some(3)
    assert not newest.path.exists()
    assert newest.path.with_suffix(".snap.broken").exists()


def test_a_snapshot_without_a_mark_in_the_log_is_not_loaded(tmp_path):
    directory = snapshots(tmp_path)
    assert directory.load(None) is None
    with pytest.raises(CorruptSnapshot):
        directory.load(SnapshotMark(5, 1))
    directory.save(5, 1, some(1))
    directory.save(9, 1, some(1))
    assert directory.load(None) is None
    assert directory.load(SnapshotMark(5, 1)).index == 5


def test_prune_keeps_the_marked_one_and_one_before(tmp_path):
    directory = snapshots(tmp_path)
    for index in (3, 5, 7, 9, 12):
        directory.save(index, 1, some(1))
    assert directory.prune(SnapshotMark(9, 1)) == 7
    left = sorted(int(path.stem.split("-")[1], 16) for path in directory.directory.iterdir())
    assert left == [7, 9, 12]
    with pytest.raises(FailedPrecondition, match="no snapshot for the mark"):
        directory.prune(SnapshotMark(8, 1))
    assert snapshots(tmp_path, keep_old=0).prune(SnapshotMark(12, 1)) == 12


def test_a_foreign_snapshot_is_refused_and_not_put_aside(tmp_path):
    saved = snapshots(tmp_path).save(5, 1, some(1))
    other = SnapshotDir(tmp_path / "snap", cluster_id="another")
    with pytest.raises(FailedPrecondition, match="wrong --state-dir"):
        other.load(SnapshotMark(5, 1))
    assert saved.path.exists()


def test_a_renamed_snapshot_is_not_what_its_name_says(tmp_path):
    directory = snapshots(tmp_path)
    saved = directory.save(5, 1, some(1))
    saved.path.rename(saved.path.with_name(f"{1:016x}-{6:016x}.snap"))
    with pytest.raises(CorruptSnapshot):
        directory.load(SnapshotMark(6, 1))


def test_nothing_is_left_of_a_save_that_fails(tmp_path):
    files = FaultyFiles()
    directory = snapshots(tmp_path, files=files)
    directory.save(5, 1, some(1))

    def failing():
        yield from some(100_000)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        directory.save(9, 1, failing())
    with pytest.raises(InvalidArgument, match="kind"):
        directory.save(9, 1, [SnapshotRecord(1 << 16, b"")])
    files.space_bytes = 300
    with pytest.raises(ResourceExhausted):
        directory.save(9, 1, some(100))
    files.space_bytes = None
    for call in ("fsync", "rename", "pwrite"):
        files.fail = {call: errno.EIO}
        with pytest.raises(StorageFailed):
            directory.save(9, 1, some(2))
        assert files.open_fds == set()
    files.fail = {}
    assert [path.name for path in directory.directory.iterdir()] == [f"{1:016x}-{5:016x}.snap"]
    assert directory.save(9, 1, some(2)).path.exists()
