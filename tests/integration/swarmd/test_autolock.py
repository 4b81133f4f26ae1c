"""Autolock with the real daemon and the real manager process; the worker is scripted."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from shoal.api.v1 import control_pb2, control_pb2_grpc, node_pb2
from shoal.errors import PermissionDenied
from shoal.security.keys import is_encrypted
from shoal.security.unlock import make_unlock_key, parse_unlock_key
from shoal.settings.lock import read_lock_file
from tests.integration.swarmd.conftest import Node
from tests.integration.swarmd.test_cluster import (
    TIMEOUT_S,
    cluster_of,
    info,
    init,
    refused,
    with_real_manager,
)

pytestmark = pytest.mark.root

LOCKED = (
    "FAILED_PRECONDITION Swarm is encrypted and needs to be unlocked before it can be used. "
    'Please use "swarmctl unlock" to unlock it.'
)


async def eventually(what: str, probe: Callable[[], object | Awaitable[object]]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        found = probe()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline_s, f"{what}: not in time"
        await asyncio.sleep(0.05)


async def served(node: Node) -> bool:
    try:
        await cluster_of(node)
    except grpc.aio.AioRpcError:
        return False
    return True


async def unlock(node: Node, key: str) -> None:
    await node.control.Unlock(node_pb2.UnlockRequest(unlock_key=key), timeout=TIMEOUT_S)


async def set_autolock(node: Node, *, on: bool, rotate: bool = False, key: str = "") -> None:
    cluster = await cluster_of(node)
    cluster.spec.autolock_managers = on
    await control_pb2_grpc.ControlStub(node.channel).UpdateCluster(
        control_pb2.UpdateClusterRequest(
            version=cluster.meta.version, spec=cluster.spec, rotate_unlock_key=rotate,
            unlock_key=key,
        ),
        timeout=TIMEOUT_S,
    )  # fmt: skip


async def unlock_key(node: Node) -> str:
    stub = control_pb2_grpc.ControlStub(node.channel)
    request = control_pb2.GetUnlockKeyRequest()
    return (await stub.GetUnlockKey(request, timeout=TIMEOUT_S)).unlock_key


def key_file(node: Node) -> bytes:
    return (node.paths.identity / "identity" / "node.key").read_bytes()


def ring_is_locked(node: Node) -> bool:
    return bool(json.loads((node.paths.raft / "keys.json").read_bytes())["salt"])


def is_locked(node: Node) -> bool:
    """On the disk, in all three places, and no former lock key is left."""
    file = read_lock_file(node.paths.lock)
    sealed = file is not None and file.is_sealed and len(file.keys) == 2 * (32 + 16)
    return sealed and is_encrypted(key_file(node)) and ring_is_locked(node)


def opens(node: Node, key: str) -> bool:
    """Whether the node is locked, and with that key."""
    file = read_lock_file(node.paths.lock)
    if file is None or not is_locked(node):
        return False
    try:
        return len(file.open(parse_unlock_key(key)).keys) == 1
    except PermissionDenied:
        return False


def is_open(node: Node) -> bool:
    file = read_lock_file(node.paths.lock)
    keys = file is not None and file.keys
    return not keys and not is_encrypted(key_file(node)) and not ring_is_locked(node)


def argv_and_environment(pid: int) -> bytes:
    process = Path(f"/proc/{pid}")
    return (process / "cmdline").read_bytes() + (process / "environ").read_bytes()


@pytest.fixture
def others() -> Iterator[Callable[[], Node]]:
    """Makes further nodes."""
    made: list[Path] = []

    def make() -> Node:
        made.append(Path(tempfile.mkdtemp(prefix="shoal-t-", dir="/tmp")))
        return Node(made[-1])

    yield make
    for directory in made:
        shutil.rmtree(directory)


async def test_locked_after_a_restart_until_the_key_is_given(node: Node):
    async with node.running(command=with_real_manager):
        await init(node)
        plain_key = key_file(node)
        data_keys = json.loads((node.paths.raft / "keys.json").read_bytes())["keys"]
        assert await unlock_key(node) == ""
        assert not node.paths.lock.exists()
        await set_autolock(node, on=True)
        key = await unlock_key(node)
        assert "unlock_keys" not in str(await cluster_of(node))
        await eventually("it is locked", lambda: is_locked(node))
        assert (await info(node)).state == "active", "until the next start"
        # What lay on the disk in the clear is replaced: the data key and, soon, the node's key.
        ring = json.loads((node.paths.raft / "keys.json").read_bytes())
        assert ring["current"] not in [each["id"] for each in data_keys]
        await eventually("the worker knows", lambda: "reload identity" in node.calls("worker"))
        pid = (await info(node)).processes["manager"]
        os.kill(pid, signal.SIGKILL)
        await eventually("the manager is back by itself", lambda: served(node))
    assert plain_key not in key_file(node)

    async with node.running(command=with_real_manager):
        now = await info(node)
        assert now.state == "locked"
        assert "swarmctl unlock" in now.error
        assert set(now.processes) == {"swarmd", "worker"}
        assert await refused(cluster_of(node)) == LOCKED
        assert await refused(init(node)) != LOCKED
        leave = node.control.Leave(node_pb2.LeaveRequest(), timeout=TIMEOUT_S)
        assert (await refused(leave)).startswith(LOCKED)
        wrong = make_unlock_key().render()
        text = await refused(unlock(node, wrong))
        assert text.startswith("PERMISSION_DENIED swarm could not be unlocked: invalid key")
        assert wrong not in text
        assert "INVALID_ARGUMENT unlock key: must start with" in await refused(unlock(node, "x"))
        assert (await info(node)).state == "locked"

        await unlock(node, f" {key}\n")
        await eventually("it serves", lambda: served(node))
        now = await info(node)
        assert now.state == "active"
        assert node.calls("worker").count("reload member") == 2
        for pid in now.processes.values():
            shown = argv_and_environment(pid)
            assert key.encode() not in shown
            assert b"SWMKEY" not in shown
        assert await refused(unlock(node, key)) == "FAILED_PRECONDITION swarm is not locked"
        assert is_locked(node)
        assert (await cluster_of(node)).spec.autolock_managers
        assert await unlock_key(node) == key


async def test_the_key_is_rotated_and_taken_away(node: Node):
    async with node.running(command=with_real_manager):
        made = await init(node, autolock=True)
        first = made.unlock_key
        assert await unlock_key(node) == first
        assert is_locked(node), "from the beginning"
        second = make_unlock_key().render()
        await set_autolock(node, on=True, rotate=True, key=second)
        assert await unlock_key(node) == second
        await eventually("the new one is needed", lambda: opens(node, second))
        assert not opens(node, first)
    async with node.running(command=with_real_manager):
        assert "invalid key" in await refused(unlock(node, first))
        await unlock(node, second)
        await eventually("it serves", lambda: served(node))
        assert "is chosen only" in await refused(set_autolock(node, on=True, key=first))
        await set_autolock(node, on=False)
        await eventually("it is open", lambda: is_open(node))
        assert await unlock_key(node) == ""
        refusal = await refused(set_autolock(node, on=False, rotate=True))
        assert "autolock is not turned on" in refusal
    async with node.running(command=with_real_manager):
        await eventually("it serves", lambda: served(node))
        assert (await info(node)).state == "active"
        await set_autolock(node, on=True)
        await eventually("and again", lambda: is_locked(node))
        third = await unlock_key(node)
        assert third not in (first, second)
