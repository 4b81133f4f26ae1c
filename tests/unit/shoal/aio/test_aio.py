"""Supervised tasks, signals, pauses."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.aio import supervise
from shoal.aio.backoff import Backoff
from shoal.aio.signal import Signal
from shoal.aio.supervise import Supervisor, find_violation
from shoal.errors import InvariantViolation, NotFound

DEADLINE_S = 10.0


async def until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(supervise, "RESTART_PAUSE_MIN_S", 0.001)
    monkeypatch.setattr(supervise, "RESTART_PAUSE_MAX_S", 0.004)


async def forever():
    await asyncio.Event().wait()


async def test_a_task_that_fails_is_run_again():
    runs = []

    async def run():
        runs.append(1)
        if len(runs) < 5:
            raise NotFound("not yet")
        await forever()

    async with Supervisor() as supervisor:
        supervisor.start("fragile", run)
        await until(lambda: len(runs) == 5)


async def test_a_task_that_is_done_is_left_alone():
    runs = []

    async def run():
        runs.append(1)

    async with Supervisor() as supervisor:
        supervisor.start("short", run)
        await until(lambda: runs)
        for _ in range(10):
            await asyncio.sleep(0.002)
    assert runs == [1]


async def test_tasks_end_newest_first_each_before_the_next():
    ended = []

    def task(name):
        async def run():
            try:
                await forever()
            finally:
                await asyncio.sleep(0)
                ended.append(name)

        return run

    async with Supervisor() as supervisor:
        for name in "abc":
            supervisor.start(name, task(name))
        await asyncio.sleep(0)
    assert ended == ["c", "b", "a"]


async def test_cancelling_whoever_waits_cancels_the_rest_as_well():
    started, release, ended = asyncio.Event(), asyncio.Event(), []

    async def stubborn():
        try:
            await forever()
        finally:
            started.set()
            await asyncio.shield(release.wait())

    async def plain():
        try:
            await forever()
        finally:
            ended.append("plain")

    async def group():
        async with Supervisor() as supervisor:
            supervisor.start("plain", plain)
            supervisor.start("stubborn", stubborn)
            await asyncio.sleep(0)

    work = asyncio.create_task(group())
    await started.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await until(lambda: ended)
    release.set()
    await asyncio.sleep(0)


def violation():
    return InvariantViolation("state goes down")


async def test_a_task_whose_cancellation_is_lost_in_a_call_ends_all_the_same():
    called = asyncio.Event()

    async def run():
        called.set()
        try:
            await forever()
        except asyncio.CancelledError:
            raise NotFound("how the call ended") from None

    async with asyncio.timeout(DEADLINE_S):
        async with Supervisor() as supervisor:
            supervisor.start("calls", run)
            await called.wait()


@pytest.mark.parametrize(
    "error",
    [violation(), ExceptionGroup("g", [NotFound("x"), ExceptionGroup("h", [violation()])])],
    ids=["plain", "in groups"],
)
async def test_a_broken_invariant_is_not_survived(error):
    runs = []

    async def run():
        runs.append(1)
        raise error

    async with Supervisor() as supervisor:
        supervisor.start("broken", run)
        with pytest.raises(InvariantViolation, match="state goes down"):
            await supervisor.wait_failed()
    assert runs == [1]


async def test_a_broken_invariant_that_nobody_waits_for_is_no_warning():
    async def run():
        raise violation()

    async with Supervisor() as supervisor:
        supervisor.start("broken", run)
        await asyncio.sleep(0.01)


async def test_guard_returns_what_the_work_returns():
    async def work():
        await asyncio.sleep(0)
        return 7

    async with Supervisor() as supervisor:
        assert await supervisor.guard(work()) == 7


async def test_guard_raises_what_the_work_raises():
    async def work():
        raise NotFound("x")

    async with Supervisor() as supervisor:
        with pytest.raises(NotFound):
            await supervisor.guard(work())


async def test_guard_ends_the_work_when_an_invariant_breaks():
    ended = []

    async def work():
        try:
            await forever()
        finally:
            ended.append(1)

    async def run():
        await asyncio.sleep(0)
        raise violation()

    async with Supervisor() as supervisor:
        supervisor.start("broken", run)
        with pytest.raises(InvariantViolation):
            await supervisor.guard(work())
    assert ended == [1]


async def test_guard_passes_cancellation_on_and_waits_for_it():
    ended = []

    async def work():
        try:
            await forever()
        finally:
            await asyncio.sleep(0.001)
            ended.append(1)

    async with Supervisor() as supervisor:
        guarded = asyncio.create_task(supervisor.guard(work()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        guarded.cancel()
        with pytest.raises(asyncio.CancelledError):
            await guarded
    assert ended == [1]


def test_violations_are_found_in_groups_only():
    assert find_violation(NotFound("x")) is None
    assert find_violation(ExceptionGroup("g", [NotFound("x")])) is None
    inner = violation()
    assert find_violation(ExceptionGroup("g", [NotFound("x"), inner])) is inner


async def test_many_sets_wake_once():
    signal = Signal()
    for _ in range(3):
        signal.set()
    assert await signal.wait(0.0) is True
    assert await signal.wait(0.0) is False


async def test_a_set_during_the_wait_wakes():
    signal = Signal()
    waiting = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    signal.set()
    assert await waiting


async def test_a_cancelled_wait_loses_no_signal():
    signal = Signal()
    waiting = asyncio.create_task(signal.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    signal.set()
    assert await signal.wait(0.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_pauses_double_are_bounded_and_spread(spreads):
    backoff = Backoff(min_s=0.1, max_s=8.0)
    for attempt, spread in enumerate(spreads):
        pause_s = backoff.next_s(spread)
        full_s = min(0.1 * 2**attempt, 8.0)
        assert full_s / 2 - 1e-9 <= pause_s <= full_s + 1e-9
    backoff.reset()
    assert backoff.next_s(0.0) == 0.1


async def test_a_component_whose_group_failed_is_started_again():
    """A group that ends by an error leaves its task looking cancelled (Python 3.11)."""
    runs = 0
    again = asyncio.Event()

    async def fails() -> None:
        raise ValueError("as expected")

    async def component() -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            again.set()
            await asyncio.Event().wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())

    async with asyncio.timeout(20), Supervisor() as supervisor:
        supervisor.start("component", component)
        await again.wait()
