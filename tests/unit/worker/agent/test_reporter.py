"""Reports are merged, are not held back when they matter, and are never lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import Unavailable
from shoal.model.enums import TaskState as S
from shoal.model.types import TaskStatus
from tests.unit.worker.agent.support import until
from worker.agent import reporter as module
from worker.agent.reporter import Reporter

STATES = [S.ACCEPTED, S.PREPARING, S.READY, S.STARTING, S.RUNNING, S.COMPLETE]


class Manager:
    """Takes reports, or not."""

    def __init__(self):
        self.batches = []
        self.accepted = []
        self.answers = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, batch):
        self.batches.append(dict(batch))
        await self.gate.wait()
        if self.answers and not self.answers.pop(0):
            raise Unavailable("gone")
        self.accepted.append(dict(batch))


async def sessions(reporter, manager):
    """One after the other, as the agent keeps them."""
    while True:
        try:
            await reporter.run(manager.send)
        except Unavailable:
            continue


@pytest.fixture
async def running():
    manager, reporter = Manager(), Reporter()
    work = asyncio.create_task(sessions(reporter, manager))
    yield reporter, manager
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def test_states_of_a_fast_start_are_merged(running, monkeypatch):
    monkeypatch.setattr(module, "MERGE_S", 60.0)  # the merge pause cannot be what ends it
    reporter, manager = running
    await asyncio.sleep(0)
    for state in STATES[:5]:
        reporter.report("t", TaskStatus(state=state))
        await asyncio.sleep(0)
    await until(lambda: manager.batches)
    assert manager.batches == [{"t": TaskStatus(state=S.RUNNING)}]


@pytest.mark.parametrize(
    "status",
    [
        TaskStatus(state=S.RUNNING),
        TaskStatus(state=S.FAILED),
        TaskStatus(state=S.PREPARING, error="why it does not get on"),
    ],
)
async def test_what_matters_is_not_held_back(running, monkeypatch, status):
    monkeypatch.setattr(module, "MERGE_S", 60.0)
    reporter, manager = running
    reporter.report("t", status)
    await until(lambda: manager.batches)


async def test_slow_steps_are_reported_too(running, monkeypatch):
    monkeypatch.setattr(module, "MERGE_S", 0.001)
    reporter, manager = running
    reporter.report("t", TaskStatus(state=S.PREPARING))
    await until(lambda: manager.batches == [{"t": TaskStatus(state=S.PREPARING)}])


async def test_a_report_during_a_send_follows(running):
    reporter, manager = running
    manager.gate.clear()
    reporter.report("t", TaskStatus(state=S.RUNNING))
    await until(lambda: manager.batches)
    reporter.report("t", TaskStatus(state=S.FAILED))
    manager.gate.set()
    await until(lambda: len(manager.batches) == 2)
    assert manager.batches[1] == {"t": TaskStatus(state=S.FAILED)}


async def test_at_most_1024_a_message(running):
    reporter, manager = running
    for number in range(2500):
        reporter.report(f"t{number}", TaskStatus(state=S.RUNNING))
    await until(lambda: len(manager.batches) == 3)
    assert [len(batch) for batch in manager.batches] == [1024, 1024, 452]


async def test_a_forgotten_task_is_not_reported(running, monkeypatch):
    monkeypatch.setattr(module, "MERGE_S", 0.001)
    reporter, manager = running
    reporter.report("gone", TaskStatus(state=S.ACCEPTED))
    reporter.forget("gone")
    reporter.report("here", TaskStatus(state=S.RUNNING))
    await until(lambda: manager.batches)
    assert manager.batches == [{"here": TaskStatus(state=S.RUNNING)}]


@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=25),
    answers=st.lists(st.booleans(), max_size=12),
)
def test_the_newest_status_of_each_task_arrives_whatever_fails(moves, answers):
    async def scenario():
        manager, reporter = Manager(), Reporter()
        manager.answers = list(answers)
        work = asyncio.create_task(sessions(reporter, manager))
        newest, arrived = {}, {}
        level = dict.fromkeys("abc", 0)
        try:
            for task, pause in moves:
                level[task] = min(level[task] + 1, len(STATES) - 1)
                newest[task] = TaskStatus(state=STATES[level[task]], error="now")
                reporter.report(task, newest[task])
                if pause:
                    await asyncio.sleep(0)
            async with asyncio.timeout(10):
                while arrived != newest:
                    await asyncio.sleep(0)
                    arrived = {}
                    for batch in manager.accepted:
                        for task, status in batch.items():
                            assert task not in arrived or status.state >= arrived[task].state
                            arrived[task] = status
            assert all(batch for batch in manager.batches)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    asyncio.run(scenario())
