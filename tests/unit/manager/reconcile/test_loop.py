"""The loop around the planners: it follows, waits for timers, resyncs and survives refusals."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from manager.reconcile import loop as loop_module
from manager.reconcile.loop import CHANGES_MIN, ReconcileLoop
from manager.store.store import TransactionTooLarge
from shoal.errors import ResourceExhausted, SequenceConflict, Unavailable
from shoal.model.enums import TaskState
from shoal.model.objects import Cluster
from shoal.model.plan import update
from tests.support.managing import HandClock, MemoryProposer, a_store, put_now, running, until
from tests.support.planning import a_node, a_service

CLUSTER = Cluster(id="c", ingress_pool="10.240.0.0/12", ingress_subnet_mask_length=22)


class Rig:
    def __init__(self, *rows, proposer=None) -> None:
        self.clock = HandClock()
        self.store, self.proposer = a_store([CLUSTER, *rows], self.clock)
        if proposer is not None:
            self.proposer = proposer(self.store)
            self.store.attach(self.proposer)
        self.loop = ReconcileLoop(self.store, self.clock)

    def assigned(self) -> int:
        return sum(task.status.state is TaskState.ASSIGNED for task in self.store.view.tasks)


async def test_it_begins_with_everything_and_follows_what_comes():
    rig = Rig(a_node("n1"), a_service("web", replicas=3))
    async with running(rig.loop.run):
        await until(lambda: rig.assigned() == 3)
        put_now(rig.store, rig.proposer, a_service("db", replicas=250))
        await until(lambda: rig.assigned() == 253)
        rig.proposer.entries.clear()
        await asyncio.sleep(0.05)
        assert rig.proposer.entries == [], "at rest it writes nothing"


class Conflicting(MemoryProposer):
    """Somebody else is faster, the first ten times."""

    left = 10

    async def propose(self, entry):
        if self.left:
            self.left -= 1
            raise SequenceConflict("update out of sequence")
        return await super().propose(entry)


async def test_conflicts_are_planned_again_at_once():
    rig = Rig(a_node("n1"), a_service("web", replicas=3), proposer=Conflicting)
    async with running(rig.loop.run):
        await until(lambda: rig.assigned() == 3)


@pytest.mark.parametrize("error", [ResourceExhausted("disk full"), Unavailable("log failed")])
async def test_a_refusing_log_is_not_hammered_and_everything_follows_when_it_writes(error):
    rig = Rig(a_node("n1"), a_service("web", replicas=3))
    rig.proposer.error = error
    with capture_logs() as logs:
        async with running(rig.loop.run):
            await until(lambda: len(refused(logs)) == 3)
            await asyncio.sleep(0.05)
            assert len(refused(logs)) < 6, "pauses grow from 0.1 s"
            rig.proposer.error = None
            await until(lambda: rig.assigned() == 3)


def refused(logs) -> list[object]:
    return [line for line in logs if line["event"] == "reconcile.refused"]


class Narrow(MemoryProposer):
    """An entry has room for a few changes only."""

    room = CHANGES_MIN

    async def propose(self, entry):
        if len(entry.actions) > self.room:
            raise TransactionTooLarge(f"{len(entry.actions)} changes are too large")
        return await super().propose(entry)


async def test_plans_too_large_for_an_entry_are_made_smaller_and_grow_again():
    rig = Rig(a_node("n1"), a_service("web", replicas=40), proposer=Narrow)
    with capture_logs() as logs:
        async with running(rig.loop.run):
            await until(lambda: rig.assigned() == 40)
            rig.proposer.room = 200
            rig.proposer.entries.clear()
            put_now(rig.store, rig.proposer, a_service("db", replicas=400))
            await until(lambda: rig.assigned() == 440)
            assert max(len(entry.actions) for entry in rig.proposer.entries) > 100
    assert refused(logs) == []


async def test_everything_is_looked_at_again_after_the_resync_period_also_when_busy(monkeypatch):
    rig = Rig(a_node("n1"), a_service("web", replicas=1))
    seen: list[bool] = []
    plan_round = loop_module.plan_round

    def spy(view, dirty, **options):
        seen.append(dirty.everything)
        return plan_round(view, dirty, **options)

    monkeypatch.setattr(loop_module, "plan_round", spy)
    async with running(rig.loop.run):
        await until(lambda: rig.assigned() == 1)
        seen.clear()
        for _ in range(5):
            rig.clock.advance(loop_module.RESYNC_PERIOD_S / 4)
            web = rig.store.view.services.resolve("web")
            spec = web.spec.replaced(annotations=web.spec.annotations.replaced(labels={"x": "y"}))
            await rig.store.commit([update(web.replaced(spec=spec))])
            rounds = len(seen)
            put_now(rig.store, rig.proposer, a_service(f"s{rounds}", replicas=0))
            await until(lambda: len(seen) > rounds)  # noqa: B023
        assert seen.count(True) == 1


class SlowClock(HandClock):
    """Each look at it takes a moment, and with that each round."""

    def monotonic_s(self) -> float:
        self.advance(0.02)
        return super().monotonic_s()


async def test_what_is_reported_one_after_the_other_is_looked_at_together(monkeypatch):
    rig = Rig(a_node("n1"), a_service("web", replicas=1))
    rig.loop = ReconcileLoop(rig.store, SlowClock())
    rounds: list[object] = []
    plan_round = loop_module.plan_round

    def spy(view, dirty, **options):
        rounds.append(dirty)
        return plan_round(view, dirty, **options)

    monkeypatch.setattr(loop_module, "plan_round", spy)
    async with running(rig.loop.run):
        await until(lambda: rig.assigned() == 1)
        (task,) = rig.store.view.tasks
        rounds.clear()
        for number in range(200):
            state = TaskState.STARTING if number % 2 else TaskState.RUNNING
            status = task.status.replaced(state=state)
            put_now(rig.store, rig.proposer, task.replaced(status=status))
            await asyncio.sleep(0.001)
        assert len(rounds) < 50
        put_now(rig.store, rig.proposer, a_service("db", replicas=1))
        await until(lambda: rig.assigned() == 1)
