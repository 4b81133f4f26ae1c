"""Group commit: acknowledged means durable, in order, few syncs, bounded."""

from __future__ import annotations

import asyncio
import errno
import threading

import pytest
from typing_extensions import override

from manager.storage.driver import AsyncWal
from manager.storage.entries import HardState
from manager.storage.errors import StorageFailed
from manager.storage.wal import SEGMENT_BYTES_MIN, Wal
from shoal.errors import FailedPrecondition, ResourceExhausted
from tests.unit.manager.storage.support import IDENTITY, FaultyFiles, entries


class GatedFiles(FaultyFiles):
    """The sync waits at a gate, so that a test decides what queues up behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.syncing = threading.Event()

    @override
    def fdatasync(self, fd: int) -> None:
        self.syncing.set()
        assert self.gate.wait(30)
        super().fdatasync(fd)


def open_wal(tmp_path, files=None, segment_bytes=1 << 20) -> Wal:
    return Wal.create(tmp_path / "raft", IDENTITY, segment_bytes=segment_bytes, files=files)


def recover(tmp_path):
    wal, recovered = Wal.open(tmp_path / "raft", IDENTITY)
    wal.close()
    return recovered


async def held_behind_a_sync(log: AsyncWal, files: GatedFiles, first) -> asyncio.Task[None]:
    files.gate.clear()
    files.syncing.clear()
    task = asyncio.create_task(log.append(first))
    assert await asyncio.to_thread(files.syncing.wait, 30)
    return task


async def test_batches_queued_during_a_sync_share_the_next(tmp_path):
    files = GatedFiles()
    async with AsyncWal(open_wal(tmp_path, files)) as log:
        files.calls.clear()
        first = await held_behind_a_sync(log, files, entries(1, 1))
        rest = [asyncio.create_task(log.append(entries(n, n))) for n in range(2, 100)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in (first, *rest))
        files.gate.set()
        await asyncio.gather(first, *rest)
        assert files.calls == ["pwrite", "fdatasync"] * 2
    assert recover(tmp_path).entries == tuple(entries(1, 99))
    assert files.open_fds == set()


async def test_a_merge_is_bounded_in_bytes(tmp_path):
    files = GatedFiles()
    async with AsyncWal(open_wal(tmp_path, files), merged_bytes_max=1000) as log:
        files.calls.clear()
        first = await held_behind_a_sync(log, files, entries(1, 1))
        rest = [asyncio.create_task(log.append(entries(n, n, size=400))) for n in range(2, 8)]
        await asyncio.sleep(0)
        files.gate.set()
        await asyncio.gather(first, *rest)
        assert files.calls.count("fdatasync") == 4
    assert recover(tmp_path).last_index == 7


async def test_a_full_queue_makes_callers_wait(tmp_path):
    async with AsyncWal(open_wal(tmp_path), queue_max=2) as log:
        await asyncio.gather(*(log.append(entries(n, n)) for n in range(1, 50)))
    assert recover(tmp_path).last_index == 49


async def test_one_callers_mistake_is_its_own(tmp_path):
    files = GatedFiles()
    async with AsyncWal(open_wal(tmp_path, files)) as log:
        first = await held_behind_a_sync(log, files, entries(1, 1))
        good = asyncio.create_task(log.append(entries(2, 2)))
        gap = asyncio.create_task(log.append(entries(9, 9)))
        after = asyncio.create_task(log.append(entries(3, 3), HardState(1, 0, 2)))
        await asyncio.sleep(0)
        files.gate.set()
        results = await asyncio.gather(first, good, gap, after, return_exceptions=True)
        assert [type(result) for result in results] == [type(None)] * 2 + [
            FailedPrecondition,
            type(None),
        ]
    assert recover(tmp_path).last_index == 3


async def test_a_full_disk_fails_what_is_queued_and_nothing_after(tmp_path):
    files = GatedFiles()
    async with AsyncWal(open_wal(tmp_path, files), merged_bytes_max=100) as log:
        first = await held_behind_a_sync(log, files, entries(1, 1))
        rest = [asyncio.create_task(log.append(entries(n, n, size=100))) for n in range(2, 6)]
        await asyncio.sleep(0)
        files.space_bytes = 50
        files.gate.set()
        results = await asyncio.gather(first, *rest, return_exceptions=True)
        assert results[0] is None
        assert all(isinstance(result, ResourceExhausted) for result in results[1:])
        files.space_bytes = None
        await log.append(entries(2, 3))
    assert recover(tmp_path).entries == tuple(entries(1, 3))


async def test_a_failed_sync_fails_everything_for_good(tmp_path):
    files = FaultyFiles()
    async with AsyncWal(open_wal(tmp_path, files)) as log:
        await log.append(entries(1, 1))
        files.fail["fdatasync"] = errno.EIO
        tasks = [log.append(entries(n, n)) for n in range(2, 5)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, StorageFailed) for result in results)
        files.fail.clear()
        with pytest.raises(StorageFailed):
            await log.append(entries(2, 2))
        with pytest.raises(StorageFailed):
            await log.release(0)


async def test_a_cancelled_caller_disturbs_nobody(tmp_path):
    files = GatedFiles()
    async with AsyncWal(open_wal(tmp_path, files)) as log:
        first = await held_behind_a_sync(log, files, entries(1, 1))
        second = asyncio.create_task(log.append(entries(2, 2)))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        files.gate.set()
        await log.append(entries(3, 3))
    assert recover(tmp_path).last_index == 3


async def test_release_runs_in_order_with_the_batches(tmp_path):
    wal = open_wal(tmp_path, segment_bytes=SEGMENT_BYTES_MIN)
    async with AsyncWal(wal) as log:
        for entry in entries(1, 100, size=100):
            await log.append([entry], HardState(1, 0, entry.index))
        marked = asyncio.create_task(log.mark_snapshot(100, 1))
        released = asyncio.create_task(log.release(90))
        await asyncio.gather(marked, released)
        assert released.result() > 0
    assert recover(tmp_path).entries_after(90) == tuple(entries(91, 100, size=100))


async def test_leaving_finishes_the_queue_and_then_refuses(tmp_path):
    files = GatedFiles()
    log = AsyncWal(open_wal(tmp_path, files))
    with pytest.raises(FailedPrecondition, match="closed"):
        await log.append(entries(1, 1))
    async with log:
        first = await held_behind_a_sync(log, files, entries(1, 1))
        second = asyncio.create_task(log.append(entries(2, 2)))
        await asyncio.sleep(0)
        files.gate.set()
    await asyncio.gather(first, second)
    with pytest.raises(FailedPrecondition, match="closed"):
        await log.append(entries(3, 3))
    assert recover(tmp_path).last_index == 2
    assert files.open_fds == set()
