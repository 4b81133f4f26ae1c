"""The identity is the commit point of a membership, whatever moment the machine goes down at."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from manager.storage.backup import Manifest, Restoring, restore, write_backup
from manager.storage.member import Opening, open_member
from manager.storage.snapshot_file import SnapshotRecord
from manager.storage.wal import SEGMENT_BYTES_MIN
from shoal.errors import FailedPrecondition
from shoal.security.roles import Role
from shoal.security.root import RootCA
from shoal.settings.node import NodeConfig
from shoal.settings.paths import NodePaths
from swarmd.children import MANAGER, WORKER
from swarmd.node import LocalNode
from tests.unit.shoal.security.support import DAY_NS, NOW_NS, FixedClock, a_node

ROOT = RootCA.create(now_ns=NOW_NS)
MANAGER_IDENTITY = a_node(ROOT, Role.MANAGER)
WORKER_IDENTITY = a_node(ROOT, Role.WORKER)
CONFIG = NodeConfig(
    advertise_address="192.0.2.1:2377",
    listen_address="0.0.0.0:2377",
    data_path_address="192.0.2.1",
    managers=("192.0.2.2:2377",),
)
LEFTOVERS = ("node.json", "bootstrap.entry", "raft", "identity")


class PowerCut(BaseException):
    """Nothing runs after it."""


def a_local_node(state: Path, now_ns: int = NOW_NS) -> LocalNode:
    node = LocalNode(NodePaths(state=state, run=state / "run"), FixedClock(now_ns))
    node.load_blocking()
    return node


def cut_power_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Every change on disk goes through one of these; the `step`-th does not happen."""
    left = step

    def counted(real):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise PowerCut
            return real(*args, **kwargs)

        return call

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.parametrize("step", range(30))
def test_a_power_cut_leaves_all_of_a_cluster_or_nothing(tmp_path, monkeypatch, step: int):
    node = a_local_node(tmp_path)
    with monkeypatch.context() as patch:
        cut_power_at(patch, step)
        with contextlib.suppress(PowerCut):
            node.become_blocking(MANAGER_IDENTITY, CONFIG, bootstrap=b"entry")
    after = a_local_node(tmp_path)
    if after.membership.is_member:
        assert after.error == ""
        assert after.membership.identity == MANAGER_IDENTITY
        assert after.membership.config == CONFIG
        assert node.paths.bootstrap.read_bytes() == b"entry"
    else:
        assert not [name for name in LEFTOVERS[:3] if (tmp_path / name).exists()]


def test_a_power_cut_while_restoring_leaves_all_of_a_cluster_or_nothing(tmp_path, monkeypatch):
    source = tmp_path / "backup"
    write_backup(source, Manifest("c" * 25, 9, 3, 1), [SnapshotRecord(1, b"object")])
    outcomes = set()
    for step in range(200):
        state = tmp_path / str(step)
        state.mkdir()
        node = a_local_node(state)
        restoring = Restoring(segment_bytes=SEGMENT_BYTES_MIN)
        with monkeypatch.context() as patch:
            cut_power_at(patch, step)
            try:
                node.become_blocking(
                    MANAGER_IDENTITY,
                    CONFIG,
                    make_log=lambda keys, node=node, how=restoring: restore(
                        source, node.paths.raft, how
                    ),
                )
                ended = True
            except PowerCut:
                ended = False
        after = a_local_node(state)
        outcomes.add((ended, after.membership.is_member))
        if not after.membership.is_member:
            left = {path.name for path in state.iterdir()}
            assert not left & {*LEFTOVERS[:3], "raft.restoring"}
            continue
        assert (after.error, after.membership.identity) == ("", MANAGER_IDENTITY)
        member = open_member(node.paths.raft, Opening("c" * 25, create=False))
        kept = member.snapshots.load(member.wal.mark)
        assert [record.data for record in kept.records()] == [b"object"]
        member.wal.close()
        if ended:
            break
    assert outcomes == {(False, False), (False, True), (True, True)}


def test_the_power_cuts_reach_both_ends(tmp_path, monkeypatch):
    """Otherwise the test above would prove one half only."""
    outcomes = set()
    for step in range(30):
        state = tmp_path / str(step)
        state.mkdir()
        node = a_local_node(state)
        with monkeypatch.context() as patch:
            cut_power_at(patch, step)
            try:
                node.become_blocking(MANAGER_IDENTITY, CONFIG, bootstrap=b"entry")
                ended = "ended"
            except PowerCut:
                ended = "cut"
        outcomes.add((ended, a_local_node(state).membership.is_member))
    assert outcomes == {("cut", False), ("cut", True), ("ended", True)}


@pytest.mark.parametrize("step", range(6))
def test_a_power_cut_while_leaving_leaves_it_a_member_or_not(tmp_path, monkeypatch, step: int):
    node = a_local_node(tmp_path)
    node.become_blocking(MANAGER_IDENTITY, CONFIG)
    node.paths.raft.mkdir()
    with monkeypatch.context() as patch:
        cut_power_at(patch, step)
        with contextlib.suppress(PowerCut):
            node.forget_blocking()
    after = a_local_node(tmp_path)
    assert after.error == ""
    if after.membership.is_member:
        assert node.paths.raft.exists()
    else:
        assert not [name for name in LEFTOVERS if (tmp_path / name).exists()]


def test_states(tmp_path):
    node = a_local_node(tmp_path)
    assert (node.state, node.error) == ("inactive", "")
    node.changing = True
    assert node.state == "pending"
    node.changing = False
    node.become_blocking(WORKER_IDENTITY, CONFIG)
    assert a_local_node(tmp_path).state == "active"
    late = a_local_node(tmp_path, NOW_NS + 91 * DAY_NS)
    assert late.state == "error"
    assert "expired" in late.error


def test_a_member_without_its_configuration_says_so(tmp_path):
    node = a_local_node(tmp_path)
    node.become_blocking(WORKER_IDENTITY, CONFIG)
    node.paths.node_config.unlink()
    after = a_local_node(tmp_path)
    assert after.state == "error"
    assert str(node.paths.node_config) in after.error
    assert after.membership.is_member
    node.paths.node_config.write_text("{")
    assert "damaged" in a_local_node(tmp_path).error


def test_who_may_be_asked_about_the_cluster(tmp_path):
    node = a_local_node(tmp_path)
    assert node.refusal(WORKER) is None
    outside = node.refusal(MANAGER)
    assert isinstance(outside, FailedPrecondition)
    assert "swarmctl init" in outside.message
    node.become_blocking(WORKER_IDENTITY, CONFIG)
    on_worker = node.refusal(MANAGER)
    assert isinstance(on_worker, FailedPrecondition)
    assert "known managers: 192.0.2.2:2377" in on_worker.message
    node.become_blocking(MANAGER_IDENTITY, CONFIG)
    assert node.refusal(MANAGER) is None
    assert node.membership.managers == ("192.0.2.1:2377", "192.0.2.2:2377")
