"""`service explain`: placements that cannot be, each with its true cause; updates and failures."""

from __future__ import annotations

import pytest

from manager.controlapi import explain
from manager.controlapi.explain import explain_service
from manager.reconcile.dirty import EVERYTHING
from manager.reconcile.plan import plan_round
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.model.enums import (
    DependencyCondition,
    NodeAvailability,
    NodeState,
    RestartCondition,
    TaskState,
)
from shoal.model.objects import AnyObject
from shoal.model.specs import ContainerSpec, GlobalMode, TaskSpec
from shoal.model.types import (
    Driver,
    Endpoint,
    GenericResource,
    NetworkAttachmentConfig,
    Placement,
    Platform,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    ServiceDependency,
    UpdateConfig,
)
from tests.support.planning import SECOND_NS, Cell, a_network, a_node, a_port, a_service, a_task

GIB = 1 << 30
PENDING = types_pb2.TASK_STATE_PENDING


def _spec(
    *, reserved: Resources | None = None, networks: tuple[str, ...] = (), **placement: object
) -> TaskSpec:
    return TaskSpec(
        runtime=ContainerSpec(image="nginx:1"),
        placement=Placement(**placement),
        resources=ResourceRequirements(reservations=reserved or Resources()),
        networks=tuple(NetworkAttachmentConfig(target=name) for name in networks),
    )


def _settle(cell: Cell) -> None:
    while True:
        done = plan_round(cell.tables, EVERYTHING, now_ns=cell.now_ns, ids=cell.ids)
        if not done.changes:
            return
        cell.commit(done.changes)


def _explained(cell: Cell, service_id: str = "web") -> pb.ExplainServiceResponse:
    _settle(cell)
    return explain_service(cell.tables, cell.service(service_id), now_ns=cell.now_ns)


def _causes(nodes) -> dict[str, list[tuple[str, str]]]:
    return {node.node_id: [(one.filter, one.text) for one in node.reasons] for node in nodes}


