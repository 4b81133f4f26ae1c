"""One manager's consensus: durable before answered, in order, bounded, and recovered."""

from __future__ import annotations

import asyncio
import errno
from itertools import chain, pairwise
from pathlib import Path

import pytest

from manager.consensus import local
from manager.consensus.local import LocalConsensus, Recovery, recover
from manager.storage.wal import Wal
from manager.store.store import Store, TransactionTooLarge
from shoal.clock import SystemClock
from shoal.errors import (
    FailedPrecondition,
    InvariantViolation,
    NameConflict,
    ResourceExhausted,
    SequenceConflict,
    Unavailable,
)
from shoal.model.plan import create, remove, update
from tests.support.managing import until
from tests.support.planning import a_service, a_task
from tests.unit.manager.storage.support import FaultyFiles

CLUSTER = "c" * 25
SEGMENT_BYTES = 1 << 20


def opened(directory: Path, **options) -> tuple[Store, LocalConsensus]:
    recovery = recover(directory, CLUSTER, segment_bytes=SEGMENT_BYTES)
    store = Store(recovery.tables, SystemClock())
    consensus = LocalConsensus(recovery, store, **options)
    store.attach(consensus)
    return store, consensus


def rows_of(directory: Path):
    recovery = recover(directory, CLUSTER, segment_bytes=SEGMENT_BYTES)
    recovery.wal.close()
    return recovery.tables.version, {row.id: row for row in recovery.tables.all_rows()}


def on_a_faulty_disk(directory: Path) -> tuple[Store, LocalConsensus, FaultyFiles]:
    recovery = recover(directory, CLUSTER, segment_bytes=SEGMENT_BYTES)
    identity = recovery.wal.identity
    recovery.wal.close()
    files = FaultyFiles()
    wal, _ = Wal.open(
        directory / "wal", identity, segment_bytes=SEGMENT_BYTES, files=files, keys=recovery.keys
    )
    store = Store(recovery.tables, SystemClock())
    consensus = LocalConsensus(Recovery(recovery.tables, wal, recovery.snapshots), store)
    store.attach(consensus)
    return store, consensus, files


async def test_what_was_committed_is_there_after_a_restart(tmp_path):
    store, consensus = opened(tmp_path)
    async with consensus:
        await store.commit([create(a_service("web")), create(a_task("t1"))])
        with pytest.raises(NameConflict):
            await store.commit([create(a_service("two").replaced(spec=a_service("web").spec))])
        await store.commit([update(store.view.services.resolve("web"))])
        await store.commit([remove(store.view.tasks.resolve("t1"))])
        expected = {row.id: row for row in store.rows()}
        version = store.view.version
    assert version == 4, "a refused entry has its place in the log"
    assert rows_of(tmp_path) == (version, expected)


async def test_64_proposers_each_get_their_own_result(tmp_path):
    store, consensus = opened(tmp_path)
    async with consensus:

        async def one(number: int):
            commits = []
            for turn in range(10):
                commit = await store.commit([create(a_task(f"t{number}-{turn}"))])
                assert [event.subject.id for event in commit.events] == [f"t{number}-{turn}"]
                commits.append(commit.version)
            assert commits == sorted(commits)
            return commits

        versions = await asyncio.gather(*(one(number) for number in range(64)))
        assert sorted(chain.from_iterable(versions)) == list(range(1, 641))
    assert len(rows_of(tmp_path)[1]) == 640


async def test_pipelined_conflicts_are_decided_at_apply(tmp_path):
    store, consensus = opened(tmp_path)
    async with consensus:
        await store.commit([create(a_service("web"))])
        web = store.view.services.resolve("web")
        results = await asyncio.gather(
            *(store.commit([update(web)]) for _ in range(8)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, SequenceConflict)]
        assert len(refused) == 7
        assert results[0] not in refused, "the first in the log wins"
    assert rows_of(tmp_path)[0] == 9


