"""What nodes are told of overlay networks: of their own alone, in order, nothing forgotten."""

from __future__ import annotations

import random

import pytest

from manager.allocator.networks.subnets import VNI_OPTION
from manager.dispatcher.assignments import NodeAssignments
from manager.dispatcher.endpoints import EndpointTable
from manager.dispatcher.messages import MessageWriter
from manager.dispatcher.overlays import (
    MTU_OPTION,
    EndpointRow,
    NetworkRow,
    OverlayKey,
    OverlayKind,
    OverlayRow,
    ServiceRow,
)
from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.model.enums import NodeState, TaskState
from shoal.model.objects import Network, Service, Task
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import (
    Annotations,
    Driver,
    Endpoint,
    IpamConfig,
    IpamOptions,
    NetworkAttachment,
    NetworkAttachmentConfig,
    VirtualIp,
)
from tests.support.planning import Cell, a_network, a_node, a_service, a_task

NETWORKS = {"red": 1, "blue": 2}


def made(name: str, **fields: object) -> Network:
    number = NETWORKS[name]
    config = IpamConfig(f"10.0.{number}.0/24", gateway=f"10.0.{number}.1")
    return a_network(name, **fields).replaced(
        driver_state=Driver("overlay", {VNI_OPTION: str(4095 + number)}),
        ipam=IpamOptions(configs=(config,)),
    )


def on(*names: str, service_id: str = "web") -> Service:
    wishes = tuple(NetworkAttachmentConfig(name, ("alias",)) for name in names)
    task = TaskSpec(runtime=ContainerSpec(image="i"), networks=wishes)
    ips = tuple(VirtualIp(name, f"10.0.{NETWORKS[name]}.2/24") for name in names)
    return a_service(service_id, task=task).replaced(endpoint=Endpoint(virtual_ips=ips))


def attached(task_id: str, *names: str, number: int = 9, **fields: object) -> Task:
    held = tuple(
        NetworkAttachment(name, (f"10.0.{NETWORKS[name]}.{number}/24", f"fd00::{number:x}/64"))
        for name in names
    )
    return a_task(task_id, networks=held, annotations=Annotations(f"web.1.{task_id}"), **fields)


class Rig:
    """A table, and streams of two nodes with mirrors of what they were told."""

    def __init__(self, *rows) -> None:
        self.cell = Cell([a_node("n1"), a_node("n2"), *rows])
        self.table = EndpointTable()
        self.seen = 0
        self.streams = {name: NodeAssignments(name) for name in ("n1", "n2")}
        self.mirrors: dict[str, dict[OverlayKey, OverlayRow]] = {"n1": {}, "n2": {}}
        self.update()

    def update(self, *, lost: bool = False) -> None:
        """Follow the commits; lost: they were missed, and everything is compared anew."""
        view, overlays = self.cell.tables, self.table.overlays
        if lost:
            self.table.update_overlays(
                view,
                networks={*overlays.network_ids, *(row.id for row in view.networks)},
                services={*overlays.service_ids, *(row.id for row in view.services)},
                tasks={*overlays.task_ids, *(row.id for row in view.tasks)},
            )
            for stream in self.streams.values():
                stream.mark_all(view, self.table)
        else:
            events = [event for commit in self.cell.commits[self.seen :] for event in commit.events]
            subjects = [event.subject for event in events]
            changes = self.table.update_overlays(
                view,
                networks={row.id for row in subjects if isinstance(row, Network)},
                services={row.id for row in subjects if isinstance(row, Service)},
                tasks={row.id for row in subjects if isinstance(row, Task)},
            )
            for stream in self.streams.values():
                stream.overlays.mark(overlays, changes)
        self.seen = len(self.cell.commits)

    def take(self, node_id: str = "n1") -> list[str]:
        """Take and mirror; each is known when it is needed, and not known when it is gone."""
        mirror = self.mirrors[node_id]
        diff = self.streams[node_id].take(self.cell.tables, self.table, None, 0)
        said = []
        for row in diff.overlays:
            kind, name = kind_of(row)
            assert kind is OverlayKind.NETWORK or _network_key(row.network_id) in mirror
            mirror[OverlayKey(kind, row.network_id, name)] = row
            said.append(f"+{name}")
        for key in diff.removed_overlays:
            del mirror[key]
            said.append(f"-{key.id}")
            assert key.kind is not OverlayKind.NETWORK or all(
                other.network_id != key.id for other in mirror
            )
        return said


