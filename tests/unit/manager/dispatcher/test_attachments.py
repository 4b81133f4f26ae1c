"""Containers on attachable networks: addresses, names, refusals, and what becomes of them."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import generate_latest

from manager.controlapi.networks import remove_network
from manager.dispatcher.attachments import PAGE_SIZE, Attachments
from manager.dispatcher.driver import Dispatcher
from manager.dispatcher.overlays import EndpointRow, OverlayKey, OverlayKind
from manager.orchestrator.reaper.plan import ORPHAN_AFTER_NS
from manager.reconcile.loop import ReconcileLoop
from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from shoal.model.enums import NodeState, TaskState
from shoal.model.objects import Cluster, Task
from shoal.model.plan import remove, update
from shoal.model.types import NetworkAttachmentConfig, NodeStatus
from shoal.telemetry.metrics import REGISTRY
from tests.support.managing import HandClock, a_store, put_now, running, until
from tests.support.planning import a_network, a_node, a_service

C1 = "c1" * 32


class Rig:
    """A leader without its servers."""

    def __init__(self, *rows) -> None:
        self.clock = HandClock()
        ground = [Cluster(id="c"), a_node("n1"), a_node("n2")]
        self.store, self.proposer = a_store([*ground, *rows], self.clock)
        self.attachments = Attachments(self.store, self.clock)
        self.dispatcher = Dispatcher(self.store, self.clock, manager_id="m1")
        self.loop = ReconcileLoop(self.store, self.clock)

    def running(self):
        return running(self.loop.run, self.dispatcher.run)

    async def attach(
        self, name: str = "box", node: str = "n1", container: str = C1, **wish
    ) -> Task:
        config = NetworkAttachmentConfig(**{"target": "net", **wish})
        return await self.attachments.attach(node, config, container_id=container, name=name)

    def tasks(self) -> list[Task]:
        return list(self.store.view.tasks)


def net(subnet: str = "10.1.0.0/24", **fields):
    return a_network("net", subnet, **{"attachable": True, **fields})


async def test_a_container_has_an_address_and_the_others_learn_its_names():
    rig = Rig(net())
    async with rig.running():
        task = await rig.attach(aliases=("db", "store"))
        assert (task.node_id, task.status.state) == ("n1", TaskState.ASSIGNED)
        assert task.networks[0].addresses == ("10.1.0.2/24",)
        key = OverlayKey(OverlayKind.ENDPOINT, "net", task.id)
        await until(lambda: key in rig.dispatcher.table.overlays.rows)
        row = rig.dispatcher.table.overlays.rows[key]
        assert isinstance(row, EndpointRow)
        assert (row.names, row.addresses, row.ready) == (
            ("box", "db", "store"), ("10.1.0.2",), False,
        )  # fmt: skip
        status = task.status.replaced(state=TaskState.RUNNING)
        put_now(rig.store, rig.proposer, task.replaced(status=status))
        await until(lambda: rig.dispatcher.table.overlays.is_ready(task.id))
        rows = {kind: f'shoal_dispatcher_overlay_rows{{kind="{kind}"}} {number}.0'
                for kind, number in (("network", 1), ("service", 0), ("endpoint", 1))}  # fmt: skip
        shown = generate_latest(REGISTRY).decode()
        assert all(row in shown for row in rows.values()), shown

        (shown,) = rig.dispatcher.show_endpoints("").network_endpoints
        assert (shown.task_id, list(shown.addresses)) == (task.id, ["10.1.0.2"])

        await rig.attachments.detach("n1", task.id)
        await until(lambda: key not in rig.dispatcher.table.overlays.rows)
        await rig.attachments.detach("n1", task.id)
        assert rig.tasks() == []


async def test_asking_again_changes_nothing():
    rig = Rig(net())
    async with rig.running():
        first, second = await asyncio.gather(rig.attach(), rig.attach())
        assert (await rig.attach()).id == first.id == second.id
        assert len(rig.tasks()) == 1
        again = await rig.attach("renamed", aliases=("db",))
        assert [one.id for one in rig.tasks()] == [again.id] != [first.id]
        assert again.networks[0].aliases == ("db",)
        other = await rig.attach(container="c2" * 32)
        assert other.networks[0].addresses != first.networks[0].addresses


@pytest.mark.parametrize(
    ("wish", "error", "text"),
    [
        ({"target": "shut"}, PermissionDenied, "network shut not manually attachable"),
        ({"target": "nowhere"}, NotFound, "network nowhere not found"),
        ({"addresses": ("10.2.0.9",)}, InvalidArgument, "10.2.0.9 must be an address of a host"),
        ({"addresses": ("10.1.0.1",)}, InvalidArgument, "10.1.0.1 is the gateway or set aside"),
        ({"addresses": ("ten",)}, InvalidArgument, "'ten' must be an IP address"),
        ({"aliases": ("a" * 300,)}, InvalidArgument, "aliases: at most 64"),
        ({"container": ""}, InvalidArgument, "container id: must be given"),
    ],
)
async def test_what_is_not_possible_is_refused(wish, error, text):
    rig = Rig(net(), a_network("shut", "10.2.0.0/24"))
    async with rig.running():
        await until(lambda: all(one.driver_state for one in rig.store.view.networks))
        with pytest.raises(error) as caught:
            await rig.attach(**wish)
        assert text in caught.value.message
        assert rig.tasks() == []


async def test_a_full_network_and_a_taken_address_are_explained_and_leave_nothing():
    rig = Rig(net("10.1.0.0/30"))
    async with rig.running():
        first = await rig.attach(addresses=("10.1.0.2",))
        assert first.networks[0].addresses == ("10.1.0.2/30",)
        with pytest.raises(ResourceExhausted, match="all 1 addresses of"):
            await rig.attach("two", container="c2" * 32)
        with pytest.raises(ResourceExhausted, match=r"10\.1\.0\.2 is in use by container box"):
            await rig.attach("two", container="c2" * 32, addresses=("10.1.0.2",))
        assert [task.id for task in rig.tasks()] == [first.id]


async def test_the_gateway_is_given_to_nobody_also_when_it_is_chosen_later():
    rig = Rig(net())
    async with rig.running():  # the network has no gateway yet
        with pytest.raises(ResourceExhausted, match=r"10\.1\.0\.1 is the gateway or set aside"):
            await rig.attach(addresses=("10.1.0.1",))


async def test_a_network_in_use_by_a_container_is_not_removed():
    rig = Rig(net())
    async with rig.running():
        await rig.attach("web1")
        with pytest.raises(FailedPrecondition, match="network net is in use by container web1"):
            remove_network(rig.store.view, "net")


async def test_nobody_detaches_what_is_anothers():
    rig = Rig(net(), a_service("web"))
    async with rig.running():
        task = await rig.attach()
        with pytest.raises(PermissionDenied, match="doesn't belong to this node"):
            await rig.attachments.detach("n2", task.id)
        await until(lambda: any(one.service_id for one in rig.tasks()))
        other = next(one for one in rig.tasks() if one.service_id)
        with pytest.raises(PermissionDenied, match="doesn't belong to this node"):
            await rig.attachments.detach(other.node_id, other.id)


async def test_addresses_of_a_dead_node_are_kept_for_a_day_and_of_a_removed_one_free_at_once():
    rig = Rig(net())
    async with rig.running():
        task, other = await rig.attach(), await rig.attach(node="n2")
        for node_id in ("n1", "n2"):
            node = rig.store.view.nodes.resolve(node_id)
            down = node.replaced(status=NodeStatus(state=NodeState.DOWN))
            await rig.store.commit([update(down)])
        node = rig.store.view.nodes.resolve("n2")
        await rig.store.commit([remove(node)])
        await until(lambda: [one.id for one in rig.tasks()] == [task.id])
        assert other.id != task.id
        rig.clock.advance(ORPHAN_AFTER_NS / 1e9 + 1)
        put_now(rig.store, rig.proposer, a_node("n3"))
        await until(lambda: not rig.tasks())


async def test_networks_are_listed_in_pages_as_far_as_the_caller_may_know_them():
    many = [a_network(f"n{number:03}", "", attachable=number % 2 == 0) for number in range(450)]
    rig = Rig(*many)
    seen, after, more = [], "", True
    while more:
        page, more = rig.attachments.networks(after, sees=lambda one: one.spec.attachable)
        assert len(page) <= PAGE_SIZE
        seen += [one.id for one in page]
        after = page[-1].id
    assert seen == [f"n{number:03}" for number in range(0, 450, 2)]
    assert rig.attachments.networks(after, sees=lambda _: False) == ([], False)
