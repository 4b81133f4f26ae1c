"""A member's directory as a whole: begun, opened, locked, read when stopped, forced alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from manager.storage.entries import Entry, HardState, SnapshotMark
from manager.storage.errors import CorruptLog
from manager.storage.forcing import NewState, force_new_cluster
from manager.storage.frames import WalIdentity
from manager.storage.keyring import KeyRing, Locked
from manager.storage.member import Member, Opening, open_member, write_raft_id
from manager.storage.reading import read_member
from manager.storage.snapshot_file import SnapshotRecord
from manager.storage.wal import SEGMENT_BYTES_MIN, Wal
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound
from shoal.security.unlock import make_unlock_key
from tests.unit.manager.storage.support import Crash, CrashingFiles, entries

CLUSTER = "cluster"
SMALL = SEGMENT_BYTES_MIN


def opening(**options) -> Opening:
    return Opening(CLUSTER, segment_bytes=SMALL, **options)


def opened(directory: Path, **options) -> Member:
    return open_member(directory, opening(**options))


def tree(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file: when it was changed, and its bytes."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_new_member_is_encrypted_and_comes_back(tmp_path):
    member = opened(tmp_path / "raft")
    assert member.is_new
    member.wal.append([Entry(1, 1, 1, b"the password")])
    member.wal.close()
    again = opened(tmp_path / "raft", create=False)
    assert not again.is_new
    assert again.wal.identity == member.wal.identity
    assert again.keys.current.id == member.keys.current.id
    assert again.recovered.entries == (Entry(1, 1, 1, b"the password"),)
    again.wal.close()
    for _, content in tree(tmp_path).values():
        assert b"password" not in content


def test_a_member_from_before_encryption_goes_on(tmp_path):
    directory = tmp_path / "raft"
    directory.mkdir()
    write_raft_id(directory, 77)
    wal = Wal.create(directory / "wal", WalIdentity(CLUSTER, 77), segment_bytes=SMALL)
    wal.append(entries(1, 3))
    wal.close()
    member = opened(directory)
    member.wal.append(entries(4, 5))
    assert member.wal.key_ids() == {member.keys.current.id}
    member.wal.close()
    again = opened(directory)
    assert again.recovered.entries == tuple(entries(1, 5))
    again.wal.close()


def test_an_encrypted_log_without_its_keys_is_refused_and_no_keys_are_made(tmp_path):
    opened(tmp_path).wal.close()
    (tmp_path / "keys.json").unlink()
    with pytest.raises(FailedPrecondition, match=r"keys\.json is missing"):
        opened(tmp_path)
    assert not (tmp_path / "keys.json").exists()


def test_a_locked_member_needs_its_key(tmp_path):
    unlock_key = make_unlock_key()
    opened(tmp_path, unlock_key=unlock_key).wal.close()
    with pytest.raises(Locked, match="swarmctl unlock"):
        opened(tmp_path)
    with pytest.raises(InvalidArgument, match="not the one"):
        opened(tmp_path, unlock_key=make_unlock_key())
    opened(tmp_path, unlock_key=unlock_key).wal.close()


def test_what_is_refused(tmp_path):
    with pytest.raises(NotFound, match="no manager's log"):
        opened(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    member = opened(tmp_path / "raft")
    with pytest.raises(FailedPrecondition, match="another process"):
        opened(tmp_path / "raft")
    member.snapshots.save(1, 1, [])
    member.wal.close()
    shutil.rmtree(tmp_path / "raft" / "wal")
    with pytest.raises(NotFound, match="no log"):
        opened(tmp_path / "raft", create=False)
    with pytest.raises(FailedPrecondition, match="the log beside it is gone"):
        opened(tmp_path / "raft")
    (tmp_path / "raft" / "raft_id").write_text("x")
    shutil.rmtree(tmp_path / "raft" / "snapshots")
    with pytest.raises(FailedPrecondition, match="raft_id: damaged"):
        opened(tmp_path / "raft")


def test_a_crash_while_it_begins_never_loses_a_key_that_a_log_needs(tmp_path):
    for at in range(60):
        directory = tmp_path / str(at)
        try:
            opened(directory, files=CrashingFiles(at)).wal.close()
        except Crash:
            member = opened(directory)
            member.wal.append(entries(1, 1))
            member.wal.close()
            again = opened(directory)
            assert again.recovered.last_index == 1
            again.wal.close()
        else:
            assert at > 10
            return
    pytest.fail("never finished")


# --- reading a stopped member


def test_a_stopped_member_is_read_and_not_changed(tmp_path):
    member = opened(tmp_path)
    member.wal.append(entries(1, 60, size=100), HardState(1, 2, 50))
    member.snapshots.save(40, 1, [SnapshotRecord(1, b"x")], metadata=b"m")
    member.wal.append(mark=SnapshotMark(40, 1))
    member.wal.append(entries(61, 62))
    with pytest.raises(FailedPrecondition, match="stop it first"), read_member(tmp_path):
        pass
    member.wal.close()
    broken = tmp_path / "snapshots" / f"{1:016x}-{39:016x}.snap"
    broken.write_bytes(b"broken")
    path = sorted((tmp_path / "wal").glob("*.wal"))[-1]
    content = path.read_bytes()
    used = len(content.rstrip(b"\0"))
    path.write_bytes(content[: used - 20] + bytes(len(content) - used + 20))
    before = tree(tmp_path)
    with read_member(tmp_path) as stopped:
        recovered = stopped.recovered()
        assert recovered.last_index == 60
        views = list(stopped.segments())
        assert [view.is_torn for view in views] == [False] * (len(views) - 1) + [True]
        snapshot = stopped.snapshot(recovered)
        assert (snapshot.index, snapshot.metadata) == (40, b"m")
        assert list(snapshot.records()) == [SnapshotRecord(1, b"x")]
        with pytest.raises(FailedPrecondition, match="another process"):
            opened(tmp_path)
        with read_member(tmp_path) as second:
            assert second.recovered() == recovered
    assert tree(tmp_path) == before
    opened(tmp_path).wal.close()


def test_a_broken_snapshot_stays_where_it_is(tmp_path):
    member = opened(tmp_path)
    member.wal.append(entries(1, 9), HardState(1, 2, 9))
    member.snapshots.save(4, 1, [SnapshotRecord(1, b"older")])
    newest = member.snapshots.save(8, 1, [SnapshotRecord(1, b"newer")])
    member.wal.append(mark=SnapshotMark(8, 1))
    member.wal.close()
    newest.path.write_bytes(newest.path.read_bytes()[:-3])
    before = tree(tmp_path)
    with read_member(tmp_path) as stopped:
        assert stopped.snapshot(stopped.recovered()).index == 4
    assert tree(tmp_path) == before


def test_reading_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(NotFound, match="wrong --state-dir"), read_member(tmp_path):
        pass
    unlock_key = make_unlock_key()
    member = opened(tmp_path, unlock_key=unlock_key)
    member.wal.append(entries(1, 2))
    member.wal.close()
    with pytest.raises(Locked), read_member(tmp_path):
        pass
    with read_member(tmp_path, unlock_key=unlock_key) as stopped:
        assert stopped.recovered().last_index == 2
    (path,) = (tmp_path / "wal").glob("*.wal")
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    with (
        read_member(tmp_path, unlock_key=unlock_key) as stopped,
        pytest.raises(CorruptLog, match="offset"),
    ):
        stopped.recovered()


# --- the only member


def rebuild(state):
    """The data of what is committed, as one record each."""
    old = [] if state.snapshot is None else [record.data for record in state.snapshot.records()]
    records = [SnapshotRecord(1, data) for data in (*old, *(e.data for e in state.entries))]
    return NewState(records, f"only {state.raft_id}".encode())


def a_log(directory: Path, *, snapshot: bool, commit: int = 6, last: int = 9) -> int:
    member = opened(directory)
    for entry in entries(1, last, term=3):
        member.wal.append([entry], HardState(3, 99, min(commit, entry.index)))
    if snapshot:
        records = [SnapshotRecord(1, entry.data) for entry in entries(1, 4, term=3)]
        member.snapshots.save(4, 3, records, metadata=b"three of us")
        member.wal.append(mark=SnapshotMark(4, 3))
    member.wal.close()
    return member.wal.identity.raft_id


def check_forced(directory: Path, raft_id: int, *, last: int = 9) -> None:
    member = opened(directory, create=False)
    recovered = member.recovered
    assert recovered.mark == SnapshotMark(last, 3)
    snapshot = member.snapshots.load(recovered.mark)
    wanted = [SnapshotRecord(1, entry.data) for entry in entries(1, last, term=3)]
    assert list(snapshot.records()) == wanted
    assert snapshot.metadata == f"only {raft_id}".encode()
    term = recovered.hard_state.term
    assert recovered.hard_state == HardState(term, raft_id, last)
    assert term > 3
    assert recovered.entries_after(last) == ()
    assert len(list((directory / "snapshots").glob("*.snap"))) == 1
    member.wal.append(entries(recovered.last_index + 1, recovered.last_index + 1, term=term))
    member.wal.close()


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_forced_member_keeps_its_whole_log(tmp_path, snapshot):
    raft_id = a_log(tmp_path, snapshot=snapshot)
    forced = force_new_cluster(tmp_path, opening(), rebuild)
    assert (forced.raft_id, forced.index, forced.term, forced.adopted) == (raft_id, 9, 4, 3)
    check_forced(tmp_path, raft_id)


def test_forcing_again_changes_no_state(tmp_path):
    raft_id = a_log(tmp_path, snapshot=True)
    force_new_cluster(tmp_path, opening(), rebuild)
    again = force_new_cluster(tmp_path, opening(), rebuild)
    assert (again.index, again.term, again.adopted) == (9, 5, 0)
    check_forced(tmp_path, raft_id)


def test_a_snapshot_of_the_last_committed_entry_gets_the_new_membership(tmp_path):
    raft_id = a_log(tmp_path, snapshot=True, commit=4, last=4)
    assert force_new_cluster(tmp_path, opening(), rebuild).adopted == 0
    check_forced(tmp_path, raft_id, last=4)


def test_the_log_of_a_manager_alone_is_committed_whole(tmp_path):
    member = opened(tmp_path)
    member.wal.append(entries(1, 5, term=3))
    member.wal.close()
    forced = force_new_cluster(tmp_path, opening(), rebuild)
    assert (forced.index, forced.adopted) == (5, 0)
    check_forced(tmp_path, forced.raft_id, last=5)


def test_forcing_refuses_an_empty_or_running_member(tmp_path):
    with pytest.raises(NotFound):
        force_new_cluster(tmp_path / "none", opening(), rebuild)
    member = opened(tmp_path)
    with pytest.raises(FailedPrecondition, match="another process"):
        force_new_cluster(tmp_path, opening(), rebuild)
    member.wal.append(entries(1, 3), HardState(1, 1, 0))
    member.wal.close()
    with pytest.raises(FailedPrecondition, match="nothing was ever committed"):
        force_new_cluster(tmp_path, opening(), rebuild)


def test_a_crash_at_any_operation_while_forcing_can_be_repeated(tmp_path):
    source = tmp_path / "source"
    raft_id = a_log(source, snapshot=True)
    for at in range(80):
        directory = tmp_path / str(at)
        shutil.copytree(source, directory)
        try:
            force_new_cluster(directory, opening(files=CrashingFiles(at)), rebuild)
        except Crash:
            crashed = True
        else:
            crashed = False
        # In between it still opens, and nothing that was committed is lost.
        member = opened(directory, create=False)
        snapshot = member.snapshots.load(member.recovered.mark)
        held = [record.data for record in snapshot.records()]
        held += [entry.data for entry in member.recovered.entries_after(snapshot.index)]
        assert held[:6] == [entry.data for entry in entries(1, 6, term=3)]
        member.wal.close()
        if crashed:
            force_new_cluster(directory, opening(), rebuild)
        check_forced(directory, raft_id)
        if not crashed:
            assert at > 8
            return
    pytest.fail("never finished")


def test_the_ring_of_a_member_is_its_own_file(tmp_path):
    member = opened(tmp_path)
    member.keys.rotate_data_key()
    member.wal.close()
    ring = KeyRing.open(tmp_path / "keys.json", CLUSTER)
    assert ring.current.id == member.keys.current.id