def kind_of(row: OverlayRow) -> tuple[OverlayKind, str]:
    match row:
        case NetworkRow():
            return OverlayKind.NETWORK, row.network_id
        case ServiceRow():
            return OverlayKind.SERVICE, row.service_id
        case EndpointRow():
            return OverlayKind.ENDPOINT, row.task_id


def _network_key(network_id: str) -> OverlayKey:
    return OverlayKey(OverlayKind.NETWORK, network_id, network_id)


def test_a_node_hears_of_the_networks_of_its_tasks_alone():
    rig = Rig(
        made("red"), made("blue"), on("red"), on("blue", service_id="db"),
        attached("t1", "red"), attached("t2", "red", number=10, node_id="n2"),
        attached("t3", "blue", service_id="db", node_id="n2"),
    )  # fmt: skip
    rig.update(lost=True)
    assert rig.take("n1") == ["+red", "+web", "+t1", "+t2"]
    assert rig.take("n2") == ["+blue", "+red", "+db", "+web", "+t3", "+t1", "+t2"]

    rig.cell.put(attached("t4", "blue", number=10, service_id="db"))
    rig.update()
    assert rig.take("n1") == ["+blue", "+db", "+t3", "+t4"]
    assert rig.take("n2") == ["+t4"]

    rig.cell.report("t4", TaskState.FAILED)
    rig.update()
    assert rig.take("n1") == ["-t4", "-t3", "-db", "-blue"]
    assert rig.take("n2") == ["-t4"]


def test_what_the_rows_say():
    opts = Driver("", {MTU_OPTION: "1400"})
    rig = Rig(made("red", driver=opts, internal=True), on("red"), attached("t1", "red"))
    rig.take()
    network, service, endpoint = (rig.mirrors["n1"][key] for key in sorted(rig.mirrors["n1"]))
    assert network == NetworkRow(
        "red", "red", 4096, (("10.0.1.0/24", "10.0.1.1"),), 1400, True, False
    )
    assert service == ServiceRow("red", "web", "web", ("10.0.1.2",), ("alias",))
    assert endpoint == EndpointRow(
        "red", "t1", "web", "n1", ("10.0.1.9", "fd00::9"), ("web.1.t1",), ready=True
    )


def test_rows_on_the_wire_and_their_removal():
    rig = Rig(made("red"), on("red"), attached("t1", "red"))
    writer = MessageWriter()

    def sent() -> list[pb.AssignmentChange]:
        diff = rig.streams["n1"].take(rig.cell.tables, rig.table, None, 0)
        (message,) = writer.messages(diff, version=rig.table.version, more=False)
        assert message.endpoints_version == rig.table.version
        return [one for one in message.changes if one.assignment.WhichOneof("item") != "task"]

    rig.streams["n1"].mark_all(rig.cell.tables, rig.table)
    network, service, endpoint = sent()
    subnet = pb.OverlaySubnet(subnet="10.0.1.0/24", gateway="10.0.1.1")
    assert network.assignment.network == pb.OverlayNetwork(
        network_id="red", name="red", vni=4096, subnets=[subnet]
    )
    assert service.assignment.overlay_service == pb.OverlayService(
        network_id="red",
        service_id="web",
        name="web",
        virtual_ips=["10.0.1.2"],
        aliases=["alias"],
    )
    assert endpoint.assignment.overlay_endpoint == pb.OverlayEndpoint(
        network_id="red",
        task_id="t1",
        service_id="web",
        node_id="n1",
        addresses=["10.0.1.9", "fd00::9"],
        names=["web.1.t1"],
        ready=True,
    )
    rig.cell.report("t1", TaskState.FAILED)
    rig.update()
    endpoint, service, network = sent()
    assert endpoint == pb.AssignmentChange(
        remove=True,
        assignment=pb.Assignment(
            overlay_endpoint=pb.OverlayEndpoint(network_id="red", task_id="t1")
        ),
    )
    assert service.remove
    assert service.assignment.overlay_service.service_id == "web"
    assert network.remove
    assert network.assignment.network.network_id == "red"


