"""Managers find each other, and their cluster, in etcd."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from manager.etcd.backend import EtcdConsensus
from manager.etcd.beginning import begin_cluster
from manager.etcd.presence import find_cluster, require_cluster, require_room
from manager.etcd.settings import parse_url
from manager.leadership.etcd_members import EtcdMembers
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.clock import SystemClock
from shoal.errors import FailedPrecondition, NotLeader
from shoal.model.enums import ActionKind, NodeRole
from shoal.model.objects import Cluster, Node, StoreAction, StoreEntry
from shoal.model.plan import create
from shoal.model.specs import ClusterSpec, NodeSpec
from shoal.model.types import Annotations
from tests.support.etcd import Etcd, Wire, needs_etcd, until_leader

pytestmark = [pytest.mark.etcd, needs_etcd]

LEASE_S = 120
"""Longer than any test: what is seen sooner is no lease that ended."""


def _first_entry(cluster_id: str) -> StoreEntry:
    row = Cluster(id=cluster_id, spec=ClusterSpec(annotations=Annotations(name="default")))
    return StoreEntry(actions=(StoreAction(object=row, kind=ActionKind.CREATE),), proposed_at_ns=1)


async def test_a_prefix_belongs_to_one_cluster(server: Etcd, prefix: str):
    settings, clock = parse_url(server.url(prefix)), SystemClock()
    assert await find_cluster(settings) == ""
    await require_room(settings)
    with pytest.raises(FailedPrecondition, match="holds no cluster below"):
        await require_cluster(settings, "c1")

    outcomes = await asyncio.gather(
        *(begin_cluster(settings, _first_entry(f"c{number}"), clock) for number in range(4)),
        return_exceptions=True,
    )
    assert [one for one in outcomes if one is None] == [None]
    winner = await find_cluster(settings)
    assert outcomes[int(winner[1:])] is None

    await begin_cluster(settings, _first_entry(winner), clock)  # as after a crash in between
    await require_cluster(settings, winner)
    with pytest.raises(FailedPrecondition, match=f"holds cluster {winner}, and this node is in"):
        await require_cluster(settings, "other")
    with pytest.raises(FailedPrecondition, match=f"etcdctl del --prefix /{prefix}/"):
        await require_room(settings)
    with pytest.raises(FailedPrecondition, match="choose another prefix"):
        await begin_cluster(settings, _first_entry("other"), clock)


async def test_a_manager_that_was_killed_leads_again_without_waiting_for_its_lease(
    server: Etcd, prefix: str
):
    query = f"lease_ttl_s={LEASE_S}"
    url = server.url(prefix, query)
    async with AsyncExitStack() as stack, asyncio.timeout(LEASE_S / 2):
        async with Wire(server.port) as wire:
            killed, _ = _manager(f"etcd://127.0.0.1:{wire.port}/{prefix}?{query}", "one:1", "n1")
            async with killed:
                first = await until_leader(killed)
                wire.requests.clear()  # it can say no goodbye

        other = await stack.enter_async_context(_manager(url, "two:1", "n2")[0])
        await other.leading.until(lambda seen: seen.leader_address == "one:1")
        assert set(await other.managers()) == {"n1", "n2"}
        again = await stack.enter_async_context(_manager(url, "one:1", "n1")[0])
        while not (again.leading.value.leader or other.leading.value.leader):
            await asyncio.sleep(0.05)
        assert max(again.leading.value.fence, other.leading.value.fence) > first


async def test_the_leader_keeps_the_managers_in_their_rows_and_resigns_when_demoted(
    server: Etcd, prefix: str
):
    url = server.url(prefix, f"lease_ttl_s={LEASE_S}")
    async with AsyncExitStack() as stack, asyncio.timeout(LEASE_S / 2):
        first, store = _manager(url, "one:1", "n1")
        await stack.enter_async_context(first)
        await until_leader(first)
        manager = NodeSpec(desired_role=NodeRole.MANAGER)
        nodes = [Node(id=f"n{n}", spec=manager, role=NodeRole.MANAGER) for n in (1, 2, 3)]
        await store.commit([create(node) for node in nodes])
        second = await stack.enter_async_context(_manager(url, "two:1", "n2")[0])
        members = EtcdMembers(first, store, "n1")
        running = asyncio.create_task(members.run())
        stack.callback(running.cancel)

        def shown() -> dict[str, tuple[bool, bool]]:
            found = {node.id: node.manager_status for node in store.view.nodes}
            return {key: (one.leader, one.reachable) for key, one in found.items() if one}

        while shown() != {"n1": (True, True), "n2": (False, True), "n3": (False, False)}:
            await asyncio.sleep(0.05)
        leases = {one.member.node_id: one.member.raft_id for one in members.members()}
        await members.remove(leases["n2"])  # nothing to take it out of
        assert first.leading.value.leader
        with pytest.raises(NotLeader):
            await members.remove(leases["n1"])
        await until_leader(second)


def _manager(url: str, address: str, node_id: str) -> tuple[EtcdConsensus, Store]:
    store = Store(Tables(), SystemClock())
    consensus = EtcdConsensus(parse_url(url), store, address=address, node_id=node_id)
    store.attach(consensus)
    return consensus, store
