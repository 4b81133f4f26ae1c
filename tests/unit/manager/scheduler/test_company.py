"""Constraints on other services: near to them, away from them, and whoever comes after."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from manager.controlapi.validate_modes import service_mode
from manager.reconcile.dirty import Dirty
from manager.reconcile.plan import plan_round
from manager.scheduler.company import Company
from manager.scheduler.plan import plan
from manager.scheduler.reasons import reasons
from manager.scheduler.usage import Usage
from shoal.errors import InvalidArgument
from shoal.model.enums import TaskState
from shoal.model.specs import GlobalMode, ServiceSpec, TaskSpec
from shoal.model.types import Annotations, Placement, PlacementPreference
from tests.support.planning import Cell, a_node, a_service, a_task

NODES = [a_node(f"n{number}") for number in (1, 2, 3)]


def _spec(*constraints: str, **placement) -> TaskSpec:
    return TaskSpec(placement=Placement(constraints=constraints, **placement))


def _service(service_id: str, *constraints: str, labels=None, **fields):
    service = a_service(service_id, **fields)
    annotations = Annotations(name=service_id, labels=labels or {})
    task = _spec(*constraints)
    return service.replaced(spec=service.spec.replaced(annotations=annotations, task=task))


def _waiting(count: int, spec: TaskSpec, service_id: str = "new") -> list:
    return [
        a_task(f"{service_id}{slot}", slot=slot, service_id=service_id, state=TaskState.PENDING,
               node_id="", spec=spec)
        for slot in range(1, count + 1)
    ]  # fmt: skip


def _placed(rows: list, service_id: str = "new") -> tuple[Counter[str], str]:
    cell = Cell(rows)
    cell.settle(lambda tables: plan(tables, now_ns=cell.now_ns, ids=cell.ids))
    tasks = list(cell.tables.tasks_of_service(service_id).values())
    errors = {task.status.error for task in tasks if not task.node_id}
    return Counter(task.node_id for task in tasks if task.node_id), "".join(errors)


DB = _service("db", labels={"tier": "data"}, replicas=1)
CACHE = _service("cache", replicas=1)
THERE = [DB, CACHE, a_task("d", service_id="db", node_id="n2"),
         a_task("c", service_id="cache", node_id="n3")]  # fmt: skip


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ("service.name==db", {"n2": 6}),
        ("service.name == DB", {"n2": 6}),
        ("service.labels.tier==data", {"n2": 6}),
        ("service.labels.tier exists", {"n2": 6}),
        ("service.name ~= c*e", {"n3": 6}),
        ("service.name in (db, cache)", {"n2": 3, "n3": 3}),
        ("service.name!=db", {"n1": 3, "n3": 3}),
        ("service.name notin (db, cache)", {"n1": 6}),
        ("service.labels.tier!=data", {"n1": 3, "n3": 3}),
    ],
)
def test_tasks_go_where_the_company_is_as_they_want_it(constraint, expected):
    placed, error = _placed([*NODES, *THERE, *_waiting(6, _spec(constraint))])
    assert (placed, error) == (expected, "")


def test_who_is_wanted_must_be_wanted_there_and_who_is_not_must_have_ended():
    stopping = [DB, a_task("d", service_id="db", node_id="n2", desired=TaskState.SHUTDOWN)]
    _, error = _placed([*NODES, *stopping, *_waiting(1, _spec("service.name==db"))])
    assert error == "no suitable node (scheduling constraints not satisfied on 3 nodes)"
    placed, _ = _placed([NODES[1], *stopping, *_waiting(1, _spec("service.name!=db"))])
    assert placed == {}
    ended = [DB, stopping[1].with_status(stopping[1].status.replaced(state=TaskState.SHUTDOWN))]
    placed, _ = _placed([NODES[1], *ended, *_waiting(1, _spec("service.name!=db"))])
    assert placed == {"n2": 1}


def test_who_keeps_away_has_others_kept_away():
    alone = _service("alone", "service.labels.tier notin (data, web)")
    task = a_task("a", service_id="alone", node_id="n1", spec=alone.spec.task)
    rows = [*NODES, DB, alone, task]
    placed, _ = _placed([*rows, *_waiting(4, _spec(), "db")], "db")
    assert placed == {"n2": 2, "n3": 2}
    placed, _ = _placed([*rows, CACHE, *_waiting(3, _spec(), "cache")], "cache")
    assert placed == {"n1": 1, "n2": 1, "n3": 1}


def test_within_one_round_as_well():
    """Neither was there when the round began."""
    first, second = _service("a", "service.name!=b"), _service("b")
    rows = [*NODES[:2], first, second, *_waiting(1, first.spec.task, "a")]
    assert _placed([*rows, *_waiting(3, _spec(), "b")], "b")[0] == {"n2": 3}


def test_a_service_is_no_company_of_its_own():
    own = _service("new", "service.labels.tier!=x", labels={"tier": "x"})
    placed, _ = _placed([NODES[0], own, *_waiting(3, own.spec.task)])
    assert placed == {"n1": 3}


def test_wishes_may_be_about_company_too():
    near = PlacementPreference(prefer="service.name==db")
    away = PlacementPreference(avoid="service.name==cache")
    assert _placed([*NODES, *THERE, *_waiting(2, _spec(preferences=(near,)))])[0] == {"n2": 2}
    both = _spec(preferences=(near, away), max_replicas=1)
    assert _placed([*NODES, *THERE, *_waiting(2, both)])[0] == {"n2": 1, "n1": 1}
    nobody = PlacementPreference(prefer="service.name==nobody")
    assert sum(_placed([*NODES, *_waiting(2, _spec(preferences=(nobody,)))])[0].values()) == 2


def test_explained_with_the_neighbour_s_name():
    alone = _service("alone", "service.labels.tier!=data")
    task = a_task("a", service_id="alone", node_id="n2", spec=alone.spec.task)
    view = Cell([*NODES, *THERE, alone, task]).tables

    def said(waiting) -> list[str]:
        usage = Usage(NODES[1], view.tasks_of_node("n2").values())
        return [one.text for one in reasons(view, waiting, usage, 0)]

    (new,) = _waiting(1, _spec("service.name!=db", "service.name==cache"))
    assert said(new) == [
        "service.name!=db: the node has a task of service db",
        "service.name==cache: the node has no task of such a service",
    ]
    (db,) = _waiting(1, _spec(), "db")
    assert said(db) == ["service alone keeps away from this one: service.labels.tier!=data"]


def test_a_task_that_waits_for_company_is_tried_when_that_comes():
    near = _service("new", "service.name==db")
    waiting = _waiting(1, near.spec.task)[0]
    there = a_task("d", service_id="db", node_id="n2", spec=DB.spec.task)
    cell = Cell([*NODES, near, DB, CACHE, waiting, there])

    def changed(service_id: str) -> dict[str, str]:
        dirty = Dirty(services=frozenset({service_id}))
        done = plan_round(cell.tables, dirty, now_ns=cell.now_ns, ids=cell.ids)
        placed = (change.object for change in done.changes)
        return {task.id: task.node_id for task in placed if task.id == "new1"}

    assert changed("cache") == {}
    assert changed("db") == {"new1": "n2"}


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            ServiceSpec(task=_spec("service.name==db"), mode=GlobalMode()),
            "can only be used with replicated",
        ),
        (
            ServiceSpec(annotations=Annotations(name="me"), task=_spec("service.name in (a, ME)")),
            "no company of its own",
        ),
    ],
)
def test_what_could_never_be_is_refused(spec, reason):
    with pytest.raises(InvalidArgument, match=reason):
        service_mode(spec)


NAMES = st.sampled_from(["a", "b", "c"])
TEXTS = st.builds("service.name{}{}".format, st.sampled_from(["==", "!="]), NAMES)


@given(
    st.lists(st.tuples(NAMES, st.sampled_from(["n1", "n2", "n3"])), max_size=6),
    st.dictionaries(NAMES, st.lists(TEXTS, max_size=2)),
)
def test_nobody_is_placed_where_somebody_objects(there, wishes):
    services = [_service(name, *texts) for name, texts in sorted(wishes.items())]
    running = [
        a_task(f"t{number}", service_id=name, node_id=node_id, slot=number)
        for number, (name, node_id) in enumerate(there)
    ]
    waiting = [task for one in services for task in _waiting(2, one.spec.task, one.id)]
    cell = Cell([*NODES, *services, *running, *waiting])
    cell.settle(lambda tables: plan(tables, now_ns=cell.now_ns, ids=cell.ids))
    for task in cell.tables.tasks:
        if task.id.startswith("t") or not task.node_id:
            continue
        node = cell.tables.nodes.get(task.node_id)
        others = cell.tables.tasks_of_node(node.id).values()
        usage = Usage(node, (other for other in others if other.id != task.id))
        assert Company(cell.tables, task).fits(usage)
