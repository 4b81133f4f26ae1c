from __future__ import annotations

from collections import Counter

import pytest

from manager.scheduler import enforcer
from manager.scheduler.plan import plan
from shoal.model.enums import NodeAvailability, NodeState, TaskState
from shoal.model.objects import Node, Task
from shoal.model.plan import CHANGES_MAX
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import (
    Driver,
    Endpoint,
    GenericResource,
    NetworkAttachmentConfig,
    NetworkKey,
    Placement,
    PlacementPreference,
    Platform,
    ResourceRequirements,
    Resources,
)
from tests.support.planning import SECOND_NS, START_NS, Cell, a_network, a_node, a_port, a_task

GIB = 1 << 30


def _pending(count: int, *, spec: TaskSpec | None = None, **fields: object) -> list[Task]:
    return [
        a_task(f"p{slot:04}", slot=slot, state=TaskState.PENDING, node_id="", spec=spec).replaced(
            **fields
        )
        for slot in range(1, count + 1)
    ]


def _spec(placement: Placement | None = None, reservations: Resources | None = None) -> TaskSpec:
    return TaskSpec(
        runtime=ContainerSpec(image="nginx:1"),
        placement=placement or Placement(),
        resources=ResourceRequirements(reservations=reservations or Resources()),
    )


def _settle(cell: Cell) -> list[int]:
    plans = cell.settle(lambda tables: plan(tables, now_ns=cell.now_ns, ids=cell.ids))
    return [len(done.changes) for done in plans]


def _nodes_of(cell: Cell, prefix: str = "p") -> Counter[str]:
    return Counter(task.node_id for task in cell.tables.tasks if task.id.startswith(prefix))


def _error(cell: Cell) -> str:
    return next(task.status.error for task in cell.tasks() if not task.node_id)


def test_a_placed_task_is_assigned_with_swarms_message() -> None:
    cell = Cell([a_node("n1"), *_pending(1)])
    _settle(cell)

    (task,) = cell.tasks()
    assert (task.node_id, task.status.state) == ("n1", TaskState.ASSIGNED)
    assert task.status.message == "scheduler assigned task to node"


def test_tasks_spread_evenly_over_nodes() -> None:
    cell = Cell([*(a_node(f"n{number}") for number in range(7)), *_pending(700)])

    rounds = _settle(cell)

    assert set(_nodes_of(cell).values()) == {100}
    assert rounds == [CHANGES_MAX, CHANGES_MAX, CHANGES_MAX, 100, 0]


def test_fewest_of_the_service_come_before_fewest_in_all() -> None:
    own = [a_task("own", slot=9, node_id="n1")]
    other = [a_task(f"o{number}", service_id="db", slot=number, node_id="n2") for number in (1, 2)]
    cell = Cell([a_node("n1"), a_node("n2"), *own, *other, *_pending(1)])
    _settle(cell)

    assert _nodes_of(cell) == {"n2": 1}


def test_nodes_where_the_version_failed_five_times_lately_come_last() -> None:
    def failed(at_ns: int) -> list[Task]:
        return [
            a_task(f"f{number}", slot=100 + number, state=TaskState.FAILED, at_ns=at_ns,
                   desired=TaskState.SHUTDOWN, node_id="n1")
            for number in range(5)
        ]  # fmt: skip

    busy = [a_task("busy", slot=9, node_id="n2")]
    cell = Cell([a_node("n1"), a_node("n2"), *busy, *failed(START_NS), *_pending(1)])
    _settle(cell)
    assert _nodes_of(cell) == {"n2": 1}

    long_ago = START_NS - 301 * SECOND_NS
    cell = Cell([a_node("n1"), a_node("n2"), *busy, *failed(long_ago), *_pending(1)])
    _settle(cell)
    assert _nodes_of(cell) == {"n1": 1}


@pytest.mark.parametrize(
    "node",
    [
        a_node("n1", state=NodeState.DOWN),
        a_node("n1", state=NodeState.UNKNOWN),
        a_node("n1", state=NodeState.DISCONNECTED),
        a_node("n1", availability=NodeAvailability.PAUSE),
        a_node("n1", availability=NodeAvailability.DRAIN),
    ],
)
def test_only_ready_active_nodes_take_tasks(node: Node) -> None:
    cell = Cell([node, *_pending(1)])
    _settle(cell)

    assert _error(cell) == "no suitable node (1 node not available for new tasks)"


