"""A wall clock that jumps by a year, to and fro: nobody waits for it, and nothing is lost."""

from __future__ import annotations

import asyncio

import pytest
from typing_extensions import override

from manager.dispatcher.driver import Dispatcher
from manager.reconcile.loop import ReconcileLoop
from shoal.clock import SteadyClock
from shoal.model.enums import NodeState, TaskState
from shoal.model.objects import Cluster
from shoal.model.plan import create
from shoal.model.types import NodeDescription, RestartPolicy
from tests.support.alone import alone, rows_after_restart
from tests.support.managing import HandClock, a_store, put_now, running, until
from tests.support.planning import a_node, a_service, a_task

YEAR_S = 365 * 24 * 3600.0
JUMPS = [-YEAR_S, YEAR_S]
CLUSTER = Cluster(id="c", ingress_pool="10.240.0.0/12", ingress_subnet_mask_length=22)


class JumpingClock(HandClock):
    """Its wall time is set at will; the monotonic one goes on by hand, as always."""

    def __init__(self) -> None:
        super().__init__()
        self.off_ns = 0

    def jump(self, seconds: float) -> None:
        self.off_ns += int(seconds * 1e9)

    @override
    def now_ns(self) -> int:
        return super().now_ns() + self.off_ns


def test_a_steady_clock_follows_forward_and_never_goes_back():
    clock = JumpingClock()
    steady = SteadyClock(clock)
    start = clock.now_ns()
    clock.advance(2)
    assert steady.now_ns() == start + 2_000_000_000
    clock.jump(-YEAR_S)
    clock.advance(3)
    assert steady.now_ns() == start + 5_000_000_000
    clock.jump(YEAR_S)
    assert steady.now_ns() == clock.now_ns() == start + 5_000_000_000
    clock.jump(YEAR_S)
    assert steady.now_ns() == clock.now_ns()
    assert steady.monotonic_s() == clock.monotonic_s()


@pytest.mark.parametrize("jump_s", JUMPS)
async def test_a_task_that_failed_is_started_again_after_its_delay(jump_s: float):
    """Not after the year by which the leader's clock was set back."""
    clock = JumpingClock()
    service = a_service("web", replicas=1)
    policy = RestartPolicy(delay_ns=5_000_000_000)
    service = service.replaced(
        spec=service.spec.replaced(task=service.spec.task.replaced(restart=policy))
    )
    base, proposer = a_store([CLUSTER, a_node("n1"), service], clock)
    store = base.through(proposer)
    async with running(ReconcileLoop(store, store.clock).run):
        await until(lambda: _states(store) == [TaskState.ASSIGNED])
        (task,) = store.view.tasks
        failed = task.status.replaced(state=TaskState.FAILED, applied_at_ns=store.clock.now_ns())
        put_now(base, proposer, task.with_status(failed))
        await until(lambda: len(list(store.view.tasks)) == 2)
        (waiting,) = (task for task in store.view.tasks if task.desired_state is TaskState.READY)
        clock.jump(jump_s)
        for _ in range(12):
            clock.advance(0.5)
            # Anything that happens makes the loop look at the time again.
            put_now(base, proposer, store.view.services.resolve("web"))
            await asyncio.sleep(0.01)

        def runs() -> bool:
            return store.view.tasks.resolve(waiting.id).desired_state is TaskState.RUNNING

        await until(runs)


@pytest.mark.parametrize("jump_s", JUMPS)
async def test_a_node_is_judged_by_its_beats_alone(jump_s: float):
    clock = JumpingClock()
    store, _ = a_store([a_node("n1")], clock)
    dispatcher = Dispatcher(store, clock, manager_id="m1")
    session_id = await dispatcher.register("n1", NodeDescription(hostname="h"), "192.0.2.1")
    for turn in range(40):
        if turn == 20:
            clock.jump(jump_s)
        clock.advance(0.25)
        dispatcher.sessions.beat("n1", session_id, clock.monotonic_s())
        await dispatcher.expire()
        assert store.view.nodes.resolve("n1").status.state is NodeState.READY
    clock.advance(2)
    await dispatcher.expire()
    assert store.view.nodes.resolve("n1").status.state is NodeState.DOWN


@pytest.mark.parametrize("jump_s", JUMPS)
async def test_a_leader_leads_on_and_its_log_stays_in_order(tmp_path, jump_s: float):
    clock = JumpingClock()
    async with alone(tmp_path, clock=clock) as (store, driver):
        term = driver.raft.term
        versions = []
        for number in range(10):
            if number == 5:
                clock.jump(jump_s)
            versions.append((await store.commit([create(a_task(f"t{number}"))])).version)
        await asyncio.sleep(3 * driver.tick_s)
        assert driver.leading.value.ready
        assert driver.raft.term == term
        assert versions == sorted(versions)
        expected = {row.id: row for row in store.rows()}
    assert await rows_after_restart(tmp_path) == expected


def _states(store) -> list[TaskState]:
    return [task.status.state for task in store.view.tasks]
