"""A lock that changes while the power goes: afterwards one unlock key opens all of the node."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from manager.ca.autolock import WantedLock
from manager.storage.keyring import KeyRing
from shoal.errors import InvariantViolation, PermissionDenied
from shoal.security.lock import BOOTSTRAP_PLACE, LOCKED_TEXT, unprotect
from shoal.security.roles import Role
from shoal.security.unlock import Locked, UnlockKey, make_unlock_key
from shoal.settings.lock import read_lock_file
from swarmd.children import MANAGER, WORKER, Child
from swarmd.node import LocalNode
from swarmd.process import PIPE_BYTES, ChildProcess
from tests.unit.shoal.security.support import a_node
from tests.unit.swarmd.test_node import (
    CONFIG,
    MANAGER_IDENTITY,
    ROOT,
    WORKER_IDENTITY,
    PowerCut,
    a_local_node,
    cut_power_at,
)

OLD, NEW = make_unlock_key(), make_unlock_key()
CLUSTER = "cluster"
STEPS_MAX = 60


def ring_path(node: LocalNode) -> Path:
    return node.paths.raft / "keys.json"


def a_manager(state: Path, unlock_key: UnlockKey | None) -> LocalNode:
    """A node with data keys, locked or not."""
    state.mkdir()
    node = a_local_node(state)
    node.become_blocking(MANAGER_IDENTITY, CONFIG, lock=WantedLock(unlock_key, 1))
    node.paths.raft.mkdir()
    KeyRing.create(ring_path(node), CLUSTER, unlock_key=node.lock.keys.current)
    return node


def open_ring(node: LocalNode) -> KeyRing:
    keys = node.lock.keys
    return KeyRing.open(ring_path(node), CLUSTER, unlock_key=keys.current, former=list(keys.former))


def follow(node: LocalNode, wanted: WantedLock) -> None:
    """What swarmd and its manager do, in their order."""
    node.relock_blocking(wanted)
    open_ring(node).lock_with(node.lock.keys.current, since=1)
    node.settle_blocking(node.lock.value)


def after_the_cut(state: Path, before: UnlockKey | None, after: UnlockKey | None) -> LocalNode:
    """The node as the next swarmd has it, opened with the first key that fits."""
    node = a_local_node(state)
    if not node.membership.locked:
        assert None in (before, after), "it must not be open"
        return node
    for key in (before, after):
        if key is not None:
            with contextlib.suppress(PermissionDenied):
                node.load_blocking(key)
                return node
    raise AssertionError("no key opens it")


CHANGES = {
    "locked": (None, OLD),
    "rotated": (OLD, NEW),
    "opened": (OLD, None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_power_cut_leaves_a_node_that_one_key_opens(tmp_path, monkeypatch, change: str):
    before, after = CHANGES[change]
    found = set()
    for step in range(STEPS_MAX):
        state = tmp_path / str(step)
        node = a_manager(state, before)
        with monkeypatch.context() as patch:
            cut_power_at(patch, step)
            try:
                follow(node, WantedLock(after, 5))
                finished = True
            except PowerCut:
                finished = False
        again = after_the_cut(state, before, after)
        assert again.membership.identity == MANAGER_IDENTITY
        open_ring(again)
        found.add(again.lock.value.unlock_key)
        # Whatever was half done is done by the next turn.
        follow(again, WantedLock(after, 5))
        assert again.lock.value.unlock_key == after
        assert again.lock.value.is_settled
        last = after_the_cut(state, after, after)
        assert last.membership.identity == MANAGER_IDENTITY
        assert open_ring(last).locks == (after is not None)
        if finished:
            break
    assert finished
    assert found == {before, after}, "both ends were reached"


def test_a_power_cut_while_a_worker_is_made_of_it_leaves_a_manager_or_a_worker(
    tmp_path, monkeypatch
):
    roles = set()
    for step in range(STEPS_MAX):
        state = tmp_path / str(step)
        node = a_manager(state, OLD)
        with monkeypatch.context() as patch:
            cut_power_at(patch, step)
            try:
                node.renew_blocking(node.membership.identity, WORKER_IDENTITY)
                finished = True
            except PowerCut:
                finished = False
        again = a_local_node(state)
        if again.membership.locked:
            again.load_blocking(OLD)
            assert again.membership.identity == MANAGER_IDENTITY
        else:
            assert again.membership.identity == WORKER_IDENTITY
            assert not again.paths.lock.exists()
        roles.add(again.membership.identity.peer.role)
        if finished:
            break
    assert finished
    assert roles == {Role.MANAGER, Role.WORKER}


def test_a_power_cut_while_a_locked_node_leaves(tmp_path, monkeypatch):
    for step in range(STEPS_MAX):
        state = tmp_path / str(step)
        node = a_manager(state, OLD)
        node.lock_again()
        with monkeypatch.context() as patch:
            cut_power_at(patch, step)
            try:
                node.forget_blocking()
                finished = True
            except PowerCut:
                finished = False
        again = a_local_node(state)
        assert again.error in ("", LOCKED_TEXT)
        if not again.membership.locked:
            assert not again.membership.is_member
            assert not again.paths.lock.exists()
        if finished:
            return
    pytest.fail("never finished")


def test_what_a_locked_node_says(tmp_path):
    node = a_manager(tmp_path / "state", OLD)
    assert (node.state, node.error, node.refusal(MANAGER)) == ("active", "", None)
    node = a_local_node(tmp_path / "state")
    assert (node.state, node.error) == ("locked", LOCKED_TEXT)
    assert node.membership.is_member
    assert not node.membership.is_manager
    assert isinstance(node.refusal(MANAGER), Locked)
    assert node.refusal(WORKER) is None
    assert node.lock.keys.all == ()
    with pytest.raises(PermissionDenied, match="invalid key"):
        node.load_blocking(NEW)
    assert node.state == "locked"
    node.load_blocking(OLD)
    assert node.state == "active"
    node.lock_again()
    assert (node.state, node.lock.keys.all) == ("locked", ())


def test_a_damaged_lock_is_an_error_and_not_an_open_node(tmp_path):
    node = a_manager(tmp_path / "state", OLD)
    node.paths.lock.write_text("{}")
    again = a_local_node(tmp_path / "state")
    assert again.state == "error"
    assert "lock.json: damaged" in again.error


def test_a_new_manager_is_locked_from_the_beginning(tmp_path):
    node = a_local_node(tmp_path)
    node.become_blocking(WORKER_IDENTITY, CONFIG, lock=None)
    assert not node.paths.lock.exists()
    assert node.renew_blocking(WORKER_IDENTITY, MANAGER_IDENTITY, WantedLock(OLD, 7))
    assert a_local_node(tmp_path).membership.locked
    renewed = a_node(ROOT, Role.MANAGER)
    assert node.renew_blocking(MANAGER_IDENTITY, renewed)
    again = a_local_node(tmp_path)
    assert again.membership.locked, "a renewed key is encrypted as well"
    again.load_blocking(OLD)
    assert again.membership.identity == renewed


def test_only_a_manager_is_locked(tmp_path):
    node = a_local_node(tmp_path)
    node.relock_blocking(WantedLock(OLD, 1))
    node.become_blocking(WORKER_IDENTITY, CONFIG)
    node.relock_blocking(WantedLock(OLD, 1))
    assert not node.paths.lock.exists()


def test_a_row_of_before_does_not_lock_it_again(tmp_path):
    node = a_manager(tmp_path / "state", OLD)
    follow(node, WantedLock(None, 9))
    again = a_local_node(tmp_path / "state")
    follow(again, WantedLock(OLD, 5))  # its manager has just started and lags behind
    assert again.lock.value.unlock_key is None
    file = read_lock_file(again.paths.lock)
    assert file is not None
    assert (file.since, file.keys) == (9, "")


def test_the_first_entry_of_a_locked_cluster_is_sealed(tmp_path):
    node = a_local_node(tmp_path)
    node.become_blocking(MANAGER_IDENTITY, CONFIG, lock=WantedLock(OLD, 0), bootstrap=b"root key")
    content = node.paths.bootstrap.read_bytes()
    assert b"root key" not in content
    assert unprotect(content, BOOTSTRAP_PLACE, node.lock.keys, name="b") == b"root key"


async def test_a_process_reads_what_swarmd_gives_it_and_then_the_end(tmp_path):
    out = tmp_path / "out"
    given = [b"first", b"second"]
    child = Child(
        "c", lambda: ["sh", "-c", f"cat >> {out}"], tmp_path / "pid", stdin=lambda: given.pop(0)
    )
    for _ in range(2):
        process = ChildProcess(child._command(), child._stdin())
        assert await process.wait() == 0
    assert out.read_bytes() == b"firstsecond"
    deaf = ChildProcess(["true"], b"x" * PIPE_BYTES)
    assert await deaf.wait() == 0
    with pytest.raises(InvariantViolation):
        ChildProcess(["true"], b"x" * (PIPE_BYTES + 1))
