"""Autolock with the real daemon and the real manager process; the worker is scripted."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from shoal.api.v1 import control_pb2, control_pb2_grpc, node_pb2, types_pb2
from shoal.errors import PermissionDenied
from shoal.model.enums import NodeRole
from shoal.security.grpc_tls import local_channel
from shoal.security.keys import is_encrypted
from shoal.security.unlock import make_unlock_key, parse_unlock_key
from shoal.settings.lock import read_lock_file
from tests.integration.swarmd.conftest import Node
from tests.integration.swarmd.test_cluster import (
    TIMEOUT_S,
    cluster_of,
    info,
    init,
    nodes_of,
    refused,
    with_real_manager,
)
from tests.support.ports import free_port

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

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
            spec=cluster.spec, rotate_unlock_key=rotate, unlock_key=key
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
    path = node.paths.raft / "keys.json"
    return path.exists() and bool(json.loads(path.read_bytes())["salt"])


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


async def join(node: Node, manager: Node, *, as_manager: bool) -> None:
    tokens = (await cluster_of(manager)).root_ca.join_tokens
    address = (await info(manager)).advertise_address
    await node.control.Join(
        node_pb2.JoinRequest(
            remote_addresses=[address], token=tokens.manager if as_manager else tokens.worker,
            advertise_address="127.0.0.1", listen_address=f"127.0.0.1:{free_port()}",
        ),
        timeout=TIMEOUT_S,
    )  # fmt: skip


async def set_role(manager: Node, node_id: str, role: NodeRole) -> None:
    control = control_pb2_grpc.ControlStub(manager.channel)
    found = (await control.GetNode(control_pb2.GetNodeRequest(node=node_id))).node
    found.spec.desired_role = types_pb2.NodeRole.ValueType(role)
    await control.UpdateNode(
        control_pb2.UpdateNodeRequest(node=node_id, spec=found.spec),  # whatever its version
        timeout=TIMEOUT_S,
    )


async def is_voter(manager: Node, node_id: str) -> bool:
    rows = {row.id: row for row in await nodes_of(manager)}
    return rows[node_id].manager_status.reachable


async def has_role(node: Node, role: NodeRole) -> bool:
    return NodeRole((await info(node)).role) is role


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


async def test_a_manager_that_was_down_needs_the_old_key_and_then_follows(node: Node, others):
    second, third = others(), others()
    async with node.running(command=with_real_manager):
        old = (await init(node, advertise_address="127.0.0.1", autolock=True)).unlock_key
        async with second.running(command=with_real_manager):
            await join(second, node, as_manager=True)
            async with third.running(command=with_real_manager):
                await join(third, node, as_manager=True)
                for joined in (second, third):
                    assert opens(joined, old), "from the beginning"
            await set_autolock(node, on=True, rotate=True)
            new = await unlock_key(node)
            for up in (node, second):
                await eventually("the new key is needed", lambda up=up: opens(up, new))
            assert opens(third, old)
            async with third.running(command=with_real_manager):
                assert "was rotated while this manager" in await refused(unlock(third, new))
                await unlock(third, old)
                await eventually("it follows", lambda: opens(third, new))
                await eventually("it serves", lambda: served(third))
                assert await unlock_key(third) == new


async def test_promoted_it_is_locked_and_demoted_it_is_open(node: Node, others):
    worker = others()
    async with node.running(command=with_real_manager):
        key = (await init(node, advertise_address="127.0.0.1", autolock=True)).unlock_key
        async with worker.running(command=with_real_manager):
            worker.tell("follow")
            await join(worker, node, as_manager=False)
            assert not worker.paths.lock.exists()
            assert not is_encrypted(key_file(worker))
            node_id = (await info(worker)).node_id
            await set_role(node, node_id, NodeRole.MANAGER)
            await eventually("it is locked", lambda: is_encrypted(key_file(worker)))
            await eventually("with its data keys", lambda: opens(worker, key))
            await eventually("it manages", lambda: is_voter(node, node_id))
            await set_role(node, node_id, NodeRole.WORKER)
            await eventually("it works", lambda: has_role(worker, NodeRole.WORKER))
            assert not is_encrypted(key_file(worker))
            assert not worker.paths.lock.exists()
            await eventually("its log is gone", lambda: not worker.paths.raft.exists())
        async with worker.running(command=with_real_manager):
            assert (await info(worker)).state == "active"


async def test_a_locked_manager_is_forced_alone_when_it_is_unlocked(node: Node, capfd):
    async with node.running(command=with_real_manager):
        key = (await init(node, autolock=True)).unlock_key
        cluster = await cluster_of(node)
    async with node.running(command=with_real_manager, force_new_cluster=True):
        assert (await info(node)).state == "locked"
        assert "invalid key" in await refused(unlock(node, make_unlock_key().render()))
        assert "cluster.forced" not in capfd.readouterr().out
        await unlock(node, key)
        assert "cluster.forced" in capfd.readouterr().out
        await eventually("it serves", lambda: served(node))
        assert (await cluster_of(node)).id == cluster.id
        assert opens(node, key)


async def test_what_keeps_an_unlocked_manager_from_starting_leaves_it_locked(node: Node):
    async with node.running(command=with_real_manager):
        key = (await init(node, autolock=True)).unlock_key
    node.paths.node_config.rename(node.paths.state / "aside")
    async with node.running(command=with_real_manager):
        assert "node.json is missing" in await refused(unlock(node, key))
        assert (await info(node)).state == "locked"
        (node.paths.state / "aside").rename(node.paths.node_config)
        await unlock(node, key)
        await eventually("it serves", lambda: served(node))


async def test_a_disk_that_refuses_the_lock_changes_nothing_until_it_takes_it(node: Node, capfd):
    async with node.running(command=with_real_manager):
        await init(node)
        in_the_way = node.paths.lock.with_name("lock.json.tmp")
        in_the_way.mkdir()
        await set_autolock(node, on=True)
        told = ""

        def complained() -> bool:
            nonlocal told
            told += capfd.readouterr().out
            return "lock.not_changed" in told

        await eventually("it says so", complained)
        assert not is_encrypted(key_file(node))
        assert not node.paths.lock.exists()
        assert await served(node)
        in_the_way.rmdir()
        await eventually("it is locked", lambda: is_locked(node))


async def test_a_locked_node_can_leave_by_force(node: Node):
    async with node.running(command=with_real_manager):
        await init(node, autolock=True)
    async with node.running(command=with_real_manager):
        await node.control.Leave(node_pb2.LeaveRequest(force=True), timeout=TIMEOUT_S)
        assert (await info(node)).state == "inactive"
        for path in (node.paths.lock, node.paths.raft, node.paths.identity / "identity"):
            assert not path.exists()
        await init(node)
        assert not node.paths.lock.exists()


KILLS = int(os.environ.get("SHOAL_LOCK_KILLS", "2"))


async def test_killed_at_any_moment_one_of_the_two_keys_opens_it(node: Node, base, launch):
    """Also `kill -9` of all processes while the key is rotated and autolock is turned on and off.

    SHOAL_LOCK_KILLS: how often (2; 40 is the long form).
    """
    chosen: random.Random = random.Random(7)
    keys: list[str] = []
    node.paths.state.mkdir(parents=True)
    for number in range(KILLS + 1):
        daemon = launch(str(Path(__file__).with_name("daemon.py")), str(base), "manager")
        await eventually("it listens", lambda: socket_answers(node))
        async with local_channel(node.paths.swarmd_socket) as node.channel:
            if number == 0:
                await init(node)
            elif (await info(node)).state == "locked":
                # The key of the change that was under way, or the last one that was in force.
                await unlock_with_any(node, keys[::-1])
            await eventually("it serves", lambda: served(node))
            if number == KILLS:
                return
            keys.append(make_unlock_key().render())
            change = asyncio.create_task(change_lock(node, keys[-1], off=number % 3 == 2))
            await asyncio.sleep(chosen.random() * 0.15)
            for pid in sorted((await info(node)).processes.values(), key=daemon.process.pid.__ne__):
                os.kill(pid, signal.SIGKILL)
            daemon.process.wait()
            await asyncio.gather(change, return_exceptions=True)


async def change_lock(node: Node, key: str, *, off: bool) -> None:
    on = (await cluster_of(node)).spec.autolock_managers
    if on and off:
        await set_autolock(node, on=False)
    await set_autolock(node, on=True, rotate=on and not off, key=key)


async def unlock_with_any(node: Node, keys: list[str]) -> None:
    refusals = []
    for key in keys:
        try:
            await unlock(node, key)
        except grpc.aio.AioRpcError as error:
            refusals.append(error.details())
        else:
            return
    raise AssertionError(refusals)


def socket_answers(node: Node) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(node.paths.swarmd_socket)) == 0
