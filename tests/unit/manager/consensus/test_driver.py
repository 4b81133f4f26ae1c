"""Raft members over a network in memory: writes, failover, catching up, membership, fencing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from manager.raft.messages import MessageKind
from shoal.errors import (
    FailedPrecondition,
    NotLeader,
    SequenceConflict,
    Unavailable,
)
from shoal.model.objects import StoreEntry
from shoal.model.plan import create, update
from tests.support.managers import MemberRig, MemoryNetwork, digest
from tests.support.managing import until
from tests.support.planning import a_service, a_task

FIRST = StoreEntry()


@asynccontextmanager
async def a_cluster(tmp_path, count=3, **options):
    options.setdefault("tick_s", 0.02)
    network = MemoryNetwork()
    members = [MemberRig(network, tmp_path / f"m{n}", f"m{n}", **options) for n in range(count)]
    try:
        await members[0].start(FIRST)
        await until(lambda: members[0].leads)
        for member in members[1:]:
            await join(members, member)
        yield members
    finally:
        for member in members:
            await member.stop()


async def join(members, newcomer):
    leader = the_leader(members)
    await newcomer.start()
    await leader.changes.add_learner(newcomer.me)
    await until(lambda: newcomer.running.replica.applied > 0)
    await until(lambda: can_promote(leader, newcomer))
    await leader.changes.promote(newcomer.me.raft_id)


def can_promote(leader, newcomer):
    status = {one.member.raft_id: one for one in leader.changes.members()}[newcomer.me.raft_id]
    return status.is_reachable and status.behind is not None and status.behind < 50


def the_leader(members):
    return next(member for member in members if member.leads)


async def a_leader(members):
    await until(lambda: any(member.leads for member in members))
    return the_leader(members)


async def drain(watcher):
    while True:
        await watcher.next()


async def same_state(members):
    await until(
        lambda: len({m.running.replica.applied for m in members}) == 1, "all applied the same"
    )
    states = {digest(member.store) for member in members}
    assert len(states) == 1


async def test_three_members_hold_the_same_state(tmp_path):
    async with a_cluster(tmp_path) as members:
        leader = the_leader(members)
        await asyncio.gather(*(leader.store.commit([create(a_task(f"t{n}"))]) for n in range(200)))
        await same_state(members)
        assert len(members[2].store.view.tasks) == 200


async def test_pipelined_conflicts_are_decided_alike(tmp_path):
    async with a_cluster(tmp_path) as members:
        leader = the_leader(members)
        await leader.store.commit([create(a_service("web"))])
        web = leader.store.view.services.resolve("web")
        results = await asyncio.gather(
            *(leader.store.commit([update(web)]) for _ in range(8)), return_exceptions=True
        )
        assert sum(isinstance(one, SequenceConflict) for one in results) == 7
        await same_state(members)


async def test_followers_refuse_proposals_and_name_the_leader(tmp_path):
    async with a_cluster(tmp_path) as members:
        follower = next(member for member in members if not member.leads)
        with pytest.raises(NotLeader) as caught:
            await follower.store.commit([create(a_task("t"))])
        assert caught.value.context["leader_address"] == "m0:2377"


async def test_failover_loses_nothing_acknowledged(tmp_path):
    async with a_cluster(tmp_path) as members:
        acknowledged = []
        for turn in range(4):
            leader = await a_leader(members)
            for number in range(20):
                await leader.store.commit([create(a_task(f"t{turn}-{number}"))])
                acknowledged.append(f"t{turn}-{number}")
            await leader.stop()
            others = [member for member in members if member is not leader]
            new = await a_leader(others)
            await until(lambda new=new: set(acknowledged) <= {t.id for t in new.store.view.tasks})
            await leader.start()
        await a_leader(members)
        await same_state(members)


async def test_a_leader_that_is_cut_off_fails_what_waits_and_its_term_is_over(tmp_path):
    async with a_cluster(tmp_path) as members:
        old = the_leader(members)
        term = old.running.leading.value.term
        members[0].network.cut = {old.me.raft_id}
        waiting = asyncio.create_task(old.store.commit([create(a_task("lost"))]))
        barrier = asyncio.create_task(old.running.read_barrier())
        others = [member for member in members if member is not old]
        new = await a_leader(others)
        await new.store.commit([create(a_task("kept"))])
        with pytest.raises(Unavailable, match="may or may not"):
            await waiting
        with pytest.raises(Unavailable, match="too few of the managers"):
            await barrier
        members[0].network.cut = set()
        await same_state(members)
        assert {task.id for task in old.store.view.tasks} == {"kept"}
        with pytest.raises(NotLeader):
            await new.running.propose(FIRST, term=term)
        await new.running.propose(FIRST, term=new.running.leading.value.term)


async def test_a_read_barrier_waits_for_a_quorum(tmp_path):
    async with a_cluster(tmp_path) as members:
        leader = the_leader(members)
        await asyncio.gather(*(leader.running.read_barrier() for _ in range(50)))
        await leader.store.commit([create(a_task("t"))])
        follower = next(member for member in members if not member.leads)
        await follower.running.read_barrier()
        assert follower.store.view.tasks.get("t") is not None
        leader.network.drop = lambda message: message.kind is MessageKind.HEARTBEAT_RESPONSE
        barrier = asyncio.create_task(leader.running.read_barrier())
        await asyncio.sleep(0.1)
        assert not barrier.done()
        leader.network.drop = lambda message: False
        await barrier


async def test_a_slow_follower_catches_up_by_snapshot_and_its_watchers_resync(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("manager.consensus.snapshots.ENTRIES_KEPT", 10)
    async with a_cluster(tmp_path, snapshot_interval=50) as members:
        leader = the_leader(members)
        slow = next(member for member in members if not member.leads)
        leader.network.cut = {slow.me.raft_id}
        for number in range(150):
            await leader.store.commit([create(a_task(f"t{number}"))])
        await until(lambda: leader.running.raft.core.log.first_index > 60)
        with slow.store.watch() as watcher:
            leader.network.cut = set()
            await same_state(members)
            with pytest.raises(FailedPrecondition, match="fell behind"):
                await drain(watcher)
        await slow.stop()
        await slow.start()
        await same_state(members)


async def test_members_are_added_and_removed_within_the_rules(tmp_path):
    async with a_cluster(tmp_path) as members:
        leader = the_leader(members)
        follower, other = (member for member in members if not member.leads)
        await other.stop()
        await until(lambda: not leader.running.is_reachable(other.me.raft_id))
        with pytest.raises(FailedPrecondition, match="which is no majority"):
            await leader.changes.remove(follower.me.raft_id)
        await leader.changes.remove(other.me.raft_id)
        assert len(leader.changes.members()) == 2
        with pytest.raises(FailedPrecondition, match="cannot return"):
            await leader.changes.add_learner(other.me)
        with pytest.raises(NotLeader):
            await leader.changes.remove(leader.me.raft_id)
        new = await a_leader(members)
        assert new is follower
        await new.changes.remove(leader.me.raft_id)
        with pytest.raises(FailedPrecondition, match="the last manager"):
            await new.changes.remove(new.me.raft_id)
        await new.store.commit([create(a_task("alone"))])
