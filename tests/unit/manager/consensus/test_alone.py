"""One manager's consensus: durable before answered, in order, bounded, and recovered."""

from __future__ import annotations

import asyncio
import errno
import gc
import warnings
from itertools import chain, pairwise

import pytest

from manager.consensus import driver as driver_module
from manager.consensus.driver import ENTRY_BYTES_MAX, RaftDriver
from manager.consensus.recovery import records
from manager.storage import entries as disk
from manager.storage.member import Opening, open_member
from manager.store.apply import apply_entry
from manager.store.history import VersionCompacted
from manager.store.store import Store, TransactionTooLarge
from manager.store.tables import Tables
from shoal.clock import SystemClock
from shoal.errors import (
    FailedPrecondition,
    InvariantViolation,
    NameConflict,
    ResourceExhausted,
    SequenceConflict,
    Unavailable,
)
from shoal.model.enums import ActionKind
from shoal.model.objects import StoreAction, StoreEntry
from shoal.model.plan import create, remove, update
from shoal.wire.objects import entry_to_bytes
from tests.support.alone import (
    CLUSTER,
    SEGMENT_BYTES,
    NoTransport,
    alone,
    recovered,
    rows_after_restart,
)
from tests.support.managing import until
from tests.support.planning import a_service, a_task
from tests.unit.manager.storage.support import FaultyFiles


async def test_what_was_committed_is_there_after_a_restart(tmp_path):
    async with alone(tmp_path) as (store, _):
        await store.commit([create(a_service("web")), create(a_task("t1"))])
        with pytest.raises(NameConflict):
            await store.commit([create(a_service("two").replaced(spec=a_service("web").spec))])
        await store.commit([update(store.view.services.resolve("web"))])
        await store.commit([remove(store.view.tasks.resolve("t1"))])
        expected = {row.id: row for row in store.rows()}
        assert store.view.version == 6, "a refused entry has its place in the log"
    assert await rows_after_restart(tmp_path) == expected


async def test_a_driver_that_stops_before_its_first_turn_leaves_nothing_unawaited(tmp_path):
    recovery = recovered(tmp_path)
    driver = RaftDriver(recovery, Store(recovery.tables, SystemClock()), NoTransport())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        async with driver:
            pass  # its tasks are cancelled before any of them has run
        del driver
        gc.collect()
    assert [str(one.message) for one in seen] == []


async def test_64_proposers_each_get_their_own_result(tmp_path):
    async with alone(tmp_path) as (store, _):

        async def one(number: int):
            commits = []
            for turn in range(10):
                commit = await store.commit([create(a_task(f"t{number}-{turn}"))])
                assert [event.subject.id for event in commit.events] == [f"t{number}-{turn}"]
                commits.append(commit.version)
            assert commits == sorted(commits)
            return commits

        versions = await asyncio.gather(*(one(number) for number in range(64)))
        assert sorted(chain.from_iterable(versions)) == list(range(3, 643))
    assert len(await rows_after_restart(tmp_path)) == 640


async def test_pipelined_conflicts_are_decided_at_apply(tmp_path):
    async with alone(tmp_path) as (store, _):
        await store.commit([create(a_service("web"))])
        web = store.view.services.resolve("web")
        results = await asyncio.gather(
            *(store.commit([update(web)]) for _ in range(8)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, SequenceConflict)]
        assert len(refused) == 7
        assert results[0] not in refused, "the first in the log wins"


