"""Preferences that are constraints: met where there is a choice, and never a reason to wait."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import given

from manager.scheduler.constraints import node_matches, parse_constraints
from manager.scheduler.plan import plan
from shoal.model.enums import PlacementStrategy, TaskState
from shoal.model.specs import TaskSpec
from shoal.model.types import Placement, PlacementPreference, ResourceRequirements, Resources
from tests.support.planning import START_NS, Cell, a_node, a_task

GIB = 1 << 30
TEXTS = ("node.labels.disk==ssd", "node.labels.cores>8", "node.labels.old exists")


def _prefer(text: str) -> PlacementPreference:
    return PlacementPreference(prefer=text)


def _avoid(text: str) -> PlacementPreference:
    return PlacementPreference(avoid=text)


def _placed(
    rows: list, tasks: int, *preferences: PlacementPreference, memory_gib: int = 0, **placement
) -> Counter[str]:
    spec = TaskSpec(
        placement=Placement(preferences=preferences, **placement),
        resources=ResourceRequirements(reservations=Resources(memory_bytes=memory_gib * GIB)),
    )
    pending = [
        a_task(f"p{slot}", slot=slot, state=TaskState.PENDING, node_id="", spec=spec)
        for slot in range(1, tasks + 1)
    ]
    cell = Cell([*rows, *pending])
    cell.settle(lambda tables: plan(tables, now_ns=cell.now_ns, ids=cell.ids))
    return Counter(task.node_id for task in cell.tables.tasks if task.id.startswith("p"))


SSD, HDD, BARE = (
    a_node("n3", labels={"disk": "ssd"}), a_node("n1", labels={"disk": "hdd"}), a_node("n2"),
)  # fmt: skip


def test_preferred_nodes_are_filled_before_others_and_others_before_avoided_ones():
    wishes = _prefer("node.labels.disk==ssd"), _avoid("node.labels.disk==hdd")
    expectations = (4, {"n3": 4}), (6, {"n3": 4, "n2": 2}), (9, {"n3": 4, "n2": 4, "n1": 1})
    for tasks, expected in expectations:
        assert _placed([SSD, HDD, BARE], tasks, *wishes, memory_gib=2) == expected


def test_wishes_that_no_node_meets_keep_nothing_from_running():
    placed = _placed([HDD, BARE], 4, _prefer("node.labels.disk==nvme"), _avoid("node.role==worker"))
    assert placed == {"n1": 2, "n2": 2}


def test_among_equals_the_strategy_decides_and_spread_preferences_come_first():
    other = a_node("n4", labels={"disk": "ssd"})
    wish = _prefer("node.labels.disk==ssd")
    assert _placed([SSD, HDD, BARE, other], 4, wish, memory_gib=1) == {"n3": 2, "n4": 2}
    packed = {"memory_gib": 1, "strategy": PlacementStrategy.BINPACK}
    assert _placed([SSD, HDD, BARE, other], 4, wish, **packed) == {"n3": 4}
    spread = PlacementPreference(spread_descriptor="node.labels.disk")
    assert _placed([SSD, HDD, BARE], 3, wish, spread) == {"n1": 1, "n2": 1, "n3": 1}


def test_a_preferred_node_where_tasks_fail_comes_last():
    failed = [
        a_task(f"f{number}", slot=100 + number, state=TaskState.FAILED, at_ns=START_NS,
               desired=TaskState.SHUTDOWN, node_id="n3")
        for number in range(5)
    ]  # fmt: skip
    assert _placed([SSD, HDD, *failed], 1, _prefer("node.labels.disk==ssd")) == {"n1": 1}


LABELS = st.fixed_dictionaries(
    {},
    optional={
        "disk": st.sampled_from(["ssd", "hdd"]),
        "cores": st.sampled_from(["4", "16"]),
        "old": st.just(""),
    },
)


WISHES = st.tuples(st.sampled_from(TEXTS), st.booleans())


@given(st.lists(LABELS, min_size=1, max_size=8), st.lists(WISHES, max_size=4))
def test_no_node_that_is_passed_over_meets_more_wishes(labels, wishes):
    nodes = [a_node(f"n{index}", labels=one) for index, one in enumerate(labels)]
    asked = (_prefer(text) if liked else _avoid(text) for text, liked in wishes)
    placed = _placed(nodes, 1, *asked)

    def met(node) -> int:
        return sum(node_matches(node, parse_constraints([text])) is liked for text, liked in wishes)

    (chosen,) = (node for node in nodes if placed[node.id])
    assert met(chosen) == max(map(met, nodes))
