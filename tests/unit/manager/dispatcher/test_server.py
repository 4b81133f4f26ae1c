"""The Dispatcher service over mutual TLS: sessions, streams, and how both end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from manager.dispatcher.driver import Dispatcher
from manager.dispatcher.server import DispatcherServer
from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.api.v1.dispatcher_pb2_grpc import DispatcherStub, add_DispatcherServicer_to_server
from shoal.clock import SystemClock
from shoal.ids import NodeId
from shoal.model.enums import NodeState, TaskState
from shoal.model.objects import Cluster
from shoal.model.plan import remove
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import ManagerStatus, NodeIngress, RootCa
from tests.support.managing import (
    Served,
    a_store,
    an_identity,
    put_now,
    refusal,
    running,
    served,
    until,
)
from tests.support.planning import a_node, a_task
from tests.unit.manager.dispatcher.test_endpoints import a_member, a_published

TIMEOUT_S = 20.0
N1, N2 = an_identity("n1"), an_identity("n2")


class Rig:
    def __init__(self) -> None:
        cluster = Cluster(id="c", root_ca=RootCa(certificate=b"root"), data_path_port=7789)
        manager = a_node("m1").replaced(manager_status=ManagerStatus(address="192.0.2.1:2377"))
        clock = SystemClock()
        self.store, self.proposer = a_store([cluster, manager, a_node("n1"), a_node("n2")], clock)
        self.dispatcher = Dispatcher(self.store, clock, manager_id="m1")
        self.servicer = DispatcherServer(self.dispatcher, self.store, clock)
        self.at: Served
        self.stub: DispatcherStub

    def put(self, *rows) -> None:
        for row in rows:
            put_now(self.store, self.proposer, row)

    async def session(self, stub: DispatcherStub | None = None):
        """Open a session. Result: the call, and the first message."""
        description = types_pb2.NodeDescription(hostname="host-n1")
        call = (stub or self.stub).Session(pb.SessionRequest(description=description))
        return call, await read(call)

    async def assignments(self, session_id: str, stub: DispatcherStub | None = None):
        return (stub or self.stub).Assignments(pb.AssignmentsRequest(session_id=session_id))


async def read(call):
    async with asyncio.timeout(TIMEOUT_S):
        message = await call.read()
    assert message is not grpc.aio.EOF
    return message


async def beat(stub: DispatcherStub, session_id: str) -> None:
    """Beat once; fails with what the manager says."""

    async def once():
        yield pb.HeartbeatRequest(session_id=session_id)

    async for _ in stub.Heartbeat(once()):
        pass


async def ended(call) -> str:
    """How a stream ends; fails when it goes on."""
    async with asyncio.timeout(TIMEOUT_S):
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name} {error.details()}"
    return "OK"


@pytest.fixture
async def rig(tmp_path) -> AsyncIterator[Rig]:
    rig = Rig()

    def add(server: grpc.aio.Server) -> None:
        add_DispatcherServicer_to_server(rig.servicer, server)

    runs = (rig.dispatcher.run, rig.dispatcher.run_expiry, rig.dispatcher.statuses.run)
    async with running(*runs), served(add, tmp_path / "m.sock") as rig.at:
        await until(lambda: rig.store.view.nodes.resolve("n1").status.state is NodeState.UNKNOWN)
        async with rig.at.channel(N1) as channel:
            rig.stub = DispatcherStub(channel)
            yield rig


def tasks_in(message) -> list[str]:
    return [
        ("-" if change.remove else "+") + change.assignment.task.id
        for change in message.changes
        if change.assignment.WhichOneof("item") == "task"
    ]


async def test_a_session_tells_the_node_who_it_is_and_what_changes(rig):
    call, first = await rig.session()
    assert first.session_id
    assert first.node.id == "n1"
    assert first.node.status.state == types_pb2.NODE_STATE_READY
    assert [manager.address for manager in first.managers] == ["192.0.2.1:2377"]
    assert (first.root_ca, first.data_path_port) == (b"root", 7789)
    node = rig.store.view.nodes.resolve("n1")
    assert node.status.address == "127.0.0.1"
    rig.put(node.replaced(ingress=NodeIngress(index=4, subnet="10.240.16.0/22")))
    while (await read(call)).node.ingress.index != 4:
        pass  # news of its own registration
    beats = rig.stub.Heartbeat()
    await beats.write(pb.HeartbeatRequest(session_id=first.session_id))
    assert (await read(beats)).period_ns == 250_000_000
    rig.dispatcher.sessions.period_s = 0.5
    await beats.write(pb.HeartbeatRequest(session_id=first.session_id))
    assert (await read(beats)).period_ns == 500_000_000
    await rig.stub.CloseSession(pb.CloseSessionRequest(session_id=first.session_id))
    assert (await ended(call)).startswith("FAILED_PRECONDITION the session is over")
    await beats.write(pb.HeartbeatRequest(session_id=first.session_id))
    assert (await ended(beats)).startswith("FAILED_PRECONDITION the session is over")
    assert rig.store.view.nodes.resolve("n1").status.state is NodeState.DISCONNECTED


async def test_the_complete_set_comes_in_parts_and_then_increments(rig):
    spec = TaskSpec(runtime=ContainerSpec(image="x", env=("A=" + "x" * 100_000,)))
    rig.put(*(a_task(f"t{number:03}", spec=spec) for number in range(130)))
    rig.put(a_task("other", node_id="n2"))
    _, first = await rig.session()
    call = await rig.assignments(first.session_id)
    messages = [await read(call)]
    while messages[-1].more:
        messages.append(await read(call))
    assert len(messages) > 5
    assert {message.kind for message in messages} == {pb.ASSIGNMENTS_KIND_COMPLETE}
    told = [task for message in messages for task in tasks_in(message)]
    assert told == [f"+t{number:03}" for number in range(130)]
    rig.put(a_task("new"), a_task("t000", desired=TaskState.SHUTDOWN))
    await rig.store.commit([remove(rig.store.view.tasks.resolve("t001"))])
    while len(told) < 133:
        messages.append(await read(call))
        assert messages[-1].kind == pb.ASSIGNMENTS_KIND_INCREMENTAL
        told += tasks_in(messages[-1])
    assert sorted(told[130:]) == ["+new", "+t000", "-t001"]
    assert [m.applies_to for m in messages] == list(range(len(messages)))
    assert all(m.results_in == m.applies_to + 1 for m in messages)
    call.cancel()


async def test_a_second_stream_replaces_the_first_and_begins_with_the_whole_set(rig):
    rig.put(a_task("t1"))
    _, first = await rig.session()
    old = await rig.assignments(first.session_id)
    await read(old)
    new = await rig.assignments(first.session_id)
    message = await read(new)
    assert (tasks_in(message), message.applies_to) == (["+t1"], 0)
    assert message.kind == pb.ASSIGNMENTS_KIND_COMPLETE
    assert await ended(old) == "OK"
    rig.put(a_task("t2"))
    assert tasks_in(await read(new)) == ["+t2"]
    new.cancel()


async def test_a_second_session_ends_the_first_and_its_calls(rig):
    old_call, old = await rig.session()
    new_call, new = await rig.session()
    assert new.session_id != old.session_id
    assert (await ended(old_call)).startswith("FAILED_PRECONDITION the session is over")
    over = old.session_id
    calls = [
        beat(rig.stub, over),
        rig.stub.UpdateTaskStatus(pb.UpdateTaskStatusRequest(session_id=over)),
        rig.stub.AcknowledgeEndpoints(pb.AcknowledgeEndpointsRequest(session_id=over)),
        (await rig.assignments(over)).read(),
    ]
    for call in calls:
        assert (await refusal(call)).startswith("FAILED_PRECONDITION the session is over")
    await rig.stub.CloseSession(pb.CloseSessionRequest(session_id=over))
    assert rig.dispatcher.sessions.is_connected("n1")
    new_call.cancel()


async def test_a_session_belongs_to_the_node_of_the_certificate(rig):
    _, first = await rig.session()
    async with rig.at.channel(N2) as channel:
        call = beat(DispatcherStub(channel), first.session_id)
        assert (await refusal(call)).startswith("FAILED_PRECONDITION the session is over")


async def test_a_removed_node_loses_its_streams_at_once_and_is_refused(rig):
    session, first = await rig.session()
    stream = await rig.assignments(first.session_id)
    await read(stream)
    node = rig.store.view.nodes.resolve("n1")
    await rig.store.commit([remove(node)])
    assert (await ended(session)).startswith("FAILED_PRECONDITION")
    assert (await ended(stream)).startswith("FAILED_PRECONDITION")
    call = rig.stub.Session(pb.SessionRequest())
    assert await ended(call) == (
        "NOT_FOUND node n1 was removed from the cluster: let it join again"
    )
    rig.at.verifier.replace_removed({NodeId("n1"): 2**62})
    assert (await ended(rig.stub.Session(pb.SessionRequest()))).startswith("PERMISSION_DENIED")


async def test_a_node_that_stops_beating_is_down_and_its_streams_end(rig):
    session, first = await rig.session()
    stream = await rig.assignments(first.session_id)
    await read(stream)
    await beat(rig.stub, first.session_id)
    assert (await ended(session)).startswith("FAILED_PRECONDITION the session is over")
    assert (await ended(stream)).startswith("FAILED_PRECONDITION the session is over")
    await until(lambda: rig.store.view.nodes.resolve("n1").status.state is NodeState.DOWN)


async def test_a_stop_waits_for_the_other_nodes_acknowledgement(rig):
    rig.put(a_published(), a_member("t1"))
    async with rig.at.channel(N2) as channel:
        other = DispatcherStub(channel)
        (_, mine), (_, theirs) = await rig.session(), await rig.session(other)
        stream = await rig.assignments(mine.session_id)
        other_stream = await rig.assignments(theirs.session_id, other)
        first, other_first = await read(stream), await read(other_stream)
        assert tasks_in(first) == ["+t1"]

        async def acknowledge(stub, session_id: str, version: int) -> None:
            await stub.AcknowledgeEndpoints(
                pb.AcknowledgeEndpointsRequest(session_id=session_id, endpoints_version=version)
            )

        await acknowledge(rig.stub, mine.session_id, first.endpoints_version)
        await acknowledge(other, theirs.session_id, other_first.endpoints_version)
        task = rig.store.view.tasks.resolve("t1")
        rig.put(task.with_desired_state(TaskState.SHUTDOWN))
        without, other_without = await read(stream), await read(other_stream)
        assert tasks_in(without) == []
        assert [list(c.assignment.port.addresses) for c in other_without.changes] == [[]]
        await acknowledge(rig.stub, mine.session_id, without.endpoints_version)
        held = asyncio.ensure_future(read(stream))
        await acknowledge(other, theirs.session_id, other_first.endpoints_version)
        assert not held.done()
        await acknowledge(other, theirs.session_id, other_without.endpoints_version)
        assert tasks_in(await held) == ["+t1"]
        stream.cancel()
        other_stream.cancel()


async def test_reports_and_conflicts_reach_the_store(rig):
    rig.put(a_task("t1", state=TaskState.ASSIGNED))
    _, first = await rig.session()
    status = types_pb2.TaskStatus(
        state=TaskState.RUNNING, error="x" * 9_000, address="10.240.4.5", applied_by="me"
    )
    update = pb.TaskStatusUpdate(task_id="t1", status=status)
    request = pb.UpdateTaskStatusRequest(session_id=first.session_id, updates=[update])
    await rig.stub.UpdateTaskStatus(request)
    stored = rig.store.view.tasks.resolve("t1").status
    assert (stored.state, stored.address) == (TaskState.RUNNING, "10.240.4.5")
    assert (stored.applied_by, len(stored.error)) == ("m1", 2_000)
    conflict = pb.PortConflict(published_port=80, error="port 80/tcp is in use")
    acknowledge = pb.AcknowledgeEndpointsRequest(session_id=first.session_id, conflicts=[conflict])
    await rig.stub.AcknowledgeEndpoints(acknowledge)
    assert rig.store.view.nodes.resolve("n1").status.message == "port 80/tcp is in use"
    del acknowledge.conflicts[:]
    await rig.stub.AcknowledgeEndpoints(acknowledge)
    assert rig.store.view.nodes.resolve("n1").status.message == ""


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": TaskState.ORPHANED}, "state: ORPHANED is not for an agent to report"),
        ({"state": TaskState.NEW}, "state: NEW is not for an agent to report"),
        ({"state": TaskState.RUNNING, "address": "evil"}, "address: 'evil' does not appear"),
    ],
)
async def test_a_report_an_agent_may_not_make_is_refused(rig, fields, text):
    rig.put(a_task("t1", state=TaskState.ASSIGNED))
    _, first = await rig.session()
    update = pb.TaskStatusUpdate(task_id="t1", status=types_pb2.TaskStatus(**fields))
    request = pb.UpdateTaskStatusRequest(session_id=first.session_id, updates=[update])
    assert (await refusal(rig.stub.UpdateTaskStatus(request))).startswith(
        f"INVALID_ARGUMENT {text}"
    )


async def test_too_much_at_once_is_refused(rig):
    _, first = await rig.session()
    updates = [pb.TaskStatusUpdate(task_id=str(number)) for number in range(1025)]
    request = pb.UpdateTaskStatusRequest(session_id=first.session_id, updates=updates)
    assert "updates: 1025, at most 1024" in await refusal(rig.stub.UpdateTaskStatus(request))
    description = types_pb2.NodeDescription()
    description.engine.labels["big"] = "x" * 70_000
    call = rig.stub.Session(pb.SessionRequest(description=description))
    assert "give the engine fewer labels" in await ended(call)
