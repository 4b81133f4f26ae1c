"""Raft members over real gRPC and mutual TLS: what the memory network cannot show."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import grpc
import pytest

from manager.raft.messages import Message, MessageKind
from manager.transport import metadata, snapshots
from manager.transport.codec import frames
from shoal.api.v1 import raft_pb2
from shoal.api.v1.raft_pb2_grpc import RaftStub
from shoal.errors import NotLeader, Unavailable
from shoal.model.enums import NodeRole
from shoal.model.objects import Node, StoreEntry
from shoal.model.plan import create, update
from shoal.model.specs import NodeSpec
from shoal.security.roles import Role
from tests.support.managing import an_identity, refusal, until
from tests.support.planning import a_task
from tests.support.raft_grpc import GrpcRig, dial_as
from tests.unit.manager.consensus.test_driver import a_leader, join, same_state, the_leader

EMPTY_FRAME = next(iter(frames((Message(kind=MessageKind.HEARTBEAT, to=1, sender=0x99),))))


@asynccontextmanager
async def a_cluster(tmp_path, count=3, **options):
    members = [GrpcRig(tmp_path / f"m{n}", f"m{n}", **options) for n in range(count)]
    try:
        await members[0].start(StoreEntry())
        await until(lambda: members[0].leads)
        for member in members[1:]:
            await join(members, member)
        yield members
    finally:
        for member in members:
            await member.stop()


async def test_writes_reach_all_and_a_stopped_leader_is_replaced(tmp_path):
    async with a_cluster(tmp_path) as members:
        leader = the_leader(members)
        started = time.monotonic()
        await asyncio.gather(*(leader.store.commit([create(a_task(f"t{n}"))]) for n in range(1000)))
        print(f"1000 writes in {time.monotonic() - started:.2f} s")
        await leader.stop()
        started = time.monotonic()
        new = await a_leader([member for member in members if member is not leader])
        print(f"new leader after {time.monotonic() - started:.2f} s")
        await new.store.commit([create(a_task("after"))])
        await leader.start()
        await same_state(members)
        assert len(leader.store.view.tasks) == 1001


async def test_a_partition_is_survived_by_the_majority_and_healed(tmp_path):
    async with a_cluster(tmp_path) as members:
        old = the_leader(members)
        others = [member for member in members if member is not old]
        old.transport.cut = frozenset(member.me.raft_id for member in others)
        for member in others:
            member.transport.cut = frozenset({old.me.raft_id})
        new = await a_leader(others)
        await new.store.commit([create(a_task("kept"))])
        await until(lambda: not old.leads)
        for member in members:
            member.transport.cut = frozenset()
        await same_state(members)
        assert old.store.view.tasks.get("kept") is not None


async def test_a_member_far_behind_gets_a_snapshot_that_resumes_after_a_break(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("manager.consensus.snapshots.ENTRIES_KEPT", 10)
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 1_000)
    breaks = []
    original = snapshots.Incoming.put

    async def breaking(self, chunk):
        if self.offset > 3_000 and len(breaks) < 2 and self.offset not in breaks:
            breaks.append(self.offset)
            raise Unavailable("cut off")
        await original(self, chunk)

    async with a_cluster(tmp_path, snapshot_interval=50) as members:
        leader = the_leader(members)
        slow = next(member for member in members if not member.leads)
        await slow.stop()
        for number in range(150):
            await leader.store.commit([create(a_task(f"t{number}"))])
        await until(lambda: leader.running.raft.core.log.first_index > 60)
        monkeypatch.setattr(snapshots.Incoming, "put", breaking)
        await slow.start()
        await same_state(members)
        assert len(breaks) == 2
        assert breaks[1] > breaks[0], "it went on where it broke off"


async def test_a_manager_that_moved_is_found_again(tmp_path):
    async with a_cluster(tmp_path) as members:
        follower = next(member for member in members if not member.leads)
        await follower.stop()
        moved = GrpcRig(follower.place.directory, follower.name)
        members[members.index(follower)] = moved
        await moved.start()
        leader = the_leader(members)
        await leader.store.commit([create(a_task("t"))])
        await same_state(members)


async def test_strangers_and_removed_members_are_refused(tmp_path):
    async with a_cluster(tmp_path) as members:
        leader = the_leader(members)
        victim, other = (member for member in members if not member.leads)

        async def opened_as(identity, sender, to) -> str:
            async with dial_as(identity)(leader.address) as channel:
                call = RaftStub(channel).Stream(metadata=metadata.metadata(sender, to))
                return await refusal(read_all(call))

        own = leader.me.raft_id
        worker = an_identity("worker", Role.WORKER)
        assert "PERMISSION_DENIED" in await opened_as(worker, 5, own)
        stranger = an_identity("stranger", Role.MANAGER)
        assert "belongs to node" in await opened_as(stranger, victim.me.raft_id, own)
        assert "not 77" in await opened_as(victim.identity, 0x77, own)
        assert "this is manager" in await opened_as(victim.identity, victim.me.raft_id, 7)
        await leader.changes.remove(victim.me.raft_id)
        with pytest.raises(Exception, match="was removed from the cluster"):
            async with asyncio.timeout(40):
                await victim.running.wait_failed()
        assert other.running.roster.removed == {victim.me.raft_id}


async def test_a_demoted_manager_is_not_heard_under_another_raft_id(tmp_path):
    """Its old certificate is still valid; by the store it is a worker."""
    async with a_cluster(tmp_path) as members:
        leader = the_leader(members)
        demoted = an_identity("demoted", Role.MANAGER)
        manages = NodeSpec(desired_role=NodeRole.MANAGER)
        await leader.store.commit([create(Node(id="demoted", spec=manages))])
        await same_state(members)

        def opened(member):
            call = dial_as(demoted)(member.address)
            pairs = metadata.metadata(0x99, member.me.raft_id)
            return call, RaftStub(call).Stream(metadata=pairs)

        streams = [opened(member) for member in members]
        for _, call in streams:
            assert (await call.read()).raft_id  # an id nobody knows yet, as of one that joins
        row = leader.store.view.nodes.get("demoted")
        await leader.store.commit([update(row.replaced(spec=NodeSpec()))])
        await same_state(members)
        for member, (channel, call) in zip(members, streams, strict=True):
            await call.write(raft_pb2.RaftFrame(messages=EMPTY_FRAME))
            assert "demoted is a worker now" in await refusal(read_all(call))
            again, call = opened(member)
            assert "demoted is a worker now" in await refusal(read_all(call))
            await channel.close()
            await again.close()


async def test_a_newcomer_listens_to_a_leader_that_left_and_came_back(tmp_path):
    """In the snapshot it begins with, the leader's node is a member under the id of that time."""
    async with a_cluster(tmp_path) as members:
        first, second, third = members
        assert first.leads
        await first.changes.transfer_leader(second.me.raft_id)
        await until(lambda: second.leads)
        await second.changes.remove(first.me.raft_id)
        await first.stop()
        again = members[0] = GrpcRig(tmp_path / "again", first.name)
        again.identity = first.identity
        await join([second, third], again)
        await second.changes.transfer_leader(again.me.raft_id)
        await until(lambda: again.leads)
        newcomer = GrpcRig(tmp_path / "newcomer", "newcomer")
        members.append(newcomer)
        await join(members, newcomer)
        await same_state(members)