async def test_a_cancelled_proposal_may_commit_and_disturbs_nobody(tmp_path):
    store, consensus = opened(tmp_path)
    async with consensus:
        tasks = [asyncio.create_task(store.commit([create(a_task(f"t{n}"))])) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(not isinstance(result, BaseException) for result in results[1::2])
        await store.commit([create(a_task("last"))])
        held = {row.id for row in store.rows()}
    assert held >= {f"t{number}" for number in range(1, 20, 2)} | {"last"}
    assert set(rows_of(tmp_path)[1]) == held


async def test_snapshot_and_log_together_are_the_state(tmp_path):
    store, consensus = opened(tmp_path, snapshot_interval=20)
    async with consensus:
        for number in range(130):
            await store.commit([create(a_task(f"t{number}")), create(a_service(f"s{number}"))])
            if number % 3 == 0:
                await store.commit([remove(store.view.tasks.resolve(f"t{number}"))])
        expected, version = {row.id: row for row in store.rows()}, store.view.version
        await until(lambda: list((tmp_path / "snapshots").glob("*.snap")))
    snapshots = list((tmp_path / "snapshots").glob("*.snap"))
    assert 1 <= len(snapshots) <= 2, "the older ones are pruned"
    assert rows_of(tmp_path) == (version, expected)
    newest = max(snapshots)
    newest.write_bytes(newest.read_bytes()[:-1])
    if len(snapshots) == 2:
        assert rows_of(tmp_path) == (version, expected), "the older snapshot and a longer log"


async def test_a_snapshot_that_fails_leaves_the_log_and_is_not_tried_at_once_again(
    tmp_path, monkeypatch
):
    store, consensus = opened(tmp_path, snapshot_interval=20)
    tries = []

    def no_space(index, term, records):
        tries.append(index)
        raise ResourceExhausted("no space")

    monkeypatch.setattr(consensus._snapshots, "save", no_space)
    async with consensus:
        for number in range(60):
            await store.commit([create(a_task(f"t{number}"))])
    assert tries
    assert tries[0] == 20
    assert all(later - earlier >= 2 for earlier, later in pairwise(tries))
    assert len(rows_of(tmp_path)[1]) == 60


async def test_a_full_disk_refuses_what_it_hit_and_nothing_more(tmp_path):
    store, consensus, files = on_a_faulty_disk(tmp_path)
    async with consensus:
        await store.commit([create(a_task("before"))])
        files.space_bytes = 0
        results = await asyncio.gather(
            *(store.commit([create(a_task(f"t{n}"))]) for n in range(10)), return_exceptions=True
        )
        assert all(isinstance(result, ResourceExhausted) for result in results)
        assert "free space and try again" in str(results[0])
        files.space_bytes = None
        await store.commit([create(a_task("after"))])
    assert set(rows_of(tmp_path)[1]) == {"before", "after"}


async def test_a_failed_sync_ends_the_process_and_leaves_nobody_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "QUEUE_MAX", 4)
    store, consensus, files = on_a_faulty_disk(tmp_path)
    async with consensus:
        await store.commit([create(a_task("before"))])
        files.fail["fdatasync"] = errno.EIO
        results = await asyncio.gather(
            *(store.commit([create(a_task(f"t{n}"))]) for n in range(30)), return_exceptions=True
        )
        assert {type(result) for result in results} == {Unavailable}
        with pytest.raises(InvariantViolation, match="what is durable is unknown"):
            await consensus.wait_failed()
        with pytest.raises(Unavailable, match=r"log has failed .* restart the manager"):
            await store.commit([create(a_task("later"))])
    assert "before" in rows_of(tmp_path)[1]


async def test_a_bug_while_applying_ends_the_process_and_leaves_nobody_waiting(
    tmp_path, monkeypatch
):
    store, consensus = opened(tmp_path)

    def broken(entry, index):
        raise KeyError(index)

    async with consensus:
        monkeypatch.setattr(store, "apply", broken)
        results = await asyncio.gather(
            *(store.commit([create(a_task(f"t{n}"))]) for n in range(5)), return_exceptions=True
        )
        assert {type(result) for result in results} == {Unavailable}
        with pytest.raises(KeyError):
            await consensus.wait_failed()


async def test_stopping_finishes_what_is_queued_and_refuses_the_rest(tmp_path):
    store, consensus = opened(tmp_path)
    async with consensus:
        queued = [asyncio.create_task(store.commit([create(a_task(f"t{n}"))])) for n in range(700)]
        await asyncio.sleep(0)
    await asyncio.gather(*queued)
    with pytest.raises(Unavailable, match="stopping"):
        await store.commit([create(a_task("late"))])
    assert len(rows_of(tmp_path)[1]) == 700


async def test_a_transaction_larger_than_an_entry_is_refused(tmp_path):
    store, consensus = opened(tmp_path)
    labels = {"big": "x" * local.ENTRY_BYTES_MAX}
    async with consensus:
        service = a_service("web")
        annotations = service.spec.annotations.replaced(labels=labels)
        service = service.replaced(spec=service.spec.replaced(annotations=annotations))
        with pytest.raises(TransactionTooLarge, match="at most 1572864: make it smaller"):
            await store.commit([create(service)])
        await store.commit([create(a_service("web"))])


def test_a_log_that_is_gone_is_not_begun_anew_beside_its_snapshots(tmp_path):
    async def fill() -> None:
        store, consensus = opened(tmp_path, snapshot_interval=1)
        async with consensus:
            await store.commit([create(a_task("t1"))])
            await until(lambda: list((tmp_path / "snapshots").glob("*.snap")))

    asyncio.run(fill())
    for path in (tmp_path / "wal").iterdir():
        path.unlink()
    with pytest.raises(FailedPrecondition, match="holds snapshots, but the log beside it is gone"):
        recover(tmp_path, CLUSTER, segment_bytes=SEGMENT_BYTES)


def test_a_second_process_and_another_cluster_are_refused(tmp_path):
    recovery = recover(tmp_path, CLUSTER, segment_bytes=SEGMENT_BYTES)
    with pytest.raises(FailedPrecondition, match="another process has this log open"):
        recover(tmp_path, CLUSTER, segment_bytes=SEGMENT_BYTES)
    recovery.wal.close()
    with pytest.raises(FailedPrecondition, match="cluster"):
        recover(tmp_path, "d" * 25, segment_bytes=SEGMENT_BYTES)
    (tmp_path / "raft_id").write_text("nonsense")
    with pytest.raises(FailedPrecondition, match="raft_id: damaged"):
        recover(tmp_path, CLUSTER, segment_bytes=SEGMENT_BYTES)
