"""The data keys of a member: durable before use, locked or not, whole after any crash."""

from __future__ import annotations

import base64
import errno
import random
from pathlib import Path

import pytest

from manager.storage.errors import StorageFailed
from manager.storage.keyring import KEYS_MAX, ROTATE_AFTER_ENTRIES, KeyRing, Locked
from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SwarmError,
)
from shoal.security.unlock import UnlockKey, make_unlock_key
from tests.unit.manager.storage.support import Crash, CrashingFiles, FaultyFiles

CLUSTER = "cluster"


def create(tmp_path: Path, unlock_key: UnlockKey | None = None, **options) -> KeyRing:
    return KeyRing.create(tmp_path / "keys.json", CLUSTER, unlock_key=unlock_key, **options)


def reopen(tmp_path: Path, unlock_key: UnlockKey | None = None, **options) -> KeyRing:
    return KeyRing.open(tmp_path / "keys.json", CLUSTER, unlock_key=unlock_key, **options)


def content(ring: KeyRing) -> tuple[bytes, dict[bytes, bytes]]:
    ids = ring.retired | {ring.current.id}
    return ring.current.id, {key_id: ring.get(key_id).secret for key_id in ids}


def test_keys_come_back(tmp_path):
    ring = create(tmp_path)
    first = ring.current.id
    second = ring.rotate_data_key(since=10)
    third = ring.rotate_data_key(since=20)
    assert (ring.current.id, ring.retired) == (third, {first, second})
    assert content(reopen(tmp_path)) == content(ring)
    assert len(set(content(ring)[1].values())) == 3
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    ring.drop([first, third])
    assert (ring.current.id, ring.retired) == (third, {second})
    assert content(reopen(tmp_path)) == content(ring)
    with pytest.raises(FailedPrecondition, match="is not in it"):
        reopen(tmp_path).get(first)


def test_a_locked_ring_opens_with_its_key_only(tmp_path):
    unlock_key = make_unlock_key()
    ring = create(tmp_path, unlock_key)
    assert ring.locks
    assert KeyRing.is_locked(tmp_path / "keys.json")
    with pytest.raises(Locked, match="the manager is locked: unlock it with `swarmctl unlock`"):
        reopen(tmp_path)
    wrong = make_unlock_key()
    with pytest.raises(InvalidArgument, match="unlock key: not the one") as refusal:
        reopen(tmp_path, wrong)
    assert wrong.render() not in str(refusal.value)
    assert content(reopen(tmp_path, unlock_key)) == content(ring)
    raw = (tmp_path / "keys.json").read_bytes()
    for secret in (ring.current.secret, unlock_key.secret):
        for shown in (secret, secret.hex().encode(), base64.b64encode(secret)):
            assert shown not in raw


def test_the_unlock_key_is_rotated_and_taken_off(tmp_path):
    ring = create(tmp_path)
    assert not ring.locks
    assert reopen(tmp_path, make_unlock_key()).locks is False, "a key that is not needed"
    first, second = make_unlock_key(), make_unlock_key()
    ring.rotate_kek(first)
    ring.rotate_data_key()
    ring.rotate_kek(second)
    with pytest.raises(InvalidArgument, match="not the one"):
        reopen(tmp_path, first)
    assert content(reopen(tmp_path, second)) == content(ring)
    ring.rotate_kek(None)
    assert not KeyRing.is_locked(tmp_path / "keys.json")
    assert content(reopen(tmp_path)) == content(ring)


def test_another_lock_seals_what_is_new_with_a_new_data_key(tmp_path):
    ring = create(tmp_path)
    first, second = make_unlock_key(), make_unlock_key()
    in_the_clear = ring.current.id
    assert not ring.lock_with(None, since=1)
    assert ring.lock_with(first, since=10)
    assert not ring.lock_with(first, since=11)
    locked = ring.current.id
    assert in_the_clear in ring.retired
    assert ring.lock_with(second, since=20)
    assert ring.retired == {in_the_clear, locked}
    with pytest.raises(InvalidArgument, match="not the one"):
        reopen(tmp_path, first)
    found = KeyRing.open(tmp_path / "keys.json", CLUSTER, unlock_key=first, former=(second,))
    assert content(found) == content(ring)
    assert not found.lock_with(second, since=20), "it knows which key opened it"
    before = ring.current.id
    assert ring.lock_with(None, since=30)
    assert (ring.locks, ring.current.id) == (False, before)
    assert content(reopen(tmp_path)) == content(ring)


def test_a_full_ring_can_be_locked(tmp_path):
    ring = create(tmp_path)
    for _ in range(KEYS_MAX - 1):
        ring.rotate_data_key()
    unlock_key = make_unlock_key()
    assert ring.lock_with(unlock_key, since=9)
    assert content(reopen(tmp_path, unlock_key)) == content(ring)


def test_each_write_of_a_locked_ring_has_another_salt(tmp_path):
    ring = create(tmp_path, make_unlock_key())
    written = set()
    for _ in range(5):
        written.add((tmp_path / "keys.json").read_bytes())
        ring.rotate_kek(ring._unlock_key)
    assert len(written) == 5


