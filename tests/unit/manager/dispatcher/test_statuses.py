"""Reports: merged, batched, never backwards, and everybody pays for their own only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from manager.dispatcher import statuses
from manager.dispatcher.statuses import StatusWriter
from manager.store.store import Store, TransactionTooLarge
from shoal.errors import ResourceExhausted, Unavailable
from shoal.model.enums import TaskState
from shoal.model.plan import remove, update
from shoal.model.types import TaskStatus
from tests.support.managing import HandClock, MemoryProposer, a_store, running
from tests.support.planning import a_task


class Rig:
    def __init__(self, tasks: int = 3) -> None:
        self.clock = HandClock()
        rows = (a_task(f"t{n}", state=TaskState.ASSIGNED) for n in range(tasks))
        self.store, self.proposer = a_store(rows, self.clock)
        self.writer = StatusWriter(self.store, self.clock, manager_id="m1")

    def state(self, task_id: str = "t0") -> TaskState:
        return self.store.view.tasks.resolve(task_id).status.state


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    async with running(rig.writer.run):
        yield rig


def said(state: TaskState, **fields) -> TaskStatus:
    return TaskStatus(state=state, **fields)


async def test_a_report_is_in_the_store_when_the_caller_resumes(rig):
    await rig.writer.write("n1", {"t0": said(TaskState.RUNNING, message="started")})
    status = rig.store.view.tasks.resolve("t0").status
    assert (status.state, status.message) == (TaskState.RUNNING, "started")
    assert (status.applied_by, status.applied_at_ns) == ("m1", rig.clock.now_ns())


async def test_a_reason_told_again_leaves_the_time_at_which_the_state_was_learnt(rig):
    learnt_ns = rig.clock.now_ns()
    await rig.writer.write("n1", {"t0": said(TaskState.PREPARING, error="no such host")})
    rig.clock.advance(60)
    await rig.writer.write("n1", {"t0": said(TaskState.PREPARING, error="timed out")})
    status = rig.store.view.tasks.resolve("t0").status
    assert (status.error, status.applied_at_ns) == ("timed out", learnt_ns)
    await rig.writer.write("n1", {"t0": said(TaskState.READY)})
    assert rig.store.view.tasks.resolve("t0").status.applied_at_ns == rig.clock.now_ns()


async def test_what_changes_below_a_task_that_runs_on_is_news(rig):
    await rig.writer.write("n1", {"t0": said(TaskState.RUNNING)})
    await rig.writer.write("n1", {"t0": said(TaskState.RUNNING, file_ids=("s2",))})
    assert rig.store.view.tasks.resolve("t0").status.file_ids == ("s2",)


async def test_reports_that_come_during_a_write_go_out_together(rig):
    rig.proposer.gate.clear()
    first = asyncio.create_task(rig.writer.write("n1", {"t0": said(TaskState.ACCEPTED)}))
    await asyncio.sleep(0.01)
    states = (TaskState.PREPARING, TaskState.RUNNING, TaskState.STARTING)
    later = [
        asyncio.create_task(rig.writer.write("n1", {"t0": said(state), "t1": said(state)}))
        for state in states
    ]
    await asyncio.sleep(0.01)
    rig.proposer.gate.set()
    await asyncio.gather(first, *later)
    assert [len(entry.actions) for entry in rig.proposer.entries] == [1, 2]
    assert rig.state("t0") is rig.state("t1") is TaskState.RUNNING


async def test_a_task_never_goes_back_and_old_news_writes_nothing(rig):
    await rig.writer.write("n1", {"t0": said(TaskState.FAILED, error="exit 1")})
    rig.proposer.entries.clear()
    await rig.writer.write("n1", {"t0": said(TaskState.RUNNING)})
    await rig.writer.write("n1", {"t0": said(TaskState.FAILED, error="exit 1")})
    assert rig.proposer.entries == []
    await rig.writer.write("n1", {"t0": said(TaskState.FAILED, error="exit 2")})
    assert rig.store.view.tasks.resolve("t0").status.error == "exit 2"


async def test_tasks_of_others_and_unknown_ones_are_left_alone(rig):
    evil = rig.writer.write("n2", {"t0": said(TaskState.FAILED), "gone": said(TaskState.FAILED)})
    good = rig.writer.write("n1", {"t0": said(TaskState.STARTING)})
    await asyncio.gather(evil, good)
    assert rig.state() is TaskState.STARTING, "a report of another node hides no true one"


async def test_conflicts_and_removals_in_between_are_survived(rig):
    """While a write is under way the task is changed, and another one of the batch removed."""
    rig.proposer.gate.clear()
    task, other = (rig.store.view.tasks.resolve(key) for key in ("t0", "t1"))
    shutdown = task.with_desired_state(TaskState.SHUTDOWN)
    first = asyncio.create_task(rig.store.commit([update(shutdown), remove(other)]))
    await asyncio.sleep(0)
    reports = {key: said(TaskState.RUNNING) for key in ("t0", "t1", "t2")}
    write = asyncio.create_task(rig.writer.write("n1", reports))
    await asyncio.sleep(0.01)
    rig.proposer.gate.set()
    await asyncio.gather(first, write)
    task = rig.store.view.tasks.resolve("t0")
    assert (task.status.state, task.desired_state) == (TaskState.RUNNING, TaskState.SHUTDOWN)
    assert rig.state("t2") is TaskState.RUNNING
    assert rig.store.view.tasks.get("t1") is None


async def test_a_refusing_log_is_told_to_the_callers_and_then_forgotten(rig):
    rig.proposer.error = ResourceExhausted("the disk is full")
    with pytest.raises(ResourceExhausted, match="the disk is full"):
        await rig.writer.write("n1", {"t0": said(TaskState.RUNNING)})
    rig.proposer.error = None
    await rig.writer.write("n1", {"t0": said(TaskState.RUNNING)})
    assert rig.state() is TaskState.RUNNING


async def test_what_waits_is_bounded(rig, monkeypatch):
    monkeypatch.setattr(statuses, "PENDING_MAX", 2)
    with pytest.raises(ResourceExhausted, match="2 task reports wait already: report again later"):
        await rig.writer.write("n1", {f"t{n}": said(TaskState.RUNNING) for n in range(3)})
    assert rig.state() is TaskState.ASSIGNED


async def test_more_reports_than_a_transaction_holds_go_out_in_several():
    rig = Rig(tasks=450)
    async with running(rig.writer.run):
        await rig.writer.write("n1", {f"t{n}": said(TaskState.RUNNING) for n in range(450)})
    assert sorted(len(entry.actions) for entry in rig.proposer.entries) == [50, 200, 200]
    assert {task.status.state for task in rig.store.view.tasks} == {TaskState.RUNNING}


class SmallEntries(MemoryProposer):
    """Refuses entries of more than 10 actions, and every one with a certain task."""

    async def propose(self, entry):
        ids = {action.object.id for action in entry.actions}
        if len(ids) > 10 or "t3" in ids:
            raise TransactionTooLarge("too large")
        return await super().propose(entry)


async def test_reports_too_large_for_an_entry_are_halved_and_one_fails_its_reporter_alone():
    rig = Rig(tasks=60)
    rig.store.attach(SmallEntries(rig.store))
    async with running(rig.writer.run):
        with_it = rig.writer.write("n1", {f"t{n}": said(TaskState.RUNNING) for n in range(30)})
        without = rig.writer.write("n1", {f"t{n}": said(TaskState.RUNNING) for n in range(30, 60)})
        results = await asyncio.gather(with_it, without, return_exceptions=True)
    assert isinstance(results[0], TransactionTooLarge)
    assert results[1] is None
    slow = [task.id for task in rig.store.view.tasks if task.status.state < TaskState.RUNNING]
    assert slow == ["t3"]


async def test_a_caller_that_goes_away_disturbs_nobody(rig):
    rig.proposer.gate.clear()
    gone = asyncio.create_task(rig.writer.write("n1", {"t0": said(TaskState.RUNNING)}))
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    stays = asyncio.create_task(rig.writer.write("n1", {"t1": said(TaskState.RUNNING)}))
    rig.proposer.gate.set()
    await stays
    assert rig.state("t0") is rig.state("t1") is TaskState.RUNNING


async def test_a_writer_that_breaks_leaves_no_caller_waiting(rig, monkeypatch):
    async def broken(changes):
        raise KeyError(changes)

    writer = StatusWriter(Store(rig.store.view, rig.clock), rig.clock, manager_id="m1")
    monkeypatch.setattr(writer._store, "commit", broken)
    run = asyncio.create_task(writer.run())
    with pytest.raises(Unavailable, match="could not write reports"):
        await writer.write("n1", {"t0": said(TaskState.RUNNING)})
    with pytest.raises(KeyError):
        await run
