"""What people see of a service's endpoints follows from table, store and acknowledgements."""

from __future__ import annotations

import pytest

from manager.dispatcher.driver import Dispatcher
from shoal.api.v1 import control_pb2 as pb
from shoal.errors import NotFound
from shoal.model.enums import TaskState
from shoal.model.types import Annotations, NodeDescription
from tests.support.managing import HandClock, a_store, put_now, running, until
from tests.support.planning import a_node, a_port
from tests.unit.manager.dispatcher.test_endpoints import a_member, a_published
from tests.unit.manager.dispatcher.test_overlays import attached, made, on


async def test_ready_and_draining_tasks_and_what_each_node_has_acknowledged():
    clock = HandClock()
    rows = (a_node("n1"), a_node("n2"), a_published(), a_member("t1"), a_member("t2"))
    store, proposer = a_store(rows, clock)
    dispatcher = Dispatcher(store, clock, manager_id="m1")
    async with running(dispatcher.run):
        for node in ("n1", "n2"):
            await dispatcher.register(node, NodeDescription(), "192.0.2.1")
        with dispatcher.stream("n1"), dispatcher.stream("n2"):
            for node in ("n1", "n2"):
                await dispatcher.acknowledge(node, dispatcher.table.version, [])
            before = dispatcher.table.version
            stopping = store.view.tasks.resolve("t2").with_desired_state(TaskState.SHUTDOWN)
            put_now(store, proposer, stopping)
            await until(lambda: dispatcher.table.version > before)
            taken = ["port 8080/tcp is in use"]
            await dispatcher.acknowledge("n1", dispatcher.table.version, taken)
            shown = dispatcher.show_endpoints("web")

    assert [(one.task_id, one.state, list(one.waits_for)) for one in shown.endpoints] == [
        ("t1", pb.SERVICE_ENDPOINT_STATE_READY, []),
        ("t2", pb.SERVICE_ENDPOINT_STATE_DRAINING, ["n2"]),
    ]
    assert {(one.published_port, one.target_port) for one in shown.endpoints} == {(8080, 80)}
    assert {one.address for one in shown.endpoints} == {"10.0.0.9"}
    assert shown.version == dispatcher.table.version
    assert [(n.node_id, n.version, n.connected, n.problem) for n in shown.nodes] == [
        ("n1", shown.version, True, taken[0]),
        ("n2", before, True, ""),
    ]
    with pytest.raises(NotFound):
        dispatcher.show_endpoints("db")


async def test_weights_follow_the_labels_of_nodes():
    clock = HandClock()
    port = a_port(80, 8080).replaced(weight_label="size")
    rows = (
        a_node("n1", labels={"size": "4"}), a_node("n2"), a_published("web", port),
        a_member("t1", node_id="n1"), a_member("t2", node_id="n2"),
    )  # fmt: skip
    store, proposer = a_store(rows, clock)
    dispatcher = Dispatcher(store, clock, manager_id="m1")

    def weights() -> list[tuple[str, int]]:
        return [(one.task_id, one.weight) for one in dispatcher.show_endpoints("web").endpoints]

    async with running(dispatcher.run):
        await until(lambda: weights() == [("t1", 4), ("t2", 1)])
        before = dispatcher.table.version
        node = store.view.nodes.resolve("n2")
        labelled = node.spec.replaced(annotations=Annotations(labels={"size": "9"}))
        put_now(store, proposer, node.replaced(spec=labelled))
        await until(lambda: weights() == [("t1", 4), ("t2", 9)])
        assert dispatcher.table.version > before


async def test_places_on_networks_without_a_published_port():
    clock = HandClock()
    rows = (
        a_node("n1"), made("red"), made("blue"), on("red", "blue"),
        attached("t1", "red", "blue"), attached("t2", "red", number=10),
        attached("t3", "red", number=11, state=TaskState.STARTING),
    )  # fmt: skip
    store, proposer = a_store(rows, clock)
    dispatcher = Dispatcher(store, clock, manager_id="m1")
    async with running(dispatcher.run):
        await dispatcher.register("n1", NodeDescription(), "192.0.2.1")
        with dispatcher.stream("n1"):
            await dispatcher.acknowledge("n1", dispatcher.table.version, [])
            before = dispatcher.table.version
            stopping = store.view.tasks.resolve("t2").with_desired_state(TaskState.SHUTDOWN)
            put_now(store, proposer, stopping)
            await until(lambda: dispatcher.table.version > before)
            shown = dispatcher.show_endpoints("web")
            await dispatcher.acknowledge("n1", dispatcher.table.version, [])
            later = dispatcher.show_endpoints("web")

    def places(answer: pb.ListServiceEndpointsResponse) -> list[tuple[object, ...]]:
        return [
            (one.task_id, one.network, list(one.addresses)[:1], one.state, list(one.waits_for))
            for one in answer.network_endpoints
        ]

    ready, draining = pb.SERVICE_ENDPOINT_STATE_READY, pb.SERVICE_ENDPOINT_STATE_DRAINING
    assert places(shown) == [
        ("t1", "blue", ["10.0.2.9"], ready, []),
        ("t1", "red", ["10.0.1.9"], ready, []),
        ("t2", "red", ["10.0.1.10"], draining, ["n1"]),
    ]
    assert places(later)[2:] == [("t2", "red", ["10.0.1.10"], draining, [])]
    assert shown.manager_id == "m1"


async def test_under_a_new_manager_a_task_that_drains_waits_for_every_node():
    clock = HandClock()
    service = a_published()
    stopping = a_member("t1").replaced(endpoint=service.endpoint)
    stopping = stopping.with_desired_state(TaskState.SHUTDOWN)
    store, _ = a_store((a_node("n1"), a_node("n2"), service, stopping), clock)
    dispatcher = Dispatcher(store, clock, manager_id="m2")
    async with running(dispatcher.run, dispatcher.run_expiry):
        await until(lambda: dispatcher.acknowledged.versions.keys() == {"n1", "n2"})
        (shown,) = dispatcher.show_endpoints("web").endpoints
        await dispatcher.register("n1", NodeDescription(), "192.0.2.1")
        with dispatcher.stream("n1"):
            await dispatcher.acknowledge("n1", dispatcher.table.version, [])
            (later,) = dispatcher.show_endpoints("web").endpoints
    assert (shown.task_id, list(shown.waits_for)) == ("t1", ["n1", "n2"])
    assert list(later.waits_for) == ["n2"]
