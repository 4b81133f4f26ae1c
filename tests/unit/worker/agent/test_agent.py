"""The agent against a real dispatcher server that the test scripts."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import grpc
import pytest

from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.clock import SystemClock
from shoal.errors import FailedPrecondition, InvalidArgument, Unavailable
from shoal.model.enums import TaskState as S
from shoal.model.images import join
from shoal.model.objects import Task
from shoal.model.specs import NetworkAttachmentSpec, TaskSpec
from shoal.model.types import NodeDescription, NodeIngress
from tests.support.dispatcher import ScriptedDispatcher
from tests.unit.worker.agent.support import FakeNode, a_task, task_id, until
from worker.agent import agent as module
from worker.agent import endpoints
from worker.agent.agent import Agent
from worker.agent.attachments import Attachments
from worker.agent.devices import DeviceList
from worker.agent.network_keys import NetworkKeyKeeper
from worker.agent.records import NetworkRecord
from worker.network.api import Peer
from worker.network.keys import KeyFile, PrivateKeys

PORT = pb.PublishedPort(
    protocol=0,
    published_port=8080,
    target_port=80,
    service_id="s",
    addresses=["10.241.0.2"],
    sticky=True,
    source=types_pb2.PUBLISH_SOURCE_NODE,
    prefer=types_pb2.PUBLISH_PREFERENCE_LOCAL,
    address="192.0.2.1",
    weights=[7],
)
PEER = pb.PeerNode(node_id="node2", index=2, address="192.0.2.2", subnet="10.241.4.0/22")
NO_KEYS = PrivateKeys()


class FakePlane:
    """What the agent asks of the data plane."""

    def __init__(self):
        self.opened = []
        self.known = []
        self.applied = []
        self.overlays = []
        self.lost = {}
        self.errors = {}
        self.failures = []
        self.keys = []
        self.looks = 0

    async def open(self, record, known):
        self.opened.append(record)
        self.known.append({key: task.status.address for key, task in known.items()})
        if self.failures:
            raise self.failures.pop(0)
        return self.lost

    async def apply(self, peers, ports, overlays):
        self.applied.append((tuple(peers), tuple(ports)))
        self.overlays.append(overlays)
        return self.errors

    async def use_keys(self, keys):
        if self.failures:
            raise self.failures.pop(0)
        self.keys.append(keys)

    async def settle(self):
        self.looks += 1
        return True


class Setup:
    """One agent, run as the worker runs it, and its manager."""

    def __init__(self, directory):
        self.sockets = Path(tempfile.mkdtemp(prefix="shoal-agent-"))
        self.manager = ScriptedDispatcher(self.sockets / "a.sock")
        self.node = FakeNode(directory)
        self.plane = FakePlane()
        self.keys = KeyFile(directory / "keys")
        self.attachments = Attachments(directory / "attachments", SystemClock())
        self.attachments.bind(self.plane, self.node.reporter)
        self.connected = []
        self.addresses6 = ("2001:db8::1",)
        self.devices = DeviceList()
        self.images = []
        self.agent = self.new_agent()
        self._work = None

    def new_agent(self, *, managers=(), node_id="node1", keys=NO_KEYS):
        return Agent(
            node_id=node_id,
            tasks=self.node.tasks,
            data_plane=self.plane,
            records=self.node.records,
            reporter=self.node.reporter,
            description=NodeDescription(hostname="alpha"),
            managers=managers or (self.manager.address,),
            connect=self.connect,
            container_dir=str,
            network_keys=NetworkKeyKeeper(self.keys, keys, self.plane),
            addresses6=lambda: self.addresses6,
            devices=lambda: self.devices,
            images=lambda: self.images,
            attachments=self.attachments,
        )

    def connect(self, address):
        self.connected.append(address)
        return grpc.aio.insecure_channel(address)

    def run(self):
        self._work = asyncio.create_task(self.agent.run())

    async def session(self, count=1):
        await until(lambda: len(self.manager.streams) >= count)
        return self.manager.stream

    async def stop(self):
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
            self._work = None
        await self.node.tasks.stop()

    async def close(self):
        await self.stop()
        await self.manager.stop()
        for path in self.sockets.iterdir():
            path.unlink()
        self.sockets.rmdir()


@pytest.fixture
async def setup(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NETWORK_RETRY_S", 0.002)
    monkeypatch.setattr(module, "FACTS_LOOK_S", 0.01)
    monkeypatch.setattr(module, "IMAGES_LOOK_S", 0.01)
    monkeypatch.setattr(endpoints, "PORT_RETRY_S", 0.01)
    setup = Setup(tmp_path)
    await setup.manager.start()
    yield setup
    await setup.close()


async def test_registers_anew_when_its_ipv6_addresses_change(setup):
    setup.run()
    await setup.session()
    setup.addresses6 = ("2001:db8::1", "2001:db8::2")
    await setup.session(2)
    await until(lambda: setup.agent.why_not_ready == "")
    told = [description.ipv6_addresses for description in setup.manager.descriptions]
    assert told[0] == ("2001:db8::1",)
    assert told[-1] == ("2001:db8::1", "2001:db8::2")


async def test_registers_anew_when_a_device_comes(setup):
    setup.run()
    await setup.session()
    setup.devices = DeviceList(("/dev/kvm",), complete=True)
    await setup.session(2)
    told = [(one.devices, one.devices_known) for one in setup.manager.descriptions]
    assert (told[0], told[-1]) == (((), False), (("/dev/kvm",), True))


async def test_registers_anew_when_it_trusts_other_roots(setup, monkeypatch):
    monkeypatch.setattr(module, "FACTS_LOOK_S", 1000.0)  # it is told, and does not look
    setup.run()
    await setup.session()
    setup.agent.trust(b"old and new")
    await setup.session(2)
    setup.agent.trust(b"old and new")  # as after each renewal
    setup.agent.trust(b"new")
    await setup.session(3)
    told = [one.trust_root for one in setup.manager.descriptions]
    assert told == [b"", b"old and new", b"new"]


async def test_tells_of_images_that_come_within_the_session(setup):
    setup.images = ["web:1"]
    setup.run()
    await setup.session()
    assert setup.manager.descriptions[0].images == join(["web:1"])
    setup.images = ["web:1", "db"]
    await until(lambda: setup.manager.images)
    setup.images = []
    await until(lambda: len(setup.manager.images) > 1)
    assert setup.manager.images == [join(["web:1", "db"]), b""]
    assert len(setup.manager.sessions) == 1


async def test_registers_beats_and_learns_its_place(setup):
    assert "has not reached a manager" in setup.agent.why_not_ready
    setup.run()
    await setup.session()
    await until(lambda: setup.manager.beats > 3)
    described = NodeDescription(hostname="alpha", ipv6_addresses=("2001:db8::1",))
    assert setup.manager.descriptions == [described]
    await until(lambda: setup.plane.opened)
    assert setup.agent.why_not_ready == ""
    assert setup.node.records.network() == NetworkRecord(
        index=1, subnet="10.241.0.0/22", data_path_port=7789, managers=(setup.manager.address,)
    )


async def test_a_port_the_cluster_does_not_set_is_the_default(setup):
    setup.manager.data_path_port = 0
    setup.run()
    await until(lambda: setup.plane.opened)
    assert setup.plane.opened[0].data_path_port == 7789


async def test_runs_what_it_is_assigned_and_reports_it(setup):
    setup.run()
    stream = await setup.session()
    stream.send(a_task(1), a_task(2))
    await until(lambda: len(setup.manager.statuses) == 2)
    await until(lambda: {s.state for s in setup.manager.statuses.values()} == {S.RUNNING})
    stream.send(a_task(1, desired=S.SHUTDOWN))
    await until(lambda: setup.manager.statuses[task_id(1)].state is S.SHUTDOWN)
    stream.send(removed=[task_id(1)])
    await until(lambda: [*setup.node.runtime.containers] == [task_id(2)])


async def test_a_complete_set_in_parts_counts_as_one(setup):
    setup.run()
    stream = await setup.session()
    parts = 5
    for part in range(parts):
        stream.send(
            *(a_task(10 * part + n) for n in range(1, 4)), more=part < parts - 1,
            kind=pb.ASSIGNMENTS_KIND_COMPLETE, version=3, ports=[PORT] if part == 0 else [],
        )  # fmt: skip
    await until(lambda: setup.manager.acknowledged)
    assert setup.manager.acknowledged == [(3, {})]
    assert len(setup.plane.applied) == 1, "nothing is applied before the set is complete"
    assert len(setup.node.tasks.tasks()) == 15


async def test_the_complete_set_removes_what_is_not_in_it(setup):
    setup.run()
    (await setup.session()).send(a_task(1), a_task(2))
    await until(lambda: len(setup.node.runtime.containers) == 2)
    setup.manager.end_sessions()
    (await setup.session(2)).send(a_task(2))
    await until(lambda: [*setup.node.runtime.containers] == [task_id(2)])


async def test_endpoints_are_applied_and_acknowledged(setup):
    setup.run()
    stream = await setup.session()
    stream.send(ports=[PORT], peers=[PEER], version=5)
    await until(lambda: setup.manager.acknowledged == [(5, {})])
    (peers, ports) = setup.plane.applied[0]
    assert peers == (Peer("node2", 2, "192.0.2.2", "10.241.4.0/22"),)
    assert (ports[0].protocol, ports[0].published_port, ports[0].mode) == ("tcp", 8080, "ingress")
    assert ports[0].endpoints == ("10.241.0.2",)
    assert (ports[0].sticky, ports[0].source, ports[0].prefer) == (True, "node", "local")
    assert (ports[0].address, ports[0].interface) == ("192.0.2.1", "")
    assert ports[0].weights == {"10.241.0.2": 7}
    setup.plane.errors = {("tcp", 8080): "in use"}
    stream.send(version=6)
    await until(lambda: setup.manager.acknowledged[-1] == (6, {8080: "in use"}))
    setup.plane.errors = {}
    await until(lambda: setup.manager.acknowledged[-1] == (6, {}))


async def test_an_increment_that_goes_on_is_acknowledged_at_its_end(setup):
    setup.run()
    stream = await setup.session()
    stream.send(version=1)
    await until(lambda: setup.manager.acknowledged == [(1, {})])
    stream.send(version=2, more=True, ports=[PORT])
    stream.send(a_task(1), version=2)
    await until(lambda: setup.manager.acknowledged[-1][0] == 2)
    assert [version for version, _ in setup.manager.acknowledged] == [1, 2]
    assert setup.plane.applied[-1][1][0].published_port == 8080


@pytest.mark.parametrize(
    "gap", [{"applies_to": 7}, {"kind": pb.ASSIGNMENTS_KIND_COMPLETE}], ids=["sequence", "kind"]
)
async def test_a_gap_begins_a_new_session(setup, gap):
    setup.run()
    stream = await setup.session()
    stream.send(a_task(1))
    await until(lambda: task_id(1) in setup.manager.statuses)
    stream.send(a_task(2), **gap)
    again = await setup.session(2)
    assert setup.node.tasks.task(task_id(2)) is None
    again.send(a_task(1), a_task(2))
    await until(lambda: setup.node.tasks.task(task_id(2)) is not None)
    assert setup.node.runtime.board.count("start") >= 1


async def test_the_first_message_must_be_complete(setup):
    setup.run()
    stream = await setup.session()
    stream.send(a_task(1), kind=pb.ASSIGNMENTS_KIND_INCREMENTAL)
    await setup.session(2)
    assert setup.node.tasks.tasks() == []


async def test_without_managers_containers_run_and_reports_are_kept(setup):
    setup.run()
    (await setup.session()).send(a_task(1), a_task(2))
    await until(lambda: {s.state for s in setup.manager.statuses.values()} == {S.RUNNING})
    await setup.manager.stop()
    await until(lambda: "no session with manager" in setup.agent.why_not_ready)
    setup.node.runtime.exit(task_id(1), 3)
    await setup.node.reach(S.FAILED, 1)
    assert setup.node.runtime.containers[task_id(2)].state == "running"
    sessions = len(setup.manager.sessions)
    await setup.manager.start()
    await until(lambda: len(setup.manager.sessions) > sessions)
    await until(lambda: setup.manager.statuses[task_id(1)].state is S.FAILED)
    assert setup.manager.statuses[task_id(1)].container.exit_code == 3
    assert setup.node.runtime.board.count("stop") == 0
    assert setup.node.runtime.board.count("start") == 2


@pytest.mark.parametrize("how", ["beat", "assignments", "session"])
async def test_any_part_that_ends_begins_a_new_session(setup, how):
    setup.run()
    stream = await setup.session()
    if how == "beat":
        setup.manager.refuse_beat = FailedPrecondition("the session is over: register again")
        await until(lambda: "register again" in setup.agent.why_not_ready)
        setup.manager.refuse_beat = None
    elif how == "assignments":
        stream.fail(Unavailable("I am no longer the leader"))
    else:
        setup.manager.end_sessions()
    await setup.session(2)
    assert len(set(setup.manager.sessions)) == len(setup.manager.sessions)


async def test_what_this_version_cannot_read_is_said_and_not_fatal(setup):
    setup.run()
    stream = await setup.session()
    for number, (field, what) in enumerate(
        {"protocol": "protocol", "source": "source", "prefer": "preference"}.items(), start=2
    ):
        strange = pb.PublishedPort(published_port=1, service_id="s")
        setattr(strange, field, 9)
        stream.send(ports=[strange])
        await until(lambda w=what: f"{w} 9 is unknown" in setup.agent.why_not_ready)
        stream = await setup.session(number)


async def test_a_silent_manager_is_left(setup, monkeypatch):
    monkeypatch.setattr(module, "FIRST_MESSAGE_TIMEOUT_S", 0.02)
    setup.manager.silent = True
    setup.run()
    await until(lambda: "did not open a session" in setup.agent.why_not_ready)
    setup.manager.silent = False
    await setup.session()


async def test_pauses_between_sessions_grow_and_stay_bounded(setup, monkeypatch):
    pauses = []

    async def pause(self, seconds, known):
        """A pause that is only written down."""
        pauses.append(seconds)
        await asyncio.sleep(0)
        return ""

    monkeypatch.setattr(module.Reach, "pause", pause)
    setup.manager.refuse_session = Unavailable("not now")
    setup.run()
    await until(lambda: len(pauses) > 12)
    assert max(pauses) <= 8.0
    assert all(pause >= 0.04 for pause in pauses)
    assert min(pauses[8:]) >= 3.9


async def test_a_session_that_ends_at_once_does_not_make_the_agent_spin(setup, monkeypatch):
    """Opening a session is no success in itself: what follows may fail every time."""
    setup.manager.refuse_beat = InvalidArgument("no")
    seen = _note_pauses(monkeypatch)
    setup.run()
    await until(lambda: len(seen) >= 6)
    assert seen[:6] == sorted(seen[:6])
    assert seen[5] > 10 * seen[0]


async def test_pauses_are_short_again_after_a_session_that_worked_however_short_it_was(
    setup, monkeypatch
):
    seen = _note_pauses(monkeypatch)
    setup.manager.refuse_session = Unavailable("not now")
    setup.run()
    await until(lambda: len(seen) >= 5)
    assert seen[4] > 10 * seen[0]

    answers = []
    reset = module.Backoff.reset
    monkeypatch.setattr(module.Backoff, "reset", lambda self: answers.append(reset(self)))
    setup.manager.refuse_session = None
    for number in range(1, 5):
        await setup.session(number)
        heard, pauses = len(answers), len(seen)
        await until(lambda before=heard: len(answers) > before)
        setup.manager.end_sessions()
        await until(lambda before=pauses: len(seen) > before)
        assert seen[-1] == seen[0]


def _note_pauses(monkeypatch):
    """Pauses that the agent would make, from now on; it makes none worth mentioning."""
    seen = []
    next_s = module.Backoff.next_s
    monkeypatch.setattr(
        module.Backoff, "next_s", lambda self, spread: seen.append(next_s(self, 1.0)) or 0.001
    )
    return seen


async def test_managers_are_tried_in_turn_and_nodes_begin_with_different_ones(setup):
    managers = tuple(f"unix:{setup.sockets}/{name}" for name in ("x", "y", "z"))
    firsts = set()
    for number in range(30):
        agent = setup.new_agent(managers=managers, node_id=task_id(number))
        firsts.add(agent._remotes.choose(agent._draw(0)))
    assert firsts == set(managers)
    setup.agent = setup.new_agent(managers=managers)
    setup.run()
    await until(lambda: len(setup.connected) >= 3)
    assert set(setup.connected[:3]) == set(managers)


async def test_the_managers_it_heard_of_outlive_the_process(setup):
    setup.manager.managers = (setup.manager.address, "unix:/nowhere")
    setup.run()
    await setup.session()
    await until(lambda: setup.node.records.network() is not None)
    await setup.stop()
    setup.agent = setup.new_agent(managers=("unix:/joined-long-ago",))
    setup.run()
    await setup.session(2)


async def test_a_stop_says_goodbye(setup):
    setup.run()
    await setup.session()
    await setup.stop()
    assert setup.manager.closed == [setup.manager.sessions[-1]]


async def test_a_network_that_cannot_be_opened_is_shown_and_retried(setup):
    setup.plane.failures = [InvalidArgument("nf_tables is missing")] * 3 + [OSError(1, "no")]
    setup.run()
    await setup.session()
    await until(lambda: "nf_tables is missing" in setup.agent.why_not_ready)
    await until(lambda: setup.agent.why_not_ready == "")
    assert len(setup.manager.sessions) == 1, "the session does not end for it"
    assert len(setup.plane.opened) == 5


async def test_the_remembered_place_is_opened_without_a_manager(setup):
    await setup.manager.stop()
    record = NetworkRecord(
        index=4, subnet="10.241.16.0/22", data_path_port=1, managers=("unix:/nowhere",)
    )
    setup.node.records.save_network(record)
    setup.node.records.save_task(a_task(1, state=S.RUNNING, address="10.241.16.9"))
    config = await setup.node.tasks.container_config(a_task(1), None)
    await setup.node.runtime.create(config)
    setup.node.runtime.run(task_id(1))
    setup.plane.lost = {task_id(1): "its interface is gone"}
    setup.run()
    await until(lambda: setup.plane.opened == [record])
    assert setup.plane.known == [{task_id(1): "10.241.16.9"}]
    assert (await setup.node.reach(S.FAILED)).error == "its interface is gone"


async def test_another_place_moves_the_data_plane(setup):
    setup.run()
    await until(lambda: len(setup.plane.opened) == 1)
    setup.manager.ingress = NodeIngress(index=2, subnet="10.241.4.0/22")
    setup.manager.end_sessions()
    await until(lambda: len(setup.plane.opened) == 2)
    assert setup.plane.opened[1].index == 2


async def test_a_full_disk_does_not_end_the_session(setup):
    def full(record):
        raise OSError(28, "No space left on device")

    setup.node.records.save_network = setup.node.records.save_task = full
    setup.run()
    (await setup.session()).send(a_task(1))
    await until(lambda: setup.manager.statuses.get(task_id(1)))
    await until(lambda: setup.manager.statuses[task_id(1)].state is S.RUNNING)


async def test_an_agent_that_failed_can_be_run_again(setup):
    setup.run()
    (await setup.session()).send(a_task(1))
    await setup.node.reach(S.RUNNING)
    setup.node.tasks.report_all = lambda: 1 / 0
    setup.manager.end_sessions()
    with pytest.raises(ZeroDivisionError):
        await setup._work
    del setup.node.tasks.report_all
    setup.run()
    count = len(setup.manager.streams)
    (await setup.session(count + 1)).send(a_task(1))
    await until(lambda: len(setup.manager.sessions) >= 3)
    assert setup.node.runtime.board.count("start") == 1
    assert setup.node.state() is S.RUNNING


async def test_overlays_are_applied_with_the_version_that_completes_them(setup):
    setup.run()
    stream = await setup.session()
    network = pb.OverlayNetwork(network_id="n", name="net", vni=4096)
    endpoint = pb.OverlayEndpoint(network_id="n", task_id="t", node_id="n2", addresses=["10.0.0.3"])
    peer = pb.PeerNode(node_id="n2", index=2, address="192.0.2.2", subnet="10.241.4.0/22")

    def change(remove=False, **item):
        return pb.AssignmentChange(assignment=pb.Assignment(**item), remove=remove)

    stream.send(overlays=[change(network=network)], more=True)
    stream.send(overlays=[change(overlay_endpoint=endpoint)], peers=[peer], version=7, kind=0)
    await until(lambda: setup.manager.acknowledged)
    state = setup.plane.overlays[-1]
    assert setup.manager.acknowledged[-1][0] == 7
    assert len(setup.plane.overlays) == 1, "half a list is not applied"
    assert [one.vni for one in state.networks] == [4096]
    assert [one.task_id for one in state.endpoints] == ["t"]
    assert state.nodes == {"n2": "192.0.2.2"}

    stream.send(overlays=[change(overlay_endpoint=endpoint, remove=True)], version=8)
    await until(lambda: setup.manager.acknowledged[-1][0] == 8)
    assert setup.plane.overlays[-1].endpoints == ()
    assert setup.plane.overlays[-1].networks == state.networks


async def test_a_node_makes_the_keys_the_managers_ask_for_and_tells_them(setup):
    setup.agent = setup.new_agent(keys=setup.keys.load())
    setup.manager.network_key_generation = 3
    setup.run()
    stream = await setup.session()
    await until(lambda: setup.manager.network_keys)
    (told,) = setup.manager.network_keys
    assert [*told] == [3]
    assert setup.plane.keys[-1].public == told == setup.keys.load().public
    assert [key.generation for key in setup.manager.descriptions[0].network_keys] == [0]
    looks = setup.plane.looks
    key = types_pb2.NetworkKey(generation=3, public_key=bytes(32))
    network = pb.OverlayNetwork(network_id="n", name="n", vni=4096, encrypted=True)
    peer = pb.PeerNode(node_id="node2", index=2, address="192.0.2.2", network_keys=[key])
    stream.send(
        peers=[peer],
        overlays=[pb.AssignmentChange(assignment=pb.Assignment(network=network))],
    )
    await until(lambda: setup.plane.overlays and setup.plane.looks > looks)
    assert setup.plane.overlays[-1].keys == {"node2": {3: bytes(32)}}
    assert setup.plane.overlays[-1].networks[0].encrypted


async def test_attachments_of_containers_are_no_tasks_to_run(setup):
    setup.run()
    stream = await setup.session()
    runtime = NetworkAttachmentSpec(container_id="gone" * 16)
    attachment = Task(
        id="a" * 25, node_id="node1", spec=TaskSpec(runtime=runtime), desired_state=S.RUNNING
    )
    stream.send(attachment)
    await until(lambda: setup.manager.detached == [attachment.id])
    assert setup.node.tasks.tasks() == []