def test_a_task_leaves_at_the_version_in_which_it_takes_no_connections():
    rig = Rig(made("red"), on("red"), attached("t1", "red"))
    table = rig.table
    assert table.left_at("t1") == table.version + 1, "it has yet to leave"
    rig.cell.put(rig.cell.tables.tasks.get("t1").with_desired_state(TaskState.SHUTDOWN))
    rig.update()
    left_at = table.version
    assert table.left_at("t1") == left_at
    assert "+t1" in rig.take()
    row = rig.mirrors["n1"][OverlayKey(OverlayKind.ENDPOINT, "red", "t1")]
    assert row.ready is False, "its last answers arrive"
    rig.cell.put(attached("t2", "red", number=10))
    rig.update()
    assert table.left_at("t1") == left_at < table.version


@pytest.mark.parametrize(
    ("state", "desired", "told", "ready"),
    [
        (TaskState.PENDING, TaskState.RUNNING, False, False),
        (TaskState.ASSIGNED, TaskState.RUNNING, True, False),
        (TaskState.STARTING, TaskState.RUNNING, True, False),
        (TaskState.RUNNING, TaskState.RUNNING, True, True),
        (TaskState.RUNNING, TaskState.SHUTDOWN, True, False),
        (TaskState.COMPLETE, TaskState.SHUTDOWN, False, False),
    ],
)
def test_who_is_on_a_network_and_who_takes_connections(state, desired, told, ready):
    rig = Rig(made("red"), attached("t1", "red", state=state, desired=desired))
    row = rig.table.overlays.rows.get(OverlayKey(OverlayKind.ENDPOINT, "red", "t1"))
    assert (row is not None) is told
    assert rig.table.overlays.is_ready("t1") is ready


def test_a_task_of_a_node_that_is_down_takes_no_connections():
    rig = Rig(made("red"), attached("t1", "red"))
    rig.cell.put(a_node("n1", state=NodeState.DOWN))
    rig.table.update_overlays(rig.cell.tables, tasks=["t1"])
    assert rig.table.overlays.is_ready("t1") is False


def test_a_network_without_a_number_is_not_told():
    rig = Rig(a_network("red"), attached("t1", "red"))
    assert rig.table.overlays.network_ids == frozenset()


@pytest.mark.parametrize("seed", range(30))
def test_the_mirror_of_all_diffs_is_what_is_on_the_nodes_networks(seed):
    chosen = random.Random(seed)
    rig = Rig(made("red"), made("blue"), on("red"))
    for step in range(80):
        task_id = f"t{chosen.randrange(8)}"
        old = rig.cell.tables.tasks.get(task_id)
        action = chosen.random()
        if action < 0.1:
            names = chosen.sample(sorted(NETWORKS), chosen.randrange(3))
            rig.cell.put(on(*names))
        elif old is None:
            names = chosen.sample(sorted(NETWORKS), chosen.randrange(3))
            node_id = chosen.choice(["n1", "n2", "n3"])
            rig.cell.put(
                attached(task_id, *names, number=step + 3, node_id=node_id,
                         state=TaskState.ASSIGNED)
            )  # fmt: skip
        elif action < 0.3:
            rig.cell.remove(old)
        elif action < 0.8:
            state = chosen.choice([s for s in TaskState if s >= old.status.state])
            rig.cell.put(old.with_status(old.status.replaced(state=state)))
        else:
            rig.cell.put(old.with_desired_state(max(old.desired_state, TaskState.SHUTDOWN)))
        if chosen.random() < 0.6:
            rig.update(lost=chosen.random() < 0.1)
        if chosen.random() < 0.4:
            rig.take(chosen.choice(["n1", "n2"]))
    rig.update()
    fresh = EndpointTable()
    fresh.update_overlays(
        rig.cell.tables,
        networks=NETWORKS,
        services=["web"],
        tasks=[task.id for task in rig.cell.tables.tasks],
    )
    assert rig.table.overlays.rows == fresh.overlays.rows
    assert +rig.table.overlays.counts == +fresh.overlays.counts
    assert rig.table.overlays.counts.total() == len(rig.table.overlays.rows)
    for node_id in ("n1", "n2"):
        rig.take(node_id)
        mine = {
            held.network_id
            for task in rig.cell.tables.tasks_of_node(node_id).values()
            if TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING
            for held in task.networks
        }
        wanted = {key: row for key, row in fresh.overlays.rows.items() if key.network_id in mine}
        assert rig.mirrors[node_id] == wanted
