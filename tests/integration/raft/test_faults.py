"""What is wrong around a manager: its directory, another one on it, its clock, what it is sent."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shoal.api.v1 import control_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.clock import NS_PER_S
from shoal.security.grpc_tls import local_channel
from tests.integration.manager.process import DEADLINE_S, ManagerProcess, a_manager
from tests.integration.raft.jumping import OffClock
from tests.integration.raft.processes import Managers, some_managers
from tests.integration.raft.test_processes import a_spec, create, names
from tests.support.managing import refusal

pytestmark = pytest.mark.timeout(240)

DAY_S = 86_400


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Managers, list[OffClock]]]:
    """One cluster for tests that leave it whole, and its managers' clocks."""
    directory = tmp_path_factory.mktemp("three")
    with some_managers(directory, 3) as managers:
        clocks = [OffClock(manager, directory) for manager in managers.all]
        for clock in clocks:
            clock.start()
        asyncio.run(managers.until_members(3))
        yield managers, clocks


async def ended(manager: ManagerProcess) -> int:
    """The exit code."""
    assert manager.process is not None
    return await asyncio.to_thread(manager.process.wait, DEADLINE_S)


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


async def created_at_s(manager: ManagerProcess, service: str) -> float:
    """When the leader of that moment thought that it made the service."""
    async with local_channel(manager.paths.manager_socket) as channel:
        request = control_pb2.GetServiceRequest(service=service)
        answer = await ControlStub(channel).GetService(request, timeout=DEADLINE_S)
    return answer.service.meta.created_at_ns / NS_PER_S


async def test_a_manager_on_an_old_image_of_its_disk_is_found_out(tmp_path):
    """It forgot what it acknowledged: it must not go on, and nothing is lost but its copy."""
    with some_managers(tmp_path, 3) as managers:
        await managers.start()
        victim = await managers.follower()
        image = tmp_path / "image"
        await create(victim, "before")
        victim.kill()
        shutil.copytree(victim.paths.raft, image)
        victim.start()
        await managers.until_members(3)
        for number in range(20):
            await create(victim, f"after-{number}")
        victim.kill()
        shutil.rmtree(victim.paths.raft)
        shutil.copytree(image, victim.paths.raft)
        victim.start()
        assert await ended(victim) == 70
        assert "the log has lost entries that were acknowledged: remove this manager" in victim.log
        wanted = {"before", *(f"after-{number}" for number in range(20))}
        await create(managers.running[0], "goes-on")
        for manager in managers.running:
            assert await names(manager) == wanted | {"goes-on"}


async def test_clocks_that_jump_lose_nothing_and_leave_the_managers_of_one_mind(three):
    managers, clocks = three
    wanted: set[str] = set()
    for turn, offset_s in enumerate((3600.0, -7200.0, 30.0 * DAY_S, 0.0)):
        clocks[managers.all.index(await managers.leader())].set(offset_s)
        for number, manager in enumerate(managers.all):
            await create(manager, f"jump-{turn}-{number}")
            wanted.add(f"jump-{turn}-{number}")
    for manager in managers.all:
        assert await names(manager) >= wanted
    assert await created_at_s(managers.all[0], "jump-2-0") > time.time() + 29 * DAY_S, "it jumped"
    clocks[0].set(-3600.0)  # and one that is wrong from the start on
    managers.all[0].kill()
    clocks[0].start()
    await managers.until_members(3)
    assert await names(managers.all[0]) >= wanted


async def test_what_is_too_large_is_refused_by_whoever_is_asked_and_nothing_breaks(three):
    managers, _ = three
    options = [("grpc.max_send_message_length", -1)]
    for number, manager in enumerate(managers.all):
        target = f"unix:{manager.paths.manager_socket}"
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            spec = a_spec(f"big-{number}")
            for size, status in ((5 << 20, "RESOURCE_EXHAUSTED"), (1 << 20, "INVALID_ARGUMENT")):
                spec.annotations.labels["big"] = "x" * size
                request = control_pb2.CreateServiceRequest(spec=spec)
                call = ControlStub(channel).CreateService(request, timeout=DEADLINE_S)
                assert (await refusal(call)).startswith(status)
        await create(manager, f"small-{number}")
    found = await names(managers.all[0])
    assert {f"small-{number}" for number in range(3)} <= found
    assert not [name for name in found if name.startswith("big")]


async def test_a_second_manager_on_the_directory_of_one_of_three_is_refused(three):
    managers, _ = three
    victim = await managers.follower()
    first = victim.process
    try:
        victim.start()
        assert await ended(victim) == 1
        assert "another process" in victim.log.splitlines()[-1]
    finally:
        victim.process = first
    await create(victim, "undisturbed")
    await managers.until_members(3)


async def test_a_damaged_log_is_refused_and_left_as_it_is(tmp_path):
    with a_manager(tmp_path) as manager:
        await manager.start_serving()
        for number in range(10):
            await create(manager, f"s{number}")
        manager.stop()
        (segment,) = (
            path for path in (manager.paths.raft / "wal").iterdir() if path.stat().st_size
        )
        sound = segment.read_bytes()
        used = len(sound.rstrip(b"\0"))
        damaged = bytearray(sound)
        damaged[used // 2] ^= 0x10
        segment.write_bytes(damaged)
        before = content(manager.paths.raft)
        manager.start()
        assert await ended(manager) == 1
        assert f"{segment}: offset " in manager.log
        assert "refusing to start: keep a copy of the directory, then remove this" in manager.log
        assert content(manager.paths.raft) == before
        segment.write_bytes(sound)
        await manager.start_serving()
        assert await names(manager) == {f"s{number}" for number in range(10)}


async def test_damaged_snapshots_cost_a_longer_replay_or_the_start(tmp_path):
    """The newest one is put aside and the older used; without any the manager does not guess."""
    with a_manager(tmp_path) as manager:
        await manager.start_serving()
        await snapshot_often(manager)
        manager.stop()
        await manager.start_serving()  # begins to count with the new interval
        folder = manager.paths.raft / "snapshots"
        wanted: set[str] = set()
        while manager.log.count('"event": "snapshot.written"') < 2:
            wanted.add(f"s{len(wanted)}")
            await create(manager, f"s{len(wanted) - 1}")
        manager.kill()
        older, newest = sorted(folder.glob("*.snap"))
        flip(newest)
        await manager.start_serving()
        assert await names(manager) == wanted
        assert list(folder.glob(f"{newest.name}*broken*")), "kept for whoever wants to look"
        manager.kill()
        for left in folder.glob("*.snap"):
            flip(left)
        manager.start()
        assert await ended(manager) == 1
        assert "then remove this manager from the cluster" in manager.log.splitlines()[-1]
        assert older.exists() or list(folder.glob(f"{older.name}*broken*"))


async def snapshot_often(manager: ManagerProcess) -> None:
    async with local_channel(manager.paths.manager_socket) as channel:
        control = ControlStub(channel)
        cluster = (await control.GetCluster(control_pb2.GetClusterRequest())).cluster
        cluster.spec.raft.snapshot_interval = 10
        await control.UpdateCluster(
            control_pb2.UpdateClusterRequest(spec=cluster.spec, version=cluster.meta.version)
        )


def flip(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0x01
    path.write_bytes(damaged)
