"""Placement strategies: spread takes the emptiest nodes, binpack the fullest that still fit."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import given

from manager.scheduler.plan import plan
from shoal.model.enums import PlacementStrategy, TaskState
from shoal.model.objects import Cluster, Task
from shoal.model.specs import ClusterSpec, OrchestrationConfig, TaskSpec
from shoal.model.types import Placement, PlacementPreference, ResourceRequirements, Resources
from tests.support.planning import SECOND_NS, START_NS, Cell, a_node, a_task

GIB = 1 << 30
DEFAULT, SPREAD, BINPACK = PlacementStrategy


def _spec(
    strategy: PlacementStrategy, reserved: Resources, *preferences: PlacementPreference
) -> TaskSpec:
    return TaskSpec(
        placement=Placement(strategy=strategy, preferences=preferences),
        resources=ResourceRequirements(reservations=reserved),
    )


def _pending(count: int, spec: TaskSpec) -> list[Task]:
    return [
        a_task(f"p{slot:04}", slot=slot, state=TaskState.PENDING, node_id="", spec=spec)
        for slot in range(1, count + 1)
    ]


def _cluster(strategy: PlacementStrategy) -> Cluster:
    settings = OrchestrationConfig(placement_strategy=strategy)
    return Cluster(id="c1", spec=ClusterSpec(orchestration=settings))


def _placed(cell: Cell) -> Counter[str]:
    cell.settle(lambda tables: plan(tables, now_ns=cell.now_ns, ids=cell.ids))
    return Counter(task.node_id for task in cell.tables.tasks if task.id.startswith("p"))


@given(st.integers(1, 12), st.integers(0, 40), st.integers(1, 8), st.booleans())
def test_packing_uses_as_few_nodes_as_equal_tasks_need(nodes, tasks, memory_gib, by_cluster):
    """Nodes of 8 GiB; the service says so, or the cluster for one that says nothing."""
    spec = _spec(DEFAULT if by_cluster else BINPACK, Resources(memory_bytes=memory_gib * GIB))
    cluster = _cluster(BINPACK if by_cluster else SPREAD)
    equal = [a_node(f"n{number:02}") for number in range(nodes)]
    placed = _placed(Cell([cluster, *equal, *_pending(tasks, spec)]))

    fit = 8 // memory_gib
    waiting = placed.pop("", 0)
    assert waiting == max(0, tasks - nodes * fit)
    assert len(placed) == -(-(tasks - waiting) // fit)
    assert all(count <= fit for count in placed.values())


def test_a_service_that_says_spread_spreads_in_a_cluster_that_packs():
    spec = _spec(SPREAD, Resources())
    cell = Cell([_cluster(BINPACK), a_node("n1"), a_node("n2"), *_pending(4, spec)])

    assert _placed(cell) == {"n1": 2, "n2": 2}


def test_packing_fills_the_fullest_by_the_scarcer_resource_and_last_where_tasks_fail():
    there = [
        a_task("c", service_id="db", node_id="n2",
               spec=_spec(DEFAULT, Resources(nano_cpus=3 * SECOND_NS))),
        a_task("m", service_id="db", node_id="n3",
               spec=_spec(DEFAULT, Resources(memory_bytes=5 * GIB))),
    ]  # fmt: skip
    spec = _spec(BINPACK, Resources(nano_cpus=SECOND_NS // 2, memory_bytes=GIB))
    nodes = [a_node(f"n{number}") for number in (1, 2, 3)]
    assert _placed(Cell([*nodes, *there, *_pending(6, spec)])) == {"n1": 1, "n2": 2, "n3": 3}

    failed = [
        a_task(f"f{number}", slot=100 + number, state=TaskState.FAILED, at_ns=START_NS,
               desired=TaskState.SHUTDOWN, node_id="n2")
        for number in range(5)
    ]  # fmt: skip
    assert _placed(Cell([*nodes, *there, *failed, *_pending(1, spec)])) == {"n3": 1}


def test_spread_preferences_stand_above_packing():
    zones = PlacementPreference(spread_descriptor="node.labels.zone")
    spec = _spec(BINPACK, Resources(memory_bytes=GIB), zones)
    nodes = [a_node(f"n{number}", labels={"zone": "ab"[number % 2]}) for number in range(6)]

    assert _placed(Cell([*nodes, *_pending(8, spec)])) == {"n0": 4, "n1": 4}
