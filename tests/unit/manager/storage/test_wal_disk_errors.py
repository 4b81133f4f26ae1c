"""A full disk refuses and recovers; a failing disk is final."""

from __future__ import annotations

import errno

import pytest

from manager.storage.entries import HardState, SnapshotMark
from manager.storage.errors import StorageFailed
from manager.storage.wal import SEGMENT_BYTES_MIN, Wal
from shoal.errors import ResourceExhausted
from tests.unit.manager.storage.support import IDENTITY, FaultyFiles, entries

SMALL = SEGMENT_BYTES_MIN


def recover(wal: Wal):
    wal.close()
    again, recovered = Wal.open(wal.directory, IDENTITY, segment_bytes=SMALL)
    again.close()
    return recovered


@pytest.mark.parametrize("space_bytes", [0, 1, 40, 300, 700])
def test_a_batch_that_found_no_space_leaves_no_trace(tmp_path, space_bytes):
    files = FaultyFiles()
    wal = Wal.create(tmp_path / "raft", IDENTITY, segment_bytes=SMALL, files=files)
    wal.append(entries(1, 2), HardState(1, 0, 1))
    for _ in range(3):
        files.space_bytes = space_bytes
        with pytest.raises(ResourceExhausted, match="free space and try again"):
            wal.append(entries(3, 10, size=100), HardState(2, 0, 2))
    assert (wal.last_index, wal.hard_state) == (2, HardState(1, 0, 1))
    files.space_bytes = None
    wal.append(entries(3, 3, term=5))
    files.calls.clear()
    wal.append(entries(4, 4, term=5))
    assert files.calls == ["pwrite", "fdatasync"]
    recovered = recover(wal)
    assert recovered.entries == (*entries(1, 2), *entries(3, 4, term=5))
    assert recovered.repaired is None
    assert files.open_fds == set()


def test_a_killed_process_after_a_partial_write_recovers(tmp_path):
    files = FaultyFiles()
    wal = Wal.create(tmp_path / "raft", IDENTITY, segment_bytes=SMALL, files=files)
    wal.append(entries(1, 2))
    files.space_bytes = 700
    with pytest.raises(ResourceExhausted):
        wal.append(entries(3, 12, size=100))
    # Closing now is what a kill leaves: the cut could not be written, there being no space.
    recovered = recover(wal)
    assert recovered.entries == tuple(entries(1, 2))
    assert recovered.repaired is not None


def test_no_space_for_a_new_segment(tmp_path):
    files = FaultyFiles()
    wal = Wal.create(tmp_path / "raft", IDENTITY, segment_bytes=SMALL, files=files)
    files.space_bytes = SMALL // 2

    def until_full() -> None:
        for index in range(1, 200):
            wal.append(entries(index, index))

    with pytest.raises(ResourceExhausted, match="nothing was acknowledged"):
        until_full()
    index = wal.last_index + 1
    for _ in range(2):
        with pytest.raises(ResourceExhausted):
            wal.append(entries(index, index + 40))
    assert len(list(wal.directory.glob("*.wal"))) == 1
    files.space_bytes = None
    wal.append(entries(index, index + 50))
    assert recover(wal).entries == tuple(entries(1, index + 50))
    assert files.open_fds == set()


def test_no_space_to_rename_a_new_segment(tmp_path):
    files = FaultyFiles()
    wal = Wal.create(tmp_path / "raft", IDENTITY, segment_bytes=SMALL, files=files)
    files.fail["rename"] = errno.ENOSPC
    with pytest.raises(ResourceExhausted):
        wal.append(entries(1, 40, size=100))
    files.fail.clear()
    wal.append(entries(1, 40, size=100))
    assert recover(wal).last_index == 40
    assert files.open_fds == set()


