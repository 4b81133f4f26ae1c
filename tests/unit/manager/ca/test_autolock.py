"""The unlock key in the cluster's row: there when autolock is on, and only then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.ca.autolock import (
    LockWish,
    WantedLock,
    relocked,
    unlock_key_of,
    wanted_lock,
    with_unlock_key,
)
from shoal.errors import FailedPrecondition, InvalidArgument, SwarmError
from shoal.model.objects import Cluster
from shoal.model.specs import ClusterSpec
from shoal.model.types import EncryptionKey, Meta, Version
from shoal.security.unlock import make_unlock_key

OPEN = Cluster(id="c", unlock_keys=(EncryptionKey(subsystem="other", key=b"other"),))
WANTED = OPEN.replaced(spec=ClusterSpec(autolock_managers=True))
A, B = make_unlock_key(), make_unlock_key()


def test_turned_on_rotated_and_turned_off():
    locked = relocked(WANTED, LockWish(A))
    assert unlock_key_of(locked) == A
    assert relocked(locked, LockWish(B)) is locked, "other settings leave the key alone"
    rotated = relocked(locked, LockWish(B, rotate=True))
    assert unlock_key_of(rotated) == B
    assert relocked(rotated.replaced(spec=ClusterSpec()), LockWish(A)) == OPEN
    assert relocked(OPEN, LockWish(A)) is OPEN


def test_a_chosen_key_is_used_or_refused():
    assert unlock_key_of(relocked(WANTED, LockWish(A, given=True))) == A
    locked = with_unlock_key(WANTED, A)
    assert unlock_key_of(relocked(locked, LockWish(B, given=True, rotate=True))) == B
    for row in (OPEN, locked):
        with pytest.raises(InvalidArgument, match="unlock key: is chosen only"):
            relocked(row, LockWish(B, given=True))


def test_a_key_that_there_is_not_cannot_be_rotated():
    with pytest.raises(FailedPrecondition, match="cannot rotate because autolock is not turned on"):
        relocked(OPEN, LockWish(A, rotate=True))
    turned_off = with_unlock_key(WANTED, A).replaced(spec=ClusterSpec())
    with pytest.raises(FailedPrecondition, match="cannot rotate"):
        relocked(turned_off, LockWish(B, rotate=True))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=20))
def test_there_is_a_key_if_and_only_if_autolock_is_on(steps):
    cluster = OPEN
    for on, chosen, rotate in steps:
        wished = cluster.replaced(spec=ClusterSpec(autolock_managers=on))
        try:
            cluster = relocked(wished, LockWish(make_unlock_key(), given=chosen, rotate=rotate))
        except SwarmError:
            assert chosen or rotate
        assert (unlock_key_of(cluster) is not None) == cluster.spec.autolock_managers
        assert cluster.unlock_keys[0] == OPEN.unlock_keys[0], "those of others stay"


def at(cluster: Cluster, version: int) -> Cluster:
    return cluster.replaced(meta=Meta(version=Version(index=version)))


def test_managers_are_told_once_and_with_the_version_that_said_so_first():
    first = wanted_lock(at(OPEN, 4))
    assert first == WantedLock(None, 4)
    assert wanted_lock(at(OPEN, 9), first) is first
    locked = wanted_lock(at(with_unlock_key(WANTED, A), 10), first)
    assert locked == WantedLock(A, 10)
    assert wanted_lock(at(with_unlock_key(WANTED, A), 12), locked) is locked
    assert wanted_lock(at(with_unlock_key(WANTED, B), 13), locked) == WantedLock(B, 13)