PORT = a_port(80, 8080, host=True)
SEALED = a_network("sealed", "10.9.0.0/24", driver=Driver("overlay", {"encrypted": ""}))
HOLDER = a_task("holder", service_id="db", endpoint=Endpoint(ports=(PORT,)))
IMPOSSIBLE: dict[str, tuple[list[AnyObject], dict[str, object], str, str]] = {
    "node is down": (
        [a_node("n1", state=NodeState.DOWN)], {}, "ready", "the node is down",
    ),
    "node is drained": (
        [a_node("n1", availability=NodeAvailability.DRAIN)], {},
        "ready", "the node's availability is drain",
    ),
    "too little memory": (
        [a_node("n1")], {"task": _spec(reserved=Resources(memory_bytes=9 * GIB))},
        "resources", "memory: 9216 MiB to be reserved, 8192 MiB of 8192 MiB left",
    ),
    "memory reserved by others": (
        [a_node("n1"),
         a_task("o", service_id="db", spec=_spec(reserved=Resources(memory_bytes=6 * GIB)))],
        {"task": _spec(reserved=Resources(memory_bytes=3 * GIB))},
        "resources", "memory: 3072 MiB to be reserved, 2048 MiB of 8192 MiB left",
    ),
    "too few CPUs": (
        [a_node("n1")], {"task": _spec(reserved=Resources(nano_cpus=9 * SECOND_NS // 2))},
        "resources", "CPUs: 4.5 to be reserved, 4 of 4 left",
    ),
    "no GPU": (
        [a_node("n1")],
        {"task": _spec(reserved=Resources(generic=(GenericResource(kind="gpu", count=2),)))},
        "resources", "gpu: 2 to be reserved, 0 left",
    ),
    "another platform": (
        [a_node("n1")], {"task": _spec(platforms=(Platform(architecture="arm64", os="linux"),))},
        "platform", "the node is linux/x86_64, the image is for linux/arm64",
    ),
    "label has another value": (
        [a_node("n1", labels={"zone": "west"})],
        {"task": _spec(constraints=("node.role==worker", "node.labels.zone==east"))},
        "constraint", "node.labels.zone==east: the node has 'west'",
    ),
    "label is not there": (
        [a_node("n1")], {"task": _spec(constraints=("node.labels.zone == east",))},
        "constraint", "node.labels.zone == east: the node has none",
    ),
    "node cannot encrypt": (
        [a_node("n1"), SEALED], {"task": _spec(networks=("sealed",))},
        "encryption",
        "network sealed is encrypted, the node has no WireGuard (CONFIG_WIREGUARD)",
    ),
    "port is taken": (
        [a_node("n1"), HOLDER], {"ports": (PORT,)},
        "host_port", "host-mode port 8080/tcp is in use by task holder of service db",
    ),
    "as many as may be": (
        [a_node("n1"), a_task("t1", spec=_spec(max_replicas=1))],
        {"task": _spec(max_replicas=1), "replicas": 2},
        "max_replicas", "1 of the service's tasks are on the node, at most 1 may be",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_placements_name_their_true_cause(name: str) -> None:
    rows, wish, filter_name, text = IMPOSSIBLE[name]
    service = a_service(**{"replicas": 1, **wish})
    cell = Cell([service, *rows])
    found = _explained(cell)

    (waiting,) = found.waiting
    assert (waiting.count, waiting.state) == (1, PENDING)
    assert waiting.reason.startswith("no suitable node (")
    assert _causes(waiting.nodes) == {"n1": [(filter_name, text)]}


def test_every_node_has_its_own_reasons_and_all_of_them() -> None:
    wish = _spec(reserved=Resources(memory_bytes=GIB), constraints=("node.labels.zone==east",))
    small = a_node("n2", labels={"zone": "west"}, resources=Resources(memory_bytes=GIB // 2))
    cell = Cell([a_node("n1", labels={"zone": "east"}, state=NodeState.DOWN), small,
                 a_service(replicas=2, task=wish)])  # fmt: skip
    found = _explained(cell)

    assert (found.running_tasks, found.desired_tasks) == (0, 2)
    (waiting,) = found.waiting
    assert (waiting.count, len(waiting.task_ids)) == (2, 2)
    assert _causes(waiting.nodes) == {
        "n1": [("ready", "the node is down")],
        "n2": [
            ("resources", "memory: 1024 MiB to be reserved, 512 MiB of 512 MiB left"),
            ("constraint", "node.labels.zone==east: the node has 'west'"),
        ],
    }


def test_a_service_that_runs_has_nothing_to_explain() -> None:
    cell = Cell([a_node("n1"), a_service(replicas=1)])
    _settle(cell)
    cell.report(cell.tasks()[0].id, TaskState.RUNNING)
    found = _explained(cell)

    assert (found.running_tasks, found.desired_tasks) == (1, 1)
    for field in (found.waiting, found.nodes_without, found.update, found.failures):
        assert not field


def test_global_services_name_the_nodes_that_are_without() -> None:
    service = a_service(task=_spec(constraints=("node.labels.disk==ssd",)))
    service = service.replaced(spec=service.spec.replaced(mode=GlobalMode()))
    cell = Cell([
        a_node("n1", labels={"disk": "ssd"}), a_node("n2"),
        a_node("n3", availability=NodeAvailability.PAUSE, labels={"disk": "ssd"}), service,
    ])  # fmt: skip
    found = _explained(cell)

    assert _causes(found.nodes_without) == {
        "n2": [("constraint", "node.labels.disk==ssd: the node has none")],
        "n3": [("ready", "the node's availability is pause")],
    }


def test_tasks_on_nodes_say_what_their_agents_say() -> None:
    cell = Cell([a_node("n1"), a_node("n2"), a_service(replicas=2)])
    _settle(cell)
    on = {task.node_id: task.id for task in cell.tasks()}
    cell.report(on["n1"], TaskState.PREPARING, message="pulling image")
    found = _explained(cell)

    said = {entry.state: (list(entry.task_ids), entry.reason) for entry in found.waiting}
    assert said[types_pb2.TASK_STATE_PREPARING] == ([on["n1"]], "on node host-n1: pulling image")
    assert said[types_pb2.TASK_STATE_ASSIGNED][0] == [on["n2"]]


def test_errors_are_counted_and_the_delay_before_the_next_start_is_told() -> None:
    cell = Cell([a_node("n1"), a_service(replicas=1)])
    for _ in range(3):
        _settle(cell)
        cell.advance(60)
        _settle(cell)
        cell.report(cell.tasks()[-1].id, TaskState.FAILED, error="task: non-zero exit (7)")
    found = _explained(cell)

    (failure,) = found.failures
    assert (failure.error, failure.count) == ("task: non-zero exit (7)", 3)
    assert (failure.last_at_ns, list(failure.node_ids)) == (cell.now_ns, ["n1"])
    (waiting,) = found.waiting
    assert waiting.reason == "the delay before its start: 5 s left"


def test_what_ended_for_good_says_that_it_is_not_replaced() -> None:
    policy = RestartPolicy(condition=RestartCondition.NONE)
    task = _spec().replaced(restart=policy)
    cell = Cell([a_node("n1"), a_service(replicas=1, task=task)])
    _settle(cell)
    cell.report(cell.tasks()[0].id, TaskState.FAILED, error="no such image: x")
    found = _explained(cell)

    (waiting,) = found.waiting
    assert waiting.reason == (
        "ended and is not replaced by the restart condition none: no such image: x"
    )


def test_tasks_of_lost_nodes_and_of_networks_without_subnets_wait_for_these() -> None:
    cell = Cell([a_node("n1"), a_service(replicas=1, task=_spec(networks=("gone",)))])
    (waiting,) = _explained(cell).waiting
    assert waiting.state == types_pb2.TASK_STATE_NEW
    assert "gone" in waiting.reason
    assert not waiting.nodes


def _updating() -> Cell:
    """Three slots, one at a time: the first has its new task, which cannot be placed."""
    config = UpdateConfig(parallelism=1, delay_ns=10 * SECOND_NS)
    cell = Cell([a_node("n1"), a_service(replicas=3, update=config)])
    _settle(cell)
    for task in cell.tasks():
        cell.report(task.id, TaskState.RUNNING)
    _settle(cell)
    service = cell.service()
    task = _spec(constraints=("node.labels.zone==east",))
    spec = service.spec.replaced(task=task.replaced(runtime=ContainerSpec(image="nginx:2")))
    cell.put(service.replaced(spec=spec, previous_spec=service.spec))
    _settle(cell)
    return cell


def test_a_service_that_waits_for_another_says_so() -> None:
    dependency = ServiceDependency(service="db", condition=DependencyCondition.HEALTHY)
    web = a_service("web", replicas=1)
    web = web.replaced(spec=web.spec.replaced(depends_on=(dependency,)))
    cell = Cell([a_node("n1"), a_service("db", replicas=2), web])
    assert list(_explained(cell).held) == [
        "waits for service db to run and be healthy: 0 of 2 tasks"
    ]
    assert not _explained(cell, "db").held


def test_an_update_says_which_slot_it_waits_for_and_why() -> None:
    cell = _updating()
    found = _explained(cell)

    new = next(task for task in cell.tasks() if task.status.state is TaskState.PENDING)
    assert list(found.update) == [
        "0 of 3 slots done, 1 on the way, 2 not begun",
        f"slot {new.slot}: task {new.id} is pending: {new.status.error}",
        f"slot {new.slot}: counts as failed in 600 s unless it makes progress",
        "at most 1 at a time (parallelism)",
    ]


def test_an_update_waits_for_its_delay_then_for_its_monitor() -> None:
    cell = _updating()
    cell.put(a_node("n1", labels={"zone": "east"}))
    told: list[str] = []
    for _ in range(3):
        _settle(cell)
        for task in cell.tasks():
            if task.desired_state is TaskState.SHUTDOWN and task.status.state is TaskState.RUNNING:
                cell.report(task.id, TaskState.SHUTDOWN)
        _settle(cell)
        for task in cell.tasks():
            if task.status.state is TaskState.ASSIGNED:
                cell.report(task.id, TaskState.RUNNING)
        told.append(_explained(cell).update[-1])
        cell.advance(10)

    assert told == [
        "the delay between slots: 10 s left",
        "the delay between slots: 10 s left",
        "all slots are done, they are watched for another 11 s (monitor)",
    ]
    cell.advance(2)
    assert not _explained(cell).update


def test_a_paused_update_says_how_it_goes_on() -> None:
    cell = Cell([a_node("n1"), a_service(replicas=1)])
    _settle(cell)
    cell.report(cell.tasks()[0].id, TaskState.RUNNING)
    _settle(cell)
    service = cell.service()
    spec = service.spec.replaced(task=_spec().replaced(force_update=1))
    cell.put(service.replaced(spec=spec, previous_spec=service.spec))
    _settle(cell)
    new = next(task for task in cell.tasks() if task.status.state is TaskState.ASSIGNED)
    cell.report(new.id, TaskState.REJECTED, error="no such image")

    (line,) = _explained(cell).update
    assert line.startswith("update paused due to failure or early termination of task")
    assert line.endswith("it goes on with `service update --resume`, or another change")


def test_the_answer_is_bounded_and_counts_what_it_left_out(monkeypatch) -> None:
    monkeypatch.setattr(explain, "NODES_MAX", 3)
    monkeypatch.setattr(explain, "IDS_MAX", 2)
    nodes = [a_node(f"n{number}", state=NodeState.DOWN) for number in range(5)]
    found = _explained(Cell([*nodes, a_service(replicas=4)]))

    (waiting,) = found.waiting
    assert (waiting.count, len(waiting.task_ids), len(waiting.nodes)) == (4, 2, 3)
    assert found.nodes_left_out == 2


def test_whether_less_important_services_give_way():
    wish = _spec(reserved=Resources(memory_bytes=8 * GIB))
    high = a_service("web", replicas=1, task=wish)
    high = high.replaced(spec=high.spec.replaced(priority=5))
    low = a_service("low", replicas=1, task=wish)

    def told(**fields: object) -> list[str]:
        held = low.replaced(spec=low.spec.replaced(**fields))
        there = a_task("t", service_id="low", spec=wish)
        return list(_explained(Cell([a_node("n1"), high, held, there])).preemption)

    spared = "its disruption budget is 0, 0 places are unserved"
    assert told(disruption_budget=0) == [f"service low of priority 0 is spared: {spared}"]
    assert told() == ["service low of priority 0: 1 of its tasks are stopping to make room"]
    assert told(priority=5) == []
    small = _spec(reserved=Resources(memory_bytes=4 * GIB))
    node = a_node("n1", resources=Resources(memory_bytes=4 * GIB))
    other = low.replaced(spec=low.spec.replaced(task=small))
    cell = Cell([node, high, other, a_task("t", service_id="low", spec=small)])
    assert list(_explained(cell).preemption) == [
        "service low of priority 0 may give way, where that makes room enough"
    ]