def test_reservations_are_kept_and_those_of_dead_tasks_are_free() -> None:
    wish = _spec(reservations=Resources(memory_bytes=3 * GIB))
    dead = a_task("dead", slot=50, state=TaskState.FAILED, spec=wish)
    stopping = a_task("stopping", slot=51, desired=TaskState.SHUTDOWN, spec=wish)
    cell = Cell([a_node("n1"), dead, stopping, *_pending(3, spec=wish)])
    _settle(cell)

    assert _nodes_of(cell) == {"n1": 1, "": 2}
    assert _error(cell) == "no suitable node (insufficient resources on 1 node)"


def test_generic_resources_are_counted_or_named() -> None:
    room = Resources(
        generic=(
            GenericResource(kind="gpu", named_value="b"),
            GenericResource(kind="gpu", named_value="a"),
            GenericResource(kind="gpu", named_value="c"),
            GenericResource(kind="ssd", count=3),
        )
    )
    wish = _spec(
        reservations=Resources(
            generic=(GenericResource(kind="gpu", count=1), GenericResource(kind="ssd", count=1))
        )
    )
    cell = Cell([a_node("n1", resources=room), *_pending(4, spec=wish)])
    _settle(cell)

    given = [task.assigned_generic_resources for task in cell.tasks() if task.node_id]
    assert sorted(piece.named_value for pieces in given for piece in pieces) == [
        "", "", "", "a", "b", "c",
    ]  # fmt: skip
    assert _nodes_of(cell) == {"n1": 3, "": 1}


def test_platforms_and_constraints() -> None:
    nodes = [a_node("n1", architecture="aarch64"), a_node("n2", labels={"disk": "ssd"})]
    arm = _spec(Placement(platforms=(Platform(architecture="arm64", os="linux"),)))
    fast = _spec(Placement(constraints=("node.labels.disk == ssd",)))
    for spec, node_id in [(arm, "n1"), (fast, "n2")]:
        cell = Cell([*nodes, *_pending(2, spec=spec)])
        _settle(cell)
        assert _nodes_of(cell) == {node_id: 2}


def test_a_host_port_is_used_once_per_node() -> None:
    endpoint = Endpoint(ports=(a_port(80, 8080, host=True),))
    cell = Cell([a_node("n1"), a_node("n2"), *_pending(3, endpoint=endpoint)])
    _settle(cell)

    assert _nodes_of(cell) == {"n1": 1, "n2": 1, "": 1}
    assert _error(cell) == "no suitable node (host-mode port already in use on 2 nodes)"


def test_host_ports_at_different_addresses_share_a_node() -> None:
    port = a_port(80, 8080, host=True)
    places = [
        port.replaced(address="192.0.2.1"),
        port.replaced(address="192.0.2.2"),
        port.replaced(address="192.0.2.1"),
    ]
    tasks = [
        task.replaced(endpoint=Endpoint(ports=(place,)))
        for task, place in zip(_pending(len(places)), places, strict=True)
    ]
    cell = Cell([a_node("n1"), *tasks])
    _settle(cell)

    assert _nodes_of(cell) == {"n1": 2, "": 1}
    assert "host-mode port already in use on 1 node" in _error(cell)


def test_max_replicas_per_node() -> None:
    cell = Cell([a_node("n1"), a_node("n2"), *_pending(5, spec=_spec(Placement(max_replicas=2)))])
    _settle(cell)

    assert _nodes_of(cell) == {"n1": 2, "n2": 2, "": 1}
    assert _error(cell) == "no suitable node (max replicas per node limit exceed)"


def test_the_explanation_names_the_filter_that_refused_most_first() -> None:
    spec = _spec(
        Placement(constraints=("node.labels.disk == ssd",)), Resources(nano_cpus=3 * SECOND_NS)
    )
    small = Resources(nano_cpus=SECOND_NS, memory_bytes=GIB)
    nodes = [
        a_node("n1"),
        a_node("n2"),
        a_node("n3"),
        a_node("n4", resources=small),
        a_node("n5", resources=small),
        a_node("n6", state=NodeState.DOWN),
    ]
    cell = Cell([*nodes, *_pending(1, spec=spec)])
    _settle(cell)

    assert _error(cell) == (
        "no suitable node (scheduling constraints not satisfied on 3 nodes; "
        "insufficient resources on 2 nodes; 1 node not available for new tasks)"
    )


