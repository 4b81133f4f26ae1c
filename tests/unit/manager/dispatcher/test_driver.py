"""Node states follow sessions, whatever the log and the clock do in between."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from manager.dispatcher.core import DOUBTED_S, FIRST_CONTACT_S, GOODBYE_WAIT_S, Sessions
from manager.dispatcher.detector import Bounds
from manager.dispatcher.driver import MESSAGE_LENGTH_MAX, PROBATION, Dispatcher
from manager.dispatcher.metrics import DRAINS_OVERDUE
from shoal.clock import NS_PER_S
from shoal.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from shoal.model.defaults import DRAIN_TIMEOUT_NS, HEARTBEAT_PERIOD_NS
from shoal.model.enums import NodeState, TaskState
from shoal.model.objects import Cluster
from shoal.model.plan import remove
from shoal.model.specs import ClusterSpec, DispatcherConfig
from shoal.model.types import ManagerStatus, NodeDescription, NodeStatus
from tests.support.managing import HandClock, a_store, put_now, running, until
from tests.support.planning import a_node
from tests.unit.manager.dispatcher.test_endpoints import a_member, a_peer, a_published

DESCRIPTION = NodeDescription(hostname="host-n1")


class Rig:
    """A dispatcher whose expiry check is called by hand."""

    def __init__(self, *rows) -> None:
        self.clock = HandClock()
        self.store, self.proposer = a_store(rows, self.clock)
        self.dispatcher = Dispatcher(self.store, self.clock, manager_id="m1")

    def put(self, *rows) -> None:
        for row in rows:
            put_now(self.store, self.proposer, row)

    def status(self, node_id: str = "n1"):
        return self.store.view.nodes.resolve(node_id).status

    def state(self, node_id: str = "n1") -> NodeState:
        return self.status(node_id).state

    async def register(self, node_id: str = "n1") -> str:
        return await self.dispatcher.register(node_id, DESCRIPTION, "192.0.2.1")

    async def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.dispatcher.expire()

    def beat(self, session_id: str, node_id: str = "n1") -> None:
        self.dispatcher.sessions.beat(node_id, session_id, self.clock.monotonic_s())


async def test_a_node_is_ready_with_its_session_and_down_when_it_falls_silent():
    assert HEARTBEAT_PERIOD_NS == 250_000_000
    rig = Rig(a_node("n1", state=NodeState.UNKNOWN))
    session_id = await rig.register()
    assert (rig.state(), rig.status().address) == (NodeState.READY, "192.0.2.1")
    for _ in range(20):
        await rig.wait(0.25)
        rig.beat(session_id)
    await rig.wait(1.7)
    assert rig.state() is NodeState.READY
    await rig.wait(0.05)
    assert (rig.state(), rig.status().message) == (NodeState.DOWN, "heartbeat failure")
    with pytest.raises(FailedPrecondition, match="register again"):
        rig.beat(session_id)
    await rig.register()
    assert (rig.state(), rig.status().message) == (NodeState.READY, "")


async def test_a_node_that_was_lost_twice_is_watched_before_it_is_trusted():
    rig = Rig(a_node("n1"))
    for _ in range(2):
        await rig.register()
        assert rig.state() is NodeState.READY
        await rig.wait(4)
        assert rig.state() is NodeState.DOWN
    session_id = await rig.register()
    assert (rig.state(), rig.status().message) == (NodeState.UNKNOWN, PROBATION)
    await rig.dispatcher.acknowledge("n1", 1, ["port 80/tcp is in use"])
    for _ in range(19):
        rig.clock.advance(0.25)
        rig.beat(session_id)
        await rig.dispatcher.expire()
        assert rig.state() is NodeState.UNKNOWN
    rig.clock.advance(0.25)
    rig.beat(session_id)
    rig.proposer.error = ResourceExhausted("the disk is full")
    await rig.dispatcher.expire()
    assert rig.state() is NodeState.UNKNOWN
    rig.proposer.error = None
    await rig.dispatcher.expire()
    assert (rig.state(), rig.status().message) == (NodeState.READY, "port 80/tcp is in use")


async def test_many_nodes_beat_more_seldom():
    rig = Rig(*(a_node(f"n{number}") for number in range(200)))
    for number in range(200):
        await rig.register(f"n{number}")
    assert rig.dispatcher.sessions.period_s == 0.5


async def test_the_heartbeat_follows_the_clusters_setting():
    rig = Rig(Cluster(id="c"), a_node("n1"))
    async with running(rig.dispatcher.run):
        spec = ClusterSpec(dispatcher=DispatcherConfig(10_000_000_000))
        rig.put(rig.store.view.cluster.replaced(spec=spec))
        await until(lambda: rig.dispatcher.sessions.period_s == 10)
        await rig.register()
        await rig.wait(39)
        assert rig.state() is NodeState.READY
        await rig.wait(1)
        assert rig.state() is NodeState.DOWN


async def test_after_a_restart_nodes_are_unknown_and_down_if_they_stay_away():
    rig = Rig(a_node("n1"), a_node("n2"), a_node("n3", state=NodeState.DOWN), a_node("n4"))
    await rig.register("n4")
    async with running(rig.dispatcher.run_expiry):
        await until(lambda: rig.state("n2") is NodeState.UNKNOWN)
    assert "manager's restart" in rig.status("n1").message
    assert rig.state("n3") is NodeState.DOWN
    assert rig.state("n4") is NodeState.READY
    session_id = await rig.register("n1")
    for _ in range(int(FIRST_CONTACT_S) - 1):
        await rig.wait(1.0)
        rig.beat(session_id)
    assert rig.state("n1") is NodeState.READY
    assert rig.state("n2") is NodeState.UNKNOWN
    await rig.wait(1.0)
    assert rig.state("n1") is NodeState.READY
    assert rig.state("n2") is NodeState.DOWN


async def test_a_new_leader_does_not_wait_long_for_the_machine_that_its_predecessor_died_with():
    silent = ManagerStatus(address="192.0.2.1:2377", reachable=False)
    rig = Rig(
        a_node("n1").replaced(manager_status=silent),
        a_node("n2").replaced(manager_status=silent.replaced(reachable=True)),
        a_node("n3"),
        a_node("n4").replaced(manager_status=silent),
    )
    async with running(rig.dispatcher.run_expiry):
        await until(lambda: rig.state("n1") is NodeState.UNKNOWN)
    await rig.wait(0)
    await rig.register("n4")  # its agent lives, whatever its manager does
    await rig.wait(DOUBTED_S / 2)
    assert rig.state("n1") is NodeState.UNKNOWN
    await rig.wait(DOUBTED_S / 2)
    assert rig.state("n1") is NodeState.DOWN
    assert rig.state("n2") is rig.state("n3") is NodeState.UNKNOWN
    assert rig.state("n4") is NodeState.READY


async def test_a_state_that_could_not_be_written_is_written_later():
    rig = Rig(a_node("n1"), a_node("n2"))
    sessions = {node: await rig.register(node) for node in ("n1", "n2")}
    rig.proposer.error = ResourceExhausted("the disk is full")
    await rig.wait(4.0)
    await rig.dispatcher.close_session("n2", sessions["n2"])
    assert rig.state("n1") is NodeState.READY
    rig.proposer.error = None
    await rig.register("n2")
    await rig.dispatcher.expire()
    assert rig.state("n1") is NodeState.DOWN
    assert rig.state("n2") is NodeState.READY, "it came back before it was written off"


@pytest.mark.parametrize("how", ["expire", "close"])
async def test_a_node_that_comes_back_while_its_absence_is_being_written_is_ready(how):
    rig = Rig(a_node("n1"))
    session_id = await rig.register()
    rig.proposer.gate.clear()
    rig.clock.advance(4.0)
    leaving = asyncio.create_task(
        rig.dispatcher.expire()
        if how == "expire"
        else rig.dispatcher.close_session("n1", session_id)
    )
    await asyncio.sleep(0.01)
    back = asyncio.create_task(rig.register())
    await asyncio.sleep(0.01)
    rig.proposer.gate.set()
    await asyncio.gather(leaving, back)
    assert rig.state() is NodeState.READY
    await rig.dispatcher.expire()
    assert rig.state() is NodeState.READY


async def test_a_node_that_is_just_coming_back_is_not_written_off_any_more():
    rig = Rig(a_node("n1"))
    await rig.register()
    rig.proposer.error = ResourceExhausted("the disk is full")
    await rig.wait(4.0)
    rig.proposer.error = None
    rig.proposer.gate.clear()
    back = asyncio.create_task(rig.register())
    await asyncio.sleep(0.01)
    leaving = asyncio.create_task(rig.dispatcher.expire())
    await asyncio.sleep(0.01)
    rig.proposer.gate.set()
    await asyncio.gather(leaving, back)
    await rig.dispatcher.expire()
    assert rig.state() is NodeState.READY


async def test_goodbye_disconnects_but_not_of_a_session_that_was_replaced():
    rig = Rig(a_node("n1"))
    first = await rig.register()
    second = await rig.register()
    await rig.dispatcher.close_session("n1", first)
    assert rig.state() is NodeState.READY
    await rig.dispatcher.close_session("n1", second)
    assert rig.state() is NodeState.DISCONNECTED
    assert rig.status().message == "the agent has stopped"


async def test_a_node_that_leaves_is_down_at_once_and_known_to_have_left_until_it_is_back():
    rig = Rig(a_node("n1"))
    await rig.dispatcher.close_session("n1", await rig.register(), leaving=True)
    expected = NodeStatus(NodeState.DOWN, "the node has left the cluster", left=True)
    assert rig.status().replaced(address="") == expected
    rig.clock.advance(60.0)
    await rig.dispatcher.expire()
    assert rig.status().left
    await rig.register()
    assert (rig.state(), rig.status().left) == (NodeState.READY, False)


async def test_a_node_that_registers_too_often_keeps_the_session_it_has():
    rig = Rig(a_node("n1"))
    sessions = [await rig.register() for _ in range(3)]
    with pytest.raises(Unavailable, match="registered 3 times within 8 s"):
        await rig.register()
    rig.dispatcher.sessions.check("n1", sessions[-1])
    rig.clock.advance(8.0)
    await rig.register()


async def test_a_node_at_the_address_of_another_that_is_there_is_named_in_the_log():
    rig = Rig(a_peer("n1", "192.0.2.1"), a_peer("n2", "192.0.2.1", index=2))
    description = DESCRIPTION.replaced(data_path_address="192.0.2.1")
    async with running(rig.dispatcher.run):
        await until(lambda: rig.dispatcher.table.peers)
        with capture_logs() as logs:
            await rig.dispatcher.register("n1", description, "192.0.2.1")
            assert "node.address_shared" not in {line["event"] for line in logs}
            await rig.dispatcher.register("n2", description, "192.0.2.1")
    (line,) = [line for line in logs if line["event"] == "node.address_shared"]
    assert (line["node_id"], line["others"]) == ("n2", ["n1"])


async def test_a_removed_node_cannot_register_and_leaves_no_session():
    rig = Rig(a_node("n1"))
    await rig.store.commit([remove(rig.store.view.nodes.resolve("n1"))])
    with pytest.raises(NotFound, match="n1 was removed from the cluster: let it join again"):
        await rig.register()
    assert rig.dispatcher.sessions.known() == frozenset()


async def test_a_registration_that_fails_leaves_no_session():
    rig = Rig(a_node("n1", state=NodeState.DOWN))
    rig.proposer.error = ResourceExhausted("full")
    with pytest.raises(ResourceExhausted):
        await rig.register()
    assert not rig.dispatcher.sessions.is_connected("n1")


async def test_a_node_that_the_store_calls_ready_without_a_session_is_found():
    rig = Rig(a_node("n1"))
    await rig.wait(0)
    assert rig.state() is NodeState.READY
    await rig.wait(FIRST_CONTACT_S)
    assert rig.state() is NodeState.DOWN


async def test_port_conflicts_are_shown_until_they_end_and_revive_nobody():
    rig = Rig(a_node("n1"))
    session_id = await rig.register()
    await rig.dispatcher.acknowledge("n1", 1, ["port 80/tcp is in use", "port 53/udp is in use"])
    assert rig.status().message == "port 80/tcp is in use; port 53/udp is in use"
    await rig.dispatcher.acknowledge("n1", 1, ["x" * 5_000])
    assert len(rig.status().message) == MESSAGE_LENGTH_MAX
    await rig.dispatcher.acknowledge("n1", 1, [])
    assert (rig.state(), rig.status().message) == (NodeState.READY, "")
    await rig.dispatcher.close_session("n1", session_id)
    await rig.dispatcher.acknowledge("n1", 1, ["late"])
    assert (rig.state(), rig.status().message) == (NodeState.DISCONNECTED, "the agent has stopped")


async def test_an_acknowledgement_counts_while_the_stream_is_open_and_never_ahead():
    rig = Rig(a_node("n1"))
    await rig.register()
    await rig.dispatcher.acknowledge("n1", 1, [])
    assert rig.dispatcher.acknowledged.versions == {}, "it would hold back others for ever"
    with rig.dispatcher.stream("n1"):
        assert rig.dispatcher.acknowledged.versions == {"n1": 0}
        await rig.dispatcher.acknowledge("n1", 10**6, [])
        assert rig.dispatcher.acknowledged.versions == {"n1": rig.dispatcher.table.version}
        await rig.dispatcher.acknowledge("n1", 0, [])
        assert rig.dispatcher.acknowledged.versions == {"n1": rig.dispatcher.table.version}
    assert rig.dispatcher.acknowledged.versions == {"n1": rig.dispatcher.table.version}, (
        "it balances on"
    )
    await rig.wait(60)
    assert rig.dispatcher.acknowledged.versions == {}, "it is down"


async def test_a_stop_is_sent_when_the_last_data_plane_has_acknowledged_or_gone():
    rig = Rig(a_node("n1"), a_node("n2"), a_node("n3"), a_published(), a_member("t1"))
    dispatcher = rig.dispatcher
    async with running(dispatcher.run):
        sessions = {node: await rig.register(node) for node in ("n1", "n2", "n3")}
        with dispatcher.stream("n1") as own, dispatcher.stream("n2"), dispatcher.stream("n3"):
            await own.signal.wait()
            assert [task.id for task in dispatcher.take(own)[0].tasks] == ["t1"]
            for node in ("n1", "n2", "n3"):
                await dispatcher.acknowledge(node, dispatcher.table.version, [])
            before = dispatcher.table.version
            task = rig.store.view.tasks.resolve("t1").with_desired_state(TaskState.SHUTDOWN)
            rig.put(task)
            await until(lambda: dispatcher.table.version > before)
            diff, more = dispatcher.take(own)
            assert (diff.tasks, more) == ((), False)
            assert dispatcher.held_for_s(own) is not None
            for node in ("n1", "n2"):
                await dispatcher.acknowledge(node, dispatcher.table.version, [])
            assert dispatcher.take(own)[0].tasks == ()
            own.signal = type(own.signal)()
            await dispatcher.close_session("n3", sessions["n3"])
            assert dispatcher.take(own)[0].tasks == (), "without its agent it balances on"
            rig.clock.advance(GOODBYE_WAIT_S)
            for node in ("n1", "n2"):
                rig.beat(sessions[node], node)
            await dispatcher.expire()
            assert await own.signal.wait(5), "the stream is woken"
            (sent,) = dispatcher.take(own)[0].tasks
            assert sent.desired_state is TaskState.SHUTDOWN
            assert dispatcher.held_for_s(own) is None


async def test_a_stop_that_a_data_plane_has_not_acknowledged_in_time_is_logged_and_counted():
    rig = Rig(a_node("n1"), a_node("n2"), a_published(), a_member("t1"))
    dispatcher = rig.dispatcher
    async with running(dispatcher.run):
        await rig.register()
        await rig.register("n2")
        with dispatcher.stream("n1") as own, dispatcher.stream("n2"):
            await own.signal.wait()
            dispatcher.take(own)
            for node in ("n1", "n2"):
                await dispatcher.acknowledge(node, dispatcher.table.version, [])
            before = dispatcher.table.version
            task = rig.store.view.tasks.resolve("t1").with_desired_state(TaskState.SHUTDOWN)
            rig.put(task)
            await until(lambda: dispatcher.table.version > before)
            await dispatcher.acknowledge("n1", dispatcher.table.version, [])
            assert dispatcher.take(own)[0].tasks == ()
            rig.clock.advance(DRAIN_TIMEOUT_NS / NS_PER_S)
            counted = DRAINS_OVERDUE._value.get()
            with capture_logs() as logs:
                assert [task.id for task in dispatcher.take(own)[0].tasks] == ["t1"]
            assert DRAINS_OVERDUE._value.get() == counted + 1
            (said,) = [one for one in logs if one["event"] == "task.drain_overdue"]
            assert (said["task_id"], said["nodes"]) == ("t1", ["n2"])


async def test_a_lost_node_s_tasks_take_no_traffic_and_its_peers_are_told():
    rig = Rig(a_peer("n1", "192.0.2.1"), a_node("n2"), a_published(), a_member("t1"))
    dispatcher, table = rig.dispatcher, rig.dispatcher.table
    there = DESCRIPTION.replaced(data_path_address="192.0.2.1")
    async with running(dispatcher.run):
        await dispatcher.register("n1", there, "192.0.2.1")
        await until(lambda: any(row.members for row in table.ports.values()))
        assert not table.peers["n1"].lost
        await rig.wait(60)
        await until(lambda: not any(row.members for row in table.ports.values()))
        assert table.peers["n1"].lost
        await dispatcher.register("n1", there, "192.0.2.1")
        await until(lambda: any(row.members for row in table.ports.values()))
        assert not table.peers["n1"].lost


async def test_following_anew_forgets_what_went_while_nobody_watched():
    rig = Rig(a_node("n1"), a_node("n2"), a_published(), a_member("t1"))
    dispatcher = rig.dispatcher
    await rig.register()
    await rig.register("n2")
    with dispatcher.stream("n1") as stream, dispatcher.stream("n2") as gone:
        async with running(dispatcher.run):
            await until(lambda: dispatcher.table.ports)
            while dispatcher.take(stream)[1]:
                pass
        for row in (rig.store.view.tasks.resolve("t1"), rig.store.view.services.resolve("web")):
            await rig.store.commit([remove(row)])
        await rig.store.commit([remove(rig.store.view.nodes.resolve("n2"))])
        async with running(dispatcher.run):
            await until(lambda: not dispatcher.table.ports)
            diff, _ = dispatcher.take(stream)
            assert dispatcher.is_current(stream)
            assert not dispatcher.is_current(gone)
    assert diff.removed_tasks == ("t1",)
    assert len(diff.removed_ports) == 1
    assert dispatcher.sessions.known() == {"n1"}


class LoopClock(HandClock):
    """The loop's own clock."""

    @override
    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


class CountingDispatcher(Dispatcher):
    """Counts the checks of its expiry loop."""

    checks = 0

    @override
    async def expire(self) -> None:
        await super().expire()
        self.checks += 1


async def test_a_stall_of_the_manager_is_not_held_against_the_nodes():
    store, _ = a_store([a_node("n1")])
    dispatcher = CountingDispatcher(store, LoopClock(), manager_id="m1")
    dispatcher.sessions = Sessions(period_s=0.2, bounds=Bounds(0.8, 0.8, 0.8))
    async with running(dispatcher.run_expiry):
        await until(lambda: dispatcher.checks)
        session_id = await dispatcher.register("n1", DESCRIPTION, "192.0.2.1")
        checks, loop = dispatcher.checks, asyncio.get_running_loop()
        until_s = loop.time() + 1.6
        while loop.time() < until_s:
            pass  # the whole process stands still for twice the grace of 0.8 s
        await until(lambda: dispatcher.checks > checks)
        dispatcher.sessions.beat("n1", session_id, loop.time())
        assert store.view.nodes.resolve("n1").status.state is NodeState.READY
        await until(lambda: store.view.nodes.resolve("n1").status.state is NodeState.DOWN)
