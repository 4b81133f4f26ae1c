"""The log: round trips, rotation, overwriting, release, refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from manager.storage.entries import Batch, Entry, HardState, SnapshotMark
from manager.storage.errors import CorruptLog
from manager.storage.frames import WalIdentity
from manager.storage.wal import SEGMENT_BYTES_MIN, Wal
from shoal.errors import FailedPrecondition, InvalidArgument, InvariantViolation, NotFound
from tests.unit.manager.storage.support import IDENTITY, FaultyFiles, entries

SMALL = SEGMENT_BYTES_MIN


def create(directory: Path, **options) -> Wal:
    return Wal.create(directory / "raft", IDENTITY, segment_bytes=SMALL, **options)


def reopen(wal: Wal):
    wal.close()
    return Wal.open(wal.directory, IDENTITY, segment_bytes=SMALL)


def test_an_empty_log_recovers_as_empty(tmp_path):
    wal, recovered = reopen(create(tmp_path))
    assert (recovered.first_index, recovered.last_index, recovered.entries) == (1, 0, ())
    assert (recovered.hard_state, recovered.mark, recovered.repaired) == (HardState(), None, None)
    wal.close()


def test_what_was_appended_is_recovered_across_many_segments(tmp_path):
    wal = create(tmp_path)
    written = entries(1, 300, size=60)
    for entry in written:
        wal.append([entry], HardState(entry.term, 3, entry.index - 1))
    assert len(list(wal.directory.glob("*.wal"))) > 5
    wal, recovered = reopen(wal)
    assert recovered.entries == tuple(written)
    assert recovered.hard_state == HardState(1, 3, 299)
    wal.append(entries(301, 301))
    wal, recovered = reopen(wal)
    assert recovered.last_index == 301
    wal.close()


def test_data_of_any_bytes_and_size_survives(tmp_path):
    wal = create(tmp_path)
    data = [b"", b"\0" * 2000, b"\xa5", bytes(range(256)), b"\0" * 600 + b"end", b"z" * 50_000]
    written = [Entry(index, 1, 255, item) for index, item in enumerate(data, start=1)]
    for entry in written:
        wal.append([entry])
    wal, recovered = reopen(wal)
    assert recovered.entries == tuple(written)
    wal.close()


def test_one_append_is_one_sync(tmp_path):
    files = FaultyFiles()
    wal = Wal.create(tmp_path / "raft", IDENTITY, segment_bytes=1 << 16, files=files)
    files.calls.clear()
    wal.append_all(
        [Batch(tuple(entries(1, 10)), HardState(1, 0, 0)), Batch(tuple(entries(11, 20)))]
    )
    assert files.calls == ["pwrite", "fdatasync"]
    wal.close()
    assert files.open_fds == set()


def test_the_last_writer_of_an_index_wins(tmp_path):
    wal = create(tmp_path)
    wal.append(entries(1, 50, term=1), HardState(1, 0, 10))
    wal.append(entries(11, 20, term=2))
    assert wal.last_index == 20
    wal.append(entries(21, 22, term=3))
    wal, recovered = reopen(wal)
    expected = [*entries(1, 10), *entries(11, 20, term=2), *entries(21, 22, term=3)]
    assert recovered.entries == tuple(expected)
    wal.close()


def test_overwriting_a_committed_entry_is_our_bug(tmp_path):
    wal = create(tmp_path)
    wal.append(entries(1, 10), HardState(1, 0, 5))
    with pytest.raises(InvariantViolation, match="committed"):
        wal.append(entries(5, 6, term=2))
    with pytest.raises(InvariantViolation, match="goes back"):
        wal.append((), HardState(1, 0, 4))
    wal.append(entries(6, 6, term=2))
    wal, recovered = reopen(wal)
    assert recovered.last_index == 6
    wal.close()


def test_a_gap_is_refused_and_the_log_stays_usable(tmp_path):
    wal = create(tmp_path)
    with pytest.raises(FailedPrecondition, match="entry 2: the log ends at 0"):
        wal.append(entries(2, 2))
    with pytest.raises(FailedPrecondition, match="entry 3"):
        wal.append([*entries(1, 1), *entries(3, 3)])
    wal.append(entries(1, 3))
    wal, recovered = reopen(wal)
    assert recovered.last_index == 3
    wal.close()


def test_numbers_out_of_range_are_refused(tmp_path):
    wal = create(tmp_path)
    with pytest.raises(InvalidArgument, match="Entry"):
        wal.append([Entry(1, 1, 256, b"")])
    with pytest.raises(InvalidArgument, match="exceed"):
        wal.append([Entry(1, 1, 1, bytes(17 << 20))])
    wal.append(entries(1, 1))
    wal.close()


def test_an_installed_snapshot_replaces_the_log(tmp_path):
    wal = create(tmp_path)
    wal.append(entries(1, 10), HardState(1, 0, 4))
    wal.append(entries(101, 102, term=4), HardState(4, 0, 101), SnapshotMark(100, 4))
    wal, recovered = reopen(wal)
    assert recovered.mark == SnapshotMark(100, 4)
    assert recovered.entries == tuple(entries(101, 102, term=4))
    with pytest.raises(CorruptLog, match="does not continue a snapshot of index 10"):
        recovered.entries_after(10)
    wal.close()


def test_a_snapshot_of_another_term_drops_the_conflicting_suffix(tmp_path):
    wal = create(tmp_path)
    wal.append(entries(1, 10), HardState(1, 0, 4))
    wal.mark_snapshot(8, 2)
    assert wal.last_index == 8
    wal, recovered = reopen(wal)
    assert (recovered.first_index, recovered.entries) == (9, ())
    wal.close()


def test_an_own_snapshot_keeps_the_log_for_an_older_one(tmp_path):
    wal = create(tmp_path)
    wal.append(entries(1, 10), HardState(1, 0, 9))
    wal.mark_snapshot(8, 1)
    wal, recovered = reopen(wal)
    assert recovered.entries == tuple(entries(1, 10))
    assert recovered.entries_after(8) == tuple(entries(9, 10))
    assert recovered.entries_after(0) == recovered.entries
    with pytest.raises(CorruptLog):
        recovered.entries_after(11)
    wal.close()


def test_release_deletes_only_what_the_snapshot_covers(tmp_path):
    wal = create(tmp_path)
    for entry in entries(1, 300, size=60):
        wal.append([entry], HardState(1, 1, entry.index))
    with pytest.raises(FailedPrecondition, match="release 100"):
        wal.release(100)
    wal.mark_snapshot(200, 1)
    before = len(list(wal.directory.glob("*.wal")))
    released = wal.release(100)
    assert released > 0
    assert len(list(wal.directory.glob("*.wal"))) == before - released
    wal, recovered = reopen(wal)
    assert 1 < recovered.first_index <= 101
    assert recovered.entries_after(100) == tuple(entries(101, 300, size=60))
    assert wal.release(200) > 0
    wal, recovered = reopen(wal)
    assert recovered.entries_after(200) == tuple(entries(201, 300, size=60))
    assert recovered.hard_state == HardState(1, 1, 300)
    wal.close()


def test_released_segments_missing_without_a_snapshot_are_noticed(tmp_path):
    wal = create(tmp_path)
    for entry in entries(1, 200, size=60):
        wal.append([entry])
    wal.close()
    segments = sorted(wal.directory.glob("*.wal"))
    segments[0].unlink()
    with pytest.raises(CorruptLog, match="begins at entry"):
        Wal.open(wal.directory, IDENTITY)
    segments[2].unlink()
    with pytest.raises(CorruptLog, match="are missing"):
        Wal.open(wal.directory, IDENTITY)


def test_a_batch_larger_than_a_segment_gets_its_own(tmp_path):
    wal = create(tmp_path)
    wal.append(entries(1, 200, size=100))
    wal.append(entries(201, 201))
    wal, recovered = reopen(wal)
    assert recovered.last_index == 201
    wal.close()


def test_open_needs_a_log_and_create_an_empty_place(tmp_path):
    with pytest.raises(NotFound, match="create it"):
        Wal.open(tmp_path / "none", IDENTITY)
    with pytest.raises(NotFound, match="create it"):
        Wal.open(tmp_path, IDENTITY)
    wal = create(tmp_path)
    wal.close()
    with pytest.raises(FailedPrecondition, match="holds a log already"):
        create(tmp_path)


def test_the_log_of_another_member_is_refused(tmp_path):
    wal = create(tmp_path)
    wal.close()
    with pytest.raises(FailedPrecondition, match="member 7 of cluster"):
        Wal.open(wal.directory, WalIdentity(IDENTITY.cluster_id, 8))
    with pytest.raises(FailedPrecondition, match="wrong --state-dir"):
        Wal.open(wal.directory, WalIdentity("another", 7))


def test_a_second_process_is_refused(tmp_path):
    wal = create(tmp_path)
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from manager.storage.frames import WalIdentity\nfrom manager.storage.wal import Wal\n"
        f"Wal.open(Path(sys.argv[1]), WalIdentity({IDENTITY.cluster_id!r}, 7))\n"
    )
    command = [sys.executable, "-c", script, str(wal.directory)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "another process has this log open" in refused.stderr
    with pytest.raises(FailedPrecondition, match="another process"):
        Wal.open(wal.directory, IDENTITY)
    wal.close()
    allowed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert allowed.returncode == 0, allowed.stderr


def test_a_closed_log_refuses(tmp_path):
    wal = create(tmp_path)
    wal.close()
    wal.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        wal.append(entries(1, 1))


def test_left_overs_of_a_crash_are_removed(tmp_path):
    wal = create(tmp_path)
    wal.close()
    (wal.directory / "next.wal.tmp").write_bytes(b"half")
    wal, _ = Wal.open(wal.directory, IDENTITY, segment_bytes=SMALL)
    assert not list(wal.directory.glob("*.tmp"))
    wal.close()