def test_a_service_on_an_encrypted_network_waits_for_nodes_that_can_encrypt() -> None:
    """Never is it placed where it would be in the clear, also not as a task that has its node."""
    sealed, plain = (
        a_network(name, driver=Driver("overlay", options))
        for name, options in (("sealed", {"encrypted": ""}), ("plain", {}))
    )
    wishes = {
        name: TaskSpec(networks=(NetworkAttachmentConfig(target=name),))
        for name in ("sealed", "plain")
    }
    cell = Cell([a_node("n1"), a_node("n2"), sealed, plain, *_pending(1, spec=wishes["plain"])])
    _settle(cell)
    assert cell.tasks()[0].node_id

    cell = Cell([a_node("n1"), a_node("n2"), sealed, plain, *_pending(2, spec=wishes["sealed"])])
    _settle(cell)
    assert _error(cell) == (
        "no suitable node (no WireGuard (CONFIG_WIREGUARD) for encrypted networks on 2 nodes)"
    )
    able = a_node("n2")
    keys = (NetworkKey(0, bytes(32)),)
    cell.put(able.replaced(description=able.description.replaced(network_keys=keys)))
    _settle(cell)
    assert {task.node_id for task in cell.tasks()} == {"n2"}


def test_an_unchanged_reason_is_not_written_again() -> None:
    cell = Cell(_pending(2))

    assert _settle(cell) == [2, 0]
    assert _error(cell) == "no suitable node"


def test_tasks_spread_over_labels_first_nested() -> None:
    nodes = [
        a_node("n1", labels={"zone": "a", "rack": "1"}),
        a_node("n2", labels={"zone": "a", "rack": "1"}),
        a_node("n3", labels={"zone": "a", "rack": "2"}),
        a_node("n4", labels={"zone": "b", "rack": "1"}),
        a_node("n5"),
    ]
    spread = _spec(
        Placement(
            preferences=(
                PlacementPreference(spread_descriptor="node.labels.zone"),
                PlacementPreference(spread_descriptor="node.labels.rack"),
            )
        )
    )
    cell = Cell([*nodes, *_pending(12, spec=spread)])
    _settle(cell)

    assert _nodes_of(cell) == {"n1": 1, "n2": 1, "n3": 2, "n4": 4, "n5": 4}


def test_a_full_branch_leaves_its_share_to_the_others() -> None:
    nodes = [
        a_node("n1", labels={"zone": "a"}),
        a_node("n2", labels={"zone": "b"}),
        a_node("n3", labels={"zone": "b"}),
    ]
    spec = _spec(
        Placement(
            max_replicas=2,
            preferences=(PlacementPreference(spread_descriptor="node.labels.zone"),),
        )
    )
    cell = Cell([*nodes, *_pending(6, spec=spec)])
    _settle(cell)

    assert _nodes_of(cell) == {"n1": 2, "n2": 2, "n3": 2}


def _enforce(cell: Cell) -> list[str]:
    cell.settle(lambda _: enforcer.plan(cell.tables, ["n1"], now_ns=cell.now_ns, ids=cell.ids))
    return sorted(task.id for task in cell.tasks() if task.status.state is TaskState.REJECTED)


def test_the_enforcer_rejects_what_no_longer_fits_the_node() -> None:
    picky = _spec(Placement(constraints=("node.labels.disk == ssd",)))
    tasks = [a_task("any", slot=1), a_task("picky", slot=2, spec=picky)]

    assert _enforce(Cell([a_node("n1", labels={"disk": "ssd"}), *tasks])) == []
    assert _enforce(Cell([a_node("n1", availability=NodeAvailability.PAUSE), *tasks])) == []
    cell = Cell([a_node("n1"), *tasks])
    assert _enforce(cell) == ["picky"]
    assert cell.tasks()[-1].status.error == "assigned node no longer meets constraints"


def test_the_enforcer_gives_up_the_youngest_when_a_node_shrank() -> None:
    wish = _spec(reservations=Resources(memory_bytes=3 * GIB))
    tasks = [
        a_task(f"t{number}", slot=number, spec=wish, created_at_ns=START_NS + number)
        for number in (1, 2, 3)
    ]
    small = a_node("n1", resources=Resources(memory_bytes=7 * GIB))

    assert _enforce(Cell([small, *tasks])) == ["t3"]
