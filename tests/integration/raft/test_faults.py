"""State directories that are not what they should be: damaged, or older than their owner's word."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from shoal.api.v1 import control_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.security.grpc_tls import local_channel
from tests.integration.manager.process import DEADLINE_S, ManagerProcess, a_manager
from tests.integration.raft.processes import some_managers
from tests.integration.raft.test_processes import create, names

pytestmark = pytest.mark.timeout(240)


async def ended(manager: ManagerProcess) -> int:
    """The exit code."""
    assert manager.process is not None
    return await asyncio.to_thread(manager.process.wait, DEADLINE_S)


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


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


async def test_a_second_manager_on_a_state_directory_is_refused(tmp_path):
    with a_manager(tmp_path) as manager:
        await manager.start_serving()
        first = manager.process
        try:
            manager.start()
            assert await ended(manager) == 1
            assert "another process" in manager.log.splitlines()[-1]
        finally:
            manager.process = first
        await create(manager, "unharmed")
        assert await names(manager) == {"unharmed"}


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
