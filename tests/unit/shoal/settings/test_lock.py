"""`lock.json`: sealed by the unlock key, whole after any crash, refused when it is not right."""

from __future__ import annotations

import base64
import os
import random
from pathlib import Path

import pytest

from shoal.errors import FailedPrecondition, PermissionDenied, SwarmError
from shoal.security.lock import LockKey, NodeLock
from shoal.security.unlock import Locked, UnlockKey, make_unlock_key
from shoal.settings.lock import read_lock_file, write_lock_file

GOLDEN = Path(__file__).parents[3] / "golden" / "lock"


class PowerCut(BaseException):
    """Nothing runs after it."""


def a_lock(unlock_key: UnlockKey | None) -> NodeLock:
    return NodeLock(7, unlock_key, (LockKey.make(), LockKey.make()))


def test_a_sealed_lock_opens_with_its_key_only(tmp_path):
    path, key = tmp_path / "lock.json", make_unlock_key()
    assert read_lock_file(path) is None
    lock = a_lock(key)
    write_lock_file(path, lock)
    file = read_lock_file(path)
    assert file is not None
    assert file.is_sealed
    assert file.open(key) == lock
    with pytest.raises(Locked, match='use "swarmctl unlock"'):
        file.open()
    wrong = make_unlock_key()
    with pytest.raises(PermissionDenied, match="invalid key provided") as refusal:
        file.open(wrong)
    assert wrong.render() not in str(refusal.value)
    assert path.stat().st_mode & 0o777 == 0o600
    raw = path.read_bytes()
    for secret in (key.secret, *(one.secret for one in lock.keys)):
        for shown in (secret, secret.hex().encode(), base64.b64encode(secret)):
            assert shown not in raw
    write_lock_file(path, lock)
    assert path.read_bytes() != raw, "another salt"


def test_an_open_lock_needs_no_key(tmp_path):
    path = tmp_path / "lock.json"
    for lock in (a_lock(None), NodeLock(9)):
        write_lock_file(path, lock)
        file = read_lock_file(path)
        assert file is not None
        assert not file.is_sealed
        assert file.open() == file.open(make_unlock_key()) == lock


@pytest.mark.parametrize("sealed", [False, True])
def test_every_flipped_bit_and_cut_is_noticed(tmp_path, sealed: bool):
    path = tmp_path / "lock.json"
    write_lock_file(path, a_lock(make_unlock_key() if sealed else None))
    raw, chosen = path.read_bytes(), random.Random(5)
    for offset in range(len(raw)):
        changed = bytearray(raw)
        changed[offset] ^= 1 << chosen.randrange(8)
        for content in (bytes(changed), raw[:offset]):
            path.write_bytes(content)
            with pytest.raises(SwarmError, match=r"lock\.json: (damaged|format)"):
                read_lock_file(path)


def test_what_is_refused(tmp_path):
    path = tmp_path / "lock.json"
    path.write_text('{"version":2}')
    path.chmod(0o600)
    with pytest.raises(FailedPrecondition, match="run the newer one"):
        read_lock_file(path)
    path.chmod(0o640)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        read_lock_file(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        read_lock_file(path)


@pytest.mark.parametrize("step", range(8))
def test_a_power_cut_leaves_the_old_lock_or_the_new_one(tmp_path, monkeypatch, step: int):
    path, old_key, new_key = tmp_path / "lock.json", make_unlock_key(), make_unlock_key()
    old, new = a_lock(old_key), a_lock(new_key)
    write_lock_file(path, old)
    left = iter(range(step))

    def dying(real):
        def call(*args, **kwargs):
            if next(left, None) is None:
                raise PowerCut
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((os, "open"), (os, "fsync"), (Path, "rename")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        try:
            write_lock_file(path, new)
            finished = True
        except PowerCut:
            finished = False
    file = read_lock_file(path)
    assert file is not None
    try:
        found = file.open(old_key)
    except PermissionDenied:
        found = file.open(new_key)
    assert found == new if finished else found in (old, new)
    write_lock_file(path, old)


def test_the_golden_files_are_read(tmp_path):
    """Keys: bytes 32 to 63 and 64 to 95; the unlock key is the bytes 0 to 31."""
    lock_keys = (LockKey(bytes(range(32, 64))), LockKey(bytes(range(64, 96))))
    for name, unlock_key in (("sealed", UnlockKey(bytes(range(32)))), ("open", None)):
        path = tmp_path / f"{name}.json"
        path.write_bytes((GOLDEN / path.name).read_bytes())
        path.chmod(0o600)
        file = read_lock_file(path)
        assert file is not None
        assert file.open(unlock_key) == NodeLock(258, unlock_key, lock_keys)