@pytest.mark.parametrize(
    ("call", "error"),
    [("pwrite", errno.EIO), ("fdatasync", errno.EIO), ("fdatasync", errno.ENOSPC)],
)
def test_a_failed_write_or_sync_is_final(tmp_path, call, error):
    files = FaultyFiles()
    wal = Wal.create(tmp_path / "raft", IDENTITY, segment_bytes=SMALL, files=files)
    wal.append(entries(1, 2), HardState(1, 0, 2))
    wal.mark_snapshot(1, 1)
    files.fail[call] = error
    with pytest.raises(StorageFailed, match="check the disk and restart"):
        wal.append(entries(3, 3))
    files.fail.clear()
    files.calls.clear()
    for attempt in (lambda: wal.append(entries(3, 3)), lambda: wal.release(1)):
        with pytest.raises(StorageFailed):
            attempt()
    assert files.calls == []
    assert recover(wal).last_index in (2, 3)
    assert files.open_fds == set()


@pytest.mark.parametrize("call", ["fsync", "fdatasync", "create", "rename"])
def test_a_disk_failing_under_a_new_segment_is_final(tmp_path, call):
    files = FaultyFiles()
    wal = Wal.create(tmp_path / "raft", IDENTITY, segment_bytes=SMALL, files=files)
    wal.append(entries(1, 2))
    files.fail[call] = errno.EIO
    for _ in range(2):
        with pytest.raises(StorageFailed):
            wal.append(entries(3, 60, size=100))
    files.fail.clear()
    assert recover(wal).entries == tuple(entries(1, 2))
    assert files.open_fds == set()


def test_a_failing_unlink_in_release_is_final(tmp_path):
    files = FaultyFiles()
    wal = Wal.create(tmp_path / "raft", IDENTITY, segment_bytes=SMALL, files=files)
    for entry in entries(1, 100, size=100):
        wal.append([entry], HardState(1, 0, entry.index))
    wal.append(mark=SnapshotMark(100, 1))
    files.fail["unlink"] = errno.EIO
    with pytest.raises(StorageFailed):
        wal.release(100)
    with pytest.raises(StorageFailed):
        wal.append(entries(101, 101))
    files.fail.clear()
    assert recover(wal).entries_after(100) == ()


def test_a_failure_while_repairing_changes_nothing(tmp_path):
    files = FaultyFiles()
    wal = Wal.create(tmp_path / "raft", IDENTITY, segment_bytes=SMALL)
    wal.append(entries(1, 2))
    wal.append(entries(3, 6, size=100))
    wal.close()
    (segment,) = wal.directory.glob("*.wal")
    content = segment.read_bytes()
    used = len(content.rstrip(b"\0"))
    torn = content[: used - 60] + bytes(len(content) - used + 60)
    segment.write_bytes(torn)
    files.space_bytes = 20
    with pytest.raises(ResourceExhausted, match="repairing the torn tail"):
        Wal.open(wal.directory, IDENTITY, segment_bytes=SMALL, files=files)
    assert segment.read_bytes() == torn
    assert files.open_fds == set()
    assert recover(wal).last_index == 2


@pytest.mark.parametrize("size", [0, 3, 300, 900])
def test_a_failed_batch_that_cannot_be_cut_off_for_lack_of_space_still_shows(tmp_path, size):
    for space_bytes in range(0, 20_000, 23 if size > 100 else 1):
        files = FaultyFiles()
        directory = tmp_path / str(space_bytes)
        wal = Wal.create(directory, IDENTITY, segment_bytes=SMALL, files=files)
        wal.append(entries(1, 2))
        files.space_bytes = 60 + size
        with pytest.raises(ResourceExhausted):
            wal.append(entries(3, 5, size=size))
        # The second try first cuts off what the first left, and runs out of space there.
        files.space_bytes = space_bytes
        try:
            wal.append(entries(3, 8, size=size + 100))
        except ResourceExhausted:
            assert recover(wal).entries == tuple(entries(1, 2)), space_bytes
        else:
            wal.close()
            assert space_bytes > 100
            return
    pytest.fail("never had space enough")