async def read_all(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_messages_in_the_name_of_another_member_are_refused(tmp_path):
    async with a_cluster(tmp_path, count=2) as members:
        leader = the_leader(members)
        follower = next(member for member in members if not member.leads)
        async with dial_as(follower.identity)(leader.address) as channel:
            pairs = metadata.metadata(follower.me.raft_id, leader.me.raft_id)
            call = RaftStub(channel).Stream(metadata=pairs)
            await call.read()
            await call.write(raft_pb2.RaftFrame(messages=b"\xc1"))
            assert "raft frame" in await refusal(read_all(call))


@pytest.mark.timeout(120)
async def test_five_members_survive_two_and_shrink_to_one(tmp_path):
    async with a_cluster(tmp_path, count=5) as members:
        leader = the_leader(members)
        await asyncio.gather(*(leader.store.commit([create(a_task(f"t{n}"))]) for n in range(200)))
        dead = [leader, next(member for member in members if member is not leader)]
        for member in dead:
            await member.stop()
        alive = [member for member in members if member not in dead]
        new = await a_leader(alive)
        await new.store.commit([create(a_task("with-three"))])
        await until(lambda: not any(new.running.is_reachable(one.me.raft_id) for one in dead))
        for member in dead:
            await new.changes.remove(member.me.raft_id)
        await same_state(alive)
        while len(alive) > 1:
            leader = await a_leader(alive)
            with pytest.raises(NotLeader):
                await leader.changes.remove(leader.me.raft_id)
            other = await a_leader([member for member in alive if member is not leader])
            await other.changes.remove(leader.me.raft_id)
            alive.remove(leader)
        last = await a_leader(alive)
        await last.store.commit([create(a_task("alone"))])
        assert len(last.store.view.tasks) == 202
        assert len(last.running.roster.removed) == 4
