"""Lock keys: which of them is in force, and that one step is never skipped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.security.lock import (
    KEYS_MAX,
    LockKey,
    LockKeys,
    NodeLock,
    decode_lock_keys,
    encode_lock_keys,
    protect,
    unprotect,
)
from shoal.security.unlock import Locked, UnlockKey, make_unlock_key

A, B = make_unlock_key(), make_unlock_key()


def test_locking_rotating_and_opening_step_by_step():
    first, second = LockKey.make(), LockKey.make()
    lock = NodeLock().changed(A, 5, first)
    assert (lock.is_locked, lock.is_settled, lock.lock_keys) == (True, True, LockKeys(first))
    rotated = lock.changed(B, 9, second)
    assert rotated.lock_keys == LockKeys(second, (first,))
    assert not rotated.is_settled
    assert rotated.settled() == NodeLock(9, B, (second,))
    opened = rotated.changed(None, 12, LockKey.make())
    assert opened.lock_keys == LockKeys(None, (second, first))
    assert (opened.is_locked, opened.is_settled) == (False, False)
    assert opened.settled() == NodeLock(12, None, ())
    again = opened.changed(A, 13, third := LockKey.make())
    assert again.lock_keys == LockKeys(third, (second, first)), "what was not settled still opens"


def test_a_row_of_before_changes_nothing():
    lock = NodeLock().changed(B, 9, LockKey.make())
    assert lock.changed(A, 8, LockKey.make()) is lock
    assert lock.changed(None, 8, LockKey.make()) is lock
    assert lock.changed(B, 20, LockKey.make()) is lock
    opened = lock.changed(None, 10, LockKey.make()).settled()
    assert opened.changed(B, 9, LockKey.make()) is opened, "also when it is open"


steps = st.lists(st.tuples(st.sampled_from([None, A, B]), st.booleans()), max_size=40)


@given(steps)
def test_no_key_that_something_may_need_is_ever_lost(wishes: list[tuple[UnlockKey | None, bool]]):
    """What is written uses the current key of its time; settling writes everything anew."""
    lock, needed = NodeLock(), set()
    for since, (wish, settles) in enumerate(wishes, 1):
        lock = lock.changed(wish, since, LockKey.make())
        if lock.lock_keys.current is not None:
            needed.add(lock.lock_keys.current)
        assert needed <= set(lock.keys)
        assert len(lock.keys) <= KEYS_MAX
        assert lock.is_locked == (lock.lock_keys.current is not None)
        if settles:
            lock = lock.settled()
            assert lock.is_settled
            needed = set(lock.lock_keys.all)


def test_lock_keys_travel_whole():
    keys = tuple(LockKey.make() for _ in range(3))
    for given_keys in (
        LockKeys(),
        LockKeys(keys[0]),
        LockKeys(keys[0], keys[1:]),
        LockKeys(None, keys),
    ):
        assert decode_lock_keys(encode_lock_keys(given_keys)) == given_keys
    assert decode_lock_keys(b"") == LockKeys()


@pytest.mark.parametrize(
    "data", [b"{}", b"\xff", b"[]", b'{"current":"AAAA","former":[]}', encode_lock_keys(
        LockKeys(None, tuple(LockKey.make() for _ in range(KEYS_MAX + 1)))
    )],
)  # fmt: skip
def test_what_is_not_lock_keys_is_refused(data: bytes):
    with pytest.raises(InvalidArgument, match="lock keys"):
        decode_lock_keys(data)


def test_what_is_protected_opens_in_its_place_only():
    key, other = LockKey.make(), LockKey.make()
    assert protect(b"plain", b"here", None) == b"plain"
    assert unprotect(b"plain", b"here", LockKeys(), name="f") == b"plain"
    sealed = protect(b"plain", b"here", key)
    assert b"plain" not in sealed
    assert sealed != protect(b"plain", b"here", key)
    assert unprotect(sealed, b"here", LockKeys(other, (key,)), name="f") == b"plain"
    with pytest.raises(Locked):
        unprotect(sealed, b"here", LockKeys(), name="f")
    for wrong in (sealed[:-1], sealed[:15], sealed[:12], sealed[:-1] + bytes([sealed[-1] ^ 1])):
        with pytest.raises(FailedPrecondition, match="f: not sealed"):
            unprotect(wrong, b"here", LockKeys(key), name="f")
    with pytest.raises(FailedPrecondition):
        unprotect(sealed, b"there", LockKeys(key), name="f")


def test_nothing_secret_is_in_a_repr():
    lock = NodeLock(1, A, (LockKey.make(),))
    shown = f"{lock!r} {lock.lock_keys!r} {lock.keys[0]!r} {A!r}"
    for secret in (A.secret, lock.keys[0].secret):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