@pytest.mark.parametrize("locked", [False, True])
def test_every_flipped_bit_and_cut_is_noticed(tmp_path, locked):
    unlock_key = make_unlock_key() if locked else None
    create(tmp_path, unlock_key).rotate_data_key()
    path = tmp_path / "keys.json"
    raw = path.read_bytes()
    chosen = random.Random(3)
    for offset in range(len(raw)):
        changed = bytearray(raw)
        changed[offset] ^= 1 << chosen.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(SwarmError, match=r"keys\.json"):
            reopen(tmp_path, unlock_key)
        path.write_bytes(raw[:offset])
        with pytest.raises(FailedPrecondition, match="damaged"):
            reopen(tmp_path, unlock_key)
    path.write_bytes(raw + b" ")
    with pytest.raises(FailedPrecondition, match="damaged"):
        reopen(tmp_path, unlock_key)


def test_what_is_refused(tmp_path):
    with pytest.raises(NotFound, match="no data keys"):
        reopen(tmp_path)
    create(tmp_path)
    with pytest.raises(FailedPrecondition, match="exists already"):
        create(tmp_path)
    with pytest.raises(FailedPrecondition, match="wrong --state-dir"):
        KeyRing.open(tmp_path / "keys.json", "another")
    (tmp_path / "keys.json").chmod(0o640)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        reopen(tmp_path)


def test_keys_are_bounded_and_due_in_time(tmp_path):
    ring = create(tmp_path)
    assert not ring.is_due(ROTATE_AFTER_ENTRIES - 1)
    assert ring.is_due(ROTATE_AFTER_ENTRIES)
    ring.rotate_data_key(since=ROTATE_AFTER_ENTRIES)
    assert not reopen(tmp_path).is_due(ROTATE_AFTER_ENTRIES + 5)
    for _ in range(KEYS_MAX - 2):
        ring.rotate_data_key()
    before = content(ring)
    with pytest.raises(FailedPrecondition, match="wait for a snapshot"):
        ring.rotate_data_key()
    assert content(ring) == content(reopen(tmp_path)) == before


CHANGES = {
    "rotate": lambda ring, new: ring.rotate_data_key(),
    "drop": lambda ring, new: ring.drop(ring.retired),
    "lock": lambda ring, new: ring.rotate_kek(new),
    "open": lambda ring, new: ring.rotate_kek(None),
    "lock anew": lambda ring, new: ring.lock_with(new, since=7),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("locked", [False, True])
def test_a_crash_at_any_operation_leaves_the_old_ring_or_the_new_one(tmp_path, change, locked):
    old, new = make_unlock_key() if locked else None, make_unlock_key()
    for at in range(20):
        directory = tmp_path / str(at)
        directory.mkdir()
        create(directory, old).rotate_data_key()
        before = content(reopen(directory, old))
        ring = reopen(directory, old, files=CrashingFiles(at))
        try:
            CHANGES[change](ring, new)
        except Crash:
            crashed = True
        else:
            crashed = False
        key = next(key for key in (old, new, None) if opens(directory, key))
        found = content(reopen(directory, key))
        assert before[0] in found[1], "the key that sealed everything so far"
        assert set(found[1]) <= set(before[1]) | {found[0]}
        # And the next change works, whatever was left lying about.
        reopen(directory, key).rotate_data_key()
        if not crashed:
            assert found == content(ring)
            assert (found == before) == (change in ("lock", "open"))
            return
    pytest.fail("never finished")


def opens(directory: Path, key: UnlockKey | None) -> bool:
    try:
        reopen(directory, key)
    except (Locked, InvalidArgument):
        return False
    return True


def test_a_crash_while_it_is_made_leaves_nothing_or_all(tmp_path):
    for at in range(20):
        directory = tmp_path / str(at)
        directory.mkdir()
        try:
            create(directory, files=CrashingFiles(at))
        except Crash:
            if (directory / "keys.json").exists():
                reopen(directory)
            else:
                create(directory)
        else:
            return
    pytest.fail("never finished")


@pytest.mark.parametrize("call", ["create", "pwrite", "fsync", "rename"])
def test_a_failing_disk_changes_nothing_in_memory(tmp_path, call):
    files = FaultyFiles()
    ring = create(tmp_path, files=files)
    ring.rotate_data_key()
    before = content(ring)
    for number, kind in ((errno.EIO, StorageFailed), (errno.ENOSPC, ResourceExhausted)):
        files.fail = {call: number}
        for change in CHANGES.values():
            with pytest.raises(kind, match=r"keys\.json"):
                change(ring, make_unlock_key())
        assert (content(ring), ring.locks) == (before, False)
        assert files.open_fds == set()
    files.fail = {}
    ring.rotate_data_key()
    assert content(reopen(tmp_path)) == content(ring)


def test_nothing_secret_is_in_a_repr(tmp_path):
    unlock_key = make_unlock_key()
    ring = create(tmp_path, unlock_key)
    shown = f"{ring!r} {ring.current!r} {unlock_key!r} {unlock_key}"
    assert unlock_key.render() not in shown
    assert ring.current.secret.hex() not in shown
    assert repr(ring.current.secret) not in shown
