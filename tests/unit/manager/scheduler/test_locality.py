"""Nodes that have the image: taken first among equals, and never against any other rule."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import given

from manager.reconcile.dirty import NOTHING, dirty_from_event
from manager.scheduler.plan import plan
from manager.scheduler.rank import EmptiestFirst
from manager.scheduler.usage import Usage
from shoal.model.enums import ActionKind, PlacementStrategy, TaskState
from shoal.model.images import join
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import Placement, PlacementPreference
from tests.support.planning import Cell, a_node, a_task


def _node(node_id: str, *images: str, **fields):
    node = a_node(node_id, **fields)
    return node.replaced(description=node.description.replaced(images=join(images)))


def _placed(rows: list, count: int, **placement) -> Counter[str]:
    spec = TaskSpec(runtime=ContainerSpec(image="web:1"), placement=Placement(**placement))
    waiting = [
        a_task(f"p{slot}", slot=slot, state=TaskState.PENDING, node_id="", spec=spec)
        for slot in range(1, count + 1)
    ]
    cell = Cell([*rows, *waiting])
    cell.settle(lambda tables: plan(tables, now_ns=cell.now_ns, ids=cell.ids))
    return Counter(task.node_id for task in cell.tables.tasks if task.id.startswith("p"))


def _busy(node_id: str, number: int):
    return a_task(f"b{node_id}{number}", service_id="other", slot=number, node_id=node_id)


HAS, LACKS, OTHER = _node("n2", "web:1", "db"), _node("n1", "web:2"), _node("n3")


def test_among_equals_the_node_that_has_the_image():
    assert _placed([LACKS, HAS, OTHER], 1) == {"n2": 1}
    assert _placed([LACKS, HAS, OTHER], 2) == {"n2": 1, "n1": 1}
    assert _placed([LACKS, HAS, OTHER], 4) == {"n2": 2, "n1": 1, "n3": 1}


def test_never_against_spread_or_wishes():
    assert _placed([LACKS, HAS, _busy("n2", 1)], 1) == {"n1": 1}
    wish = PlacementPreference(avoid="node.id==n2")
    assert _placed([LACKS, HAS], 1, preferences=(wish,)) == {"n1": 1}
    assert _placed([LACKS, HAS], 1, constraints=("node.id!=n2",)) == {"n1": 1}


def test_where_tasks_are_packed_as_well():
    packed = PlacementStrategy.BINPACK
    assert _placed([LACKS, HAS], 3, strategy=packed) == {"n2": 3}
    assert _placed([LACKS, HAS, _busy("n1", 1)], 3, strategy=packed) == {"n1": 3}


def test_images_that_come_and_go_make_nothing_be_looked_at_again():
    assert dirty_from_event(ActionKind.UPDATE, LACKS, _node("n1", "web:1")) == NOTHING
    assert dirty_from_event(ActionKind.UPDATE, LACKS, _node("n1", "web:1", labels={"a": "b"}))


NODES = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6)


@given(NODES)
def test_every_node_comes_once_by_tasks_then_image_then_id(nodes):
    usages = [
        Usage(_node(f"n{index}"), [_busy(f"n{index}", number) for number in range(tasks)])
        for index, (tasks, _) in enumerate(nodes)
    ]
    favoured = {f"n{index}" for index, (_, has) in enumerate(nodes) if has}
    order = EmptiestFirst(usages)
    expected = sorted(usages, key=lambda one: (one.tasks, one.node.id not in favoured, one.node.id))
    for _ in range(2):  # what was looked at is there for the next group
        assert [*order.each(favoured)] == expected
    assert [*order.each()] == sorted(usages, key=lambda one: (one.tasks, one.node.id))


@given(NODES, st.integers(1, 12))
def test_the_spread_is_the_same_with_and_without(nodes, count):
    busy = [
        _busy(f"n{index}", number)
        for index, (tasks, _) in enumerate(nodes)
        for number in range(tasks)
    ]
    plain = [_node(f"n{index}") for index in range(len(nodes))]
    told = [_node(f"n{index}", *(["web:1"] if has else [])) for index, (_, has) in enumerate(nodes)]

    def shape(placed: Counter[str]) -> list[tuple[int, int]]:
        return sorted((placed[f"n{index}"], tasks) for index, (tasks, _) in enumerate(nodes))

    assert shape(_placed([*plain, *busy], count)) == shape(_placed([*told, *busy], count))
