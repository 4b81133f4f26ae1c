"""The manager process follows the certificate, and its log goes with it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from shoal.clock import SystemClock
from shoal.errors import FailedPrecondition, NotFound
from shoal.security.roles import Role
from shoal.settings.paths import NodePaths
from swarmd.children import MANAGER, Child
from swarmd.forcing import force_new_cluster_blocking
from swarmd.node import LocalNode, Membership
from swarmd.roles import RoleSwitch
from tests.unit.shoal.security.support import a_node
from tests.unit.swarmd.test_node import CONFIG, MANAGER_IDENTITY, ROOT

WORKER_IDENTITY = a_node(ROOT, Role.WORKER)


@pytest.fixture
def node(tmp_path) -> LocalNode:
    (tmp_path / "state").mkdir()
    return LocalNode(NodePaths(tmp_path / "state", tmp_path / "run"), SystemClock())


def a_log(paths: NodePaths) -> None:
    for path in (paths.raft, paths.raft_removed):
        (path / "wal").mkdir(parents=True)


async def test_the_process_is_started_and_stopped_with_the_role(node, tmp_path):
    child = Child(MANAGER, lambda: ["sleep", "60"], tmp_path / "manager.pid")
    running = asyncio.create_task(child.run())
    switch = RoleSwitch(node, child)
    try:
        node.become_blocking(WORKER_IDENTITY, CONFIG)
        assert not await switch.follow()
        assert not child.wanted
        node.renew_blocking(WORKER_IDENTITY, MANAGER_IDENTITY)
        assert await switch.follow()
        assert child.wanted
        assert not await switch.follow()
        a_log(node.paths)
        node.renew_blocking(MANAGER_IDENTITY, WORKER_IDENTITY)
        node.changing = True  # a leave is under way, and does it itself
        assert not await switch.follow()
        assert child.wanted
        node.changing = False
        assert await switch.follow()
        assert not child.wanted
        assert child.pid is None
        assert not node.paths.raft.exists()
        assert not node.paths.raft_removed.exists()
    finally:
        await child.stop()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def test_only_a_worker_gives_up_its_log(node, tmp_path):
    switch = RoleSwitch(node, Child(MANAGER, list, tmp_path / "manager.pid"))
    node.become_blocking(MANAGER_IDENTITY, CONFIG)
    a_log(node.paths)
    switch.remove_log_blocking()
    assert node.paths.raft.exists()
    node.membership = Membership(error="the identity cannot be read")
    switch.remove_log_blocking()
    assert node.paths.raft.exists()


def test_only_a_manager_with_a_log_is_forced(node):
    with pytest.raises(FailedPrecondition, match="is not a manager"):
        force_new_cluster_blocking(node.paths, Membership())
    with pytest.raises(FailedPrecondition, match="is not a manager"):
        force_new_cluster_blocking(node.paths, Membership(WORKER_IDENTITY, CONFIG))
    with pytest.raises(NotFound):
        force_new_cluster_blocking(node.paths, Membership(MANAGER_IDENTITY, CONFIG))