async def test_a_cancelled_proposal_may_commit_and_disturbs_nobody(tmp_path):
    async with alone(tmp_path) as (store, _):
        tasks = [asyncio.create_task(store.commit([create(a_task(f"t{n}"))])) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(not isinstance(result, BaseException) for result in results[1::2])
        await store.commit([create(a_task("last"))])
        held = {row.id for row in store.rows()}
    assert held >= {f"t{number}" for number in range(1, 20, 2)} | {"last"}
    assert set(await rows_after_restart(tmp_path)) == held


async def test_snapshot_and_log_together_are_the_state(tmp_path):
    async with alone(tmp_path, snapshot_interval=20) as (store, _):
        for number in range(130):
            await store.commit([create(a_task(f"t{number}")), create(a_service(f"s{number}"))])
            if number % 3 == 0:
                await store.commit([remove(store.view.tasks.resolve(f"t{number}"))])
        expected = {row.id: row for row in store.rows()}
        await until(lambda: list((tmp_path / "snapshots").glob("*.snap")))
    snapshots = list((tmp_path / "snapshots").glob("*.snap"))
    assert 1 <= len(snapshots) <= 2, "the older ones are pruned"
    assert await rows_after_restart(tmp_path) == expected
    newest = max(snapshots)
    newest.write_bytes(newest.read_bytes()[:-1])
    if len(snapshots) == 2:
        assert await rows_after_restart(tmp_path) == expected, "the older snapshot and a longer log"


async def test_a_snapshot_that_fails_leaves_the_log_and_is_not_tried_at_once_again(
    tmp_path, monkeypatch
):
    tries = []

    def no_space(index, term, records, *, metadata):
        tries.append(index)
        raise ResourceExhausted("no space")

    async with alone(tmp_path, snapshot_interval=20) as (store, driver):
        monkeypatch.setattr(driver.snapshots._directory, "save", no_space)
        for number in range(60):
            await store.commit([create(a_task(f"t{number}"))])
    assert tries
    assert tries[0] == 21
    assert all(later - earlier >= 2 for earlier, later in pairwise(tries))
    assert len(await rows_after_restart(tmp_path)) == 60


async def test_a_full_disk_refuses_writes_and_takes_them_again_when_there_is_space(tmp_path):
    files = FaultyFiles()
    async with alone(tmp_path, files=files) as (store, driver):
        await store.commit([create(a_task("before"))])
        files.space_bytes = 0
        results = await asyncio.gather(
            *(store.commit([create(a_task(f"t{n}"))]) for n in range(10)), return_exceptions=True
        )
        assert all(isinstance(result, ResourceExhausted) for result in results)
        assert "may still be committed when there is space" in str(results[0])
        assert driver.disk_full
        with pytest.raises(ResourceExhausted):
            await store.commit([create(a_task("refused"))])
        files.space_bytes = None
        await until(lambda: not driver.disk_full)
        await store.commit([create(a_task("after"))])
    held = set(await rows_after_restart(tmp_path))
    assert held == {"before", "after", *(f"t{n}" for n in range(10))}


async def test_a_failed_sync_ends_the_process_and_leaves_nobody_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(driver_module, "PROPOSALS_MAX", 4)
    files = FaultyFiles()
    async with alone(tmp_path, files=files) as (store, driver):
        await store.commit([create(a_task("before"))])
        files.fail["fdatasync"] = errno.EIO
        results = await asyncio.gather(
            *(store.commit([create(a_task(f"t{n}"))]) for n in range(30)), return_exceptions=True
        )
        assert {type(result) for result in results} == {Unavailable}
        with pytest.raises(InvariantViolation, match="what is durable is unknown"):
            await driver.wait_failed()
        with pytest.raises(Unavailable, match=r"log has failed .* restart the manager"):
            await store.commit([create(a_task("later"))])
        with pytest.raises(Unavailable, match="log has failed"):
            await driver.read_barrier()
        assert not driver.leading.value.ready
    assert "before" in await rows_after_restart(tmp_path)


async def test_a_bug_while_applying_ends_the_process_and_leaves_nobody_waiting(
    tmp_path, monkeypatch
):
    def broken(entry, index, size_bytes):
        raise KeyError(index)

    async with alone(tmp_path) as (store, driver):
        monkeypatch.setattr(store, "apply", broken)
        results = await asyncio.gather(
            *(store.commit([create(a_task(f"t{n}"))]) for n in range(5)), return_exceptions=True
        )
        assert {type(result) for result in results} == {Unavailable}
        with pytest.raises(KeyError):
            await driver.wait_failed()


async def test_stopping_answers_everybody(tmp_path):
    async with alone(tmp_path) as (store, _):
        queued = [asyncio.create_task(store.commit([create(a_task(f"t{n}"))])) for n in range(700)]
        await asyncio.sleep(0)
    results = await asyncio.gather(*queued, return_exceptions=True)
    failed = [one for one in results if isinstance(one, BaseException)]
    assert all(isinstance(one, Unavailable) for one in failed)
    with pytest.raises(Unavailable, match="stopping"):
        await store.commit([create(a_task("late"))])
    held = set(await rows_after_restart(tmp_path))
    assert held >= {f"t{n}" for n, one in enumerate(results) if one not in failed}


async def test_a_transaction_larger_than_an_entry_is_refused(tmp_path):
    labels = {"big": "x" * ENTRY_BYTES_MAX}
    async with alone(tmp_path) as (store, _):
        service = a_service("web")
        annotations = service.spec.annotations.replaced(labels=labels)
        service = service.replaced(spec=service.spec.replaced(annotations=annotations))
        with pytest.raises(TransactionTooLarge, match="at most 1572864: make it smaller"):
            await store.commit([create(service)])
        await store.commit([create(a_service("web"))])


async def test_a_log_that_is_gone_is_not_begun_anew_beside_its_snapshots(tmp_path):
    async with alone(tmp_path) as (store, _):
        await store.commit([create(a_task("t1"))])
    for path in (tmp_path / "wal").iterdir():
        path.unlink()
    with pytest.raises(FailedPrecondition, match="holds snapshots, but the log beside it is gone"):
        recovered(tmp_path)


def test_a_second_process_and_another_cluster_are_refused(tmp_path):
    recovery = recovered(tmp_path)
    with pytest.raises(FailedPrecondition, match="another process"):
        recovered(tmp_path)
    recovery.opened.wal.close()
    (tmp_path / "raft_id").write_text("nonsense")
    with pytest.raises(FailedPrecondition, match="raft_id: damaged"):
        recovered(tmp_path)


@pytest.mark.parametrize("snapshot_at", [0, 7])
async def test_a_log_from_before_raft_becomes_one_of_a_single_voter(tmp_path, snapshot_at):
    """Term 1 throughout, no hard state, no membership in the snapshot."""
    opened = open_member(tmp_path, Opening(CLUSTER, segment_bytes=SEGMENT_BYTES))
    tables = Tables()
    for index in range(1, 13):
        action = StoreAction(object=a_task(f"t{index}"), kind=ActionKind.CREATE)
        entry = StoreEntry(actions=(action,), proposed_at_ns=index)
        opened.wal.append([disk.Entry(index, 1, 1, entry_to_bytes(entry))])
        apply_entry(tables, entry, index)
        if index == snapshot_at:
            opened.snapshots.save(index, 1, records(tuple(tables.all_rows())))
            opened.wal.append(mark=disk.SnapshotMark(index, 1))
    opened.wal.close()
    expected = {row.id: row for row in tables.all_rows()}
    for _ in range(2):
        assert await rows_after_restart(tmp_path) == expected
    async with alone(tmp_path) as (store, driver):
        assert driver.raft.membership.voters == {driver.raft.id}
        assert [one.node_id for one in driver.roster.members.values()] == ["node"]
        await store.commit([create(a_task("more"))])
    assert set(await rows_after_restart(tmp_path)) == {*expected, "more"}


async def test_a_watch_goes_on_through_a_restart_as_far_as_the_log_does(tmp_path):
    async with alone(tmp_path) as (store, _):
        start = store.view.version
        commits = [await store.commit([create(a_task(f"t{n}"))]) for n in range(3)]
    async with alone(tmp_path) as (store, _):
        with store.watch(after=start) as watcher:
            commits.append(await store.commit([create(a_task("t9"))]))
            assert watcher.take_ready() == commits
    async with alone(tmp_path, snapshot_interval=3) as (store, _):
        for number in range(9):
            await store.commit([create(a_task(f"more{number}"))])
        await until(lambda: list((tmp_path / "snapshots").glob("*.snap")))
    async with alone(tmp_path) as (store, _):
        with pytest.raises(VersionCompacted), store.watch(after=start):
            pass
