"""Preemption: who is stopped for whom, as few as do, and never without a priority."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from manager.controlapi.validate_modes import service_mode
from manager.reconcile.dirty import EVERYTHING
from manager.reconcile.plan import plan_round
from manager.scheduler.plan import plan
from manager.scheduler.preempt import PREEMPTIONS_MAX, RETRY_NS, WINDOW, unserved
from manager.store.tables import Tables
from shoal.errors import InvalidArgument
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import RestartCondition, TaskState
from shoal.model.objects import Task
from shoal.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from shoal.model.types import (
    Endpoint,
    GenericResource,
    Placement,
    ResourceRequirements,
    Resources,
    RestartPolicy,
)
from tests.support.planning import START_NS, Cell, a_node, a_port, a_service, a_task

GIB = 1 << 30


def _node(number: int, gib: int = 4, **fields):
    generic = (GenericResource(kind="gpu", named_value="g1"),)
    return a_node(
        f"n{number}", resources=Resources(memory_bytes=gib * GIB, generic=generic), **fields
    )


def _task_spec(gib: int, *, gpus: int = 0, **fields) -> TaskSpec:
    generic = (GenericResource(kind="gpu", count=gpus),) if gpus else ()
    wish = Resources(memory_bytes=gib * GIB, generic=generic)
    return TaskSpec(
        runtime=ContainerSpec(image="nginx:1"),
        resources=ResourceRequirements(reservations=wish),
        **fields,
    )


def _service(name: str, priority: int, gib: int = 2, *, replicas: int = 1, budget=None, **fields):
    service = a_service(name, replicas=replicas, task=_task_spec(gib, **fields))
    spec = service.spec.replaced(priority=priority, disruption_budget=budget)
    return service.replaced(spec=spec)


def _running(service, slot: int, node: str = "n1", age: int = 0, **fields) -> Task:
    return a_task(
        f"{service.id}{slot}", slot=slot, service_id=service.id, node_id=node,
        spec=service.spec.task, created_at_ns=START_NS + age, **fields,
    )  # fmt: skip


def _waiting(service, slot: int = 1, **fields) -> Task:
    return a_task(
        f"{service.id}{slot}", slot=slot, service_id=service.id, node_id="",
        state=TaskState.PENDING, spec=service.spec.task, **fields,
    )  # fmt: skip


def _once(rows) -> Tables:
    cell = Cell(rows)
    cell.commit(plan(cell.tables, now_ns=cell.now_ns, ids=cell.ids).changes)
    return cell.tables


def _stopped(tables: Tables) -> dict[str, str]:
    return {task.id: task.stop_reason for task in tables.tasks if task.stop_reason}


def test_the_less_important_gives_way_and_is_told_why():
    low, high = _service("low", 0), _service("high", 10)
    tables = _once([_node(1, 2), low, high, _running(low, 1), _waiting(high)])
    reason = "preempted by service high, which has priority 10"
    assert _stopped(tables) == {"low1": reason}
    assert tables.tasks.get("low1").desired_state is TaskState.SHUTDOWN
    assert tables.tasks.get("high1").node_id == "", "its room is not free yet"


@pytest.mark.parametrize(("first", "second"), [(0, 0), (7, 7), (8, 7), (0, -1)])
def test_equals_and_the_more_important_are_left_alone(first, second):
    there, comes = _service("there", first), _service("comes", second)
    other = _service("other", -5, replicas=0)
    tables = _once([_node(1, 2), there, comes, other, _running(there, 1), _waiting(comes)])
    assert _stopped(tables) == {}


def test_no_more_than_does_the_least_important_and_youngest_first():
    low, mid, high = _service("low", 0, 1), _service("mid", 5, 1), _service("high", 10, 2)
    there = [_running(low, 1, age=1), _running(low, 2, age=2), _running(mid, 1), _running(low, 3)]
    tables = _once([_node(1), low, mid, high, *there, _waiting(high)])
    assert set(_stopped(tables)) == {"low2", "low1"}


def test_who_need_not_go_after_all_stays():
    """Small tasks are tried first; the large one alone is enough."""
    small, large = _service("small", 0, 1), _service("large", 1, 3)
    high = _service("high", 10, 3)
    rows = [_node(1), small, large, high, _running(small, 1), _running(large, 1), _waiting(high)]
    assert set(_stopped(_once(rows))) == {"large1"}


def test_the_node_where_least_is_lost():
    low, mid, high = _service("low", 0), _service("mid", 5), _service("high", 10)
    there = [_running(mid, 1, "n1"), _running(low, 1, "n2")]
    rows = [_node(1, 2), _node(2, 2), low, mid, high, *there, _waiting(high)]
    assert set(_stopped(_once(rows))) == {"low1"}


def test_nobody_is_stopped_where_that_would_not_help():
    low, high = _service("low", 0, 2), _service("high", 10, 3)
    tables = _once([_node(1, 2), low, high, _running(low, 1), _waiting(high)])
    assert _stopped(tables) == {}
    far = _service("high", 10, placement=Placement(constraints=("node.labels.zone==b",)))
    assert _stopped(_once([_node(1, 2), low, far, _running(low, 1), _waiting(far)])) == {}


def test_nobody_is_stopped_where_there_is_room():
    low, high = _service("low", 0), _service("high", 10)
    tables = _once([_node(1, 2), _node(2, 2), low, high, _running(low, 1), _waiting(high)])
    assert (_stopped(tables), tables.tasks.get("high1").node_id) == ({}, "n2")


def test_named_pieces_and_host_ports_are_room_too():
    low, high = _service("low", 0, 0, gpus=1), _service("high", 10, 0, gpus=1)
    gpu = (GenericResource(kind="gpu", named_value="g1"),)
    holder = _running(low, 1).replaced(assigned_generic_resources=gpu)
    assert set(_stopped(_once([_node(1), low, high, holder, _waiting(high)]))) == {"low1"}
    low, high = _service("low", 0, 0), _service("high", 10, 0)
    endpoint = Endpoint(ports=(a_port(80, 8080, host=True),))
    rows = [_running(low, 1, endpoint=endpoint), _waiting(high, endpoint=endpoint)]
    assert set(_stopped(_once([_node(1), low, high, *rows]))) == {"low1"}


def test_room_that_is_coming_free_is_given_once():
    low, high = _service("low", 0), _service("high", 10)
    stopping = _running(low, 1, desired=TaskState.SHUTDOWN)
    rows = [_node(1), low, high, stopping, _running(low, 2)]
    assert _stopped(_once([*rows, _waiting(high)])) == {}
    assert set(_stopped(_once([*rows, _waiting(high), _waiting(high, 2)]))) == {"low2"}


def test_a_budget_spares_a_service_that_has_lost_enough():
    high = _service("high", 10)
    for budget, lost in ((0, 0), (1, 1), (2, 2), (None, 3)):
        low = _service("low", 0, replicas=3, budget=budget)
        there = [_running(low, slot, f"n{slot}") for slot in (1, 2, 3)]
        waiting = [_waiting(high, slot) for slot in (1, 2, 3)]
        nodes = [_node(number, 2) for number in (1, 2, 3)]
        assert len(_stopped(_once([*nodes, low, high, *there, *waiting]))) == lost


def test_a_place_that_is_unserved_already_counts_against_the_budget():
    low, high = _service("low", 0, replicas=2, budget=1), _service("high", 10)
    rows = [_node(1, 2), low, high, _running(low, 1), _waiting(low, 2), _waiting(high)]
    assert _stopped(_once(rows)) == {}
    starts = _running(low, 1, state=TaskState.STARTING)
    rows = [_node(1, 2), low, high, starts, _waiting(low, 2), _waiting(high)]
    assert set(_stopped(_once(rows))) == {"low1"}, "what does not run serves nobody yet"


def test_what_may_run_only_once_is_spared_when_it_has_begun():
    once = RestartPolicy(condition=RestartCondition.NONE)
    low, high = _service("low", 0, restart=once), _service("high", 10)
    rows = [_node(1, 2), low, high]
    assert _stopped(_once([*rows, _running(low, 1), _waiting(high)])) == {}
    prepared = _running(low, 1, state=TaskState.READY)
    assert set(_stopped(_once([*rows, prepared, _waiting(high)]))) == {"low1"}


def test_a_global_service_s_task_makes_room_on_its_own_node():
    low, high = _service("low", 0), _service("high", 10)
    there = [_running(low, 1, "n1"), _running(low, 2, "n2")]
    mine = _waiting(high).replaced(node_id="n2", slot=0)
    tables = _once([_node(1, 2), _node(2, 2), low, high, *there, mine])
    assert set(_stopped(tables)) == {"low2"}


def test_a_round_stops_a_bounded_number():
    low, high = _service("low", 0, 1), _service("high", 10, 1)
    count = PREEMPTIONS_MAX + 5
    there = [_running(low, slot) for slot in range(1, count + 1)]
    waiting = [_waiting(high, slot) for slot in range(1, count + 1)]
    tables = _once([_node(1, count), low, high, *there, *waiting])
    assert len(_stopped(tables)) == PREEMPTIONS_MAX


def test_a_task_that_nobody_could_be_stopped_for_is_tried_again_later():
    low, high = _service("low", 0, budget=0), _service("high", 10)
    cell = Cell([_node(1, 2), low, high, _running(low, 1), _waiting(high)])

    def wakes() -> tuple[tuple[str, int], ...]:
        done = plan_round(cell.tables, EVERYTHING, now_ns=cell.now_ns, ids=cell.ids)
        cell.commit(done.changes)
        return done.wakes

    assert wakes() == (("high", cell.now_ns + RETRY_NS),)
    cell.put(low.replaced(spec=low.spec.replaced(disruption_budget=1)))
    assert wakes() == ()
    assert set(_stopped(cell.tables)) == {"low1"}


def test_every_node_of_a_large_cluster_is_looked_at_within_some_tries():
    """One node holds the less important task; a round does not see them all."""
    low, mid, high = _service("low", 0), _service("mid", 10), _service("high", 10)
    count = 2 * WINDOW + 9
    for place in (1, WINDOW, WINDOW + 1, count):
        there = [
            _running(low if slot == place else mid, slot, f"n{slot}")
            for slot in range(1, count + 1)
        ]
        cell = Cell([*(_node(slot, 2) for slot in range(1, count + 1)), low, mid, high, *there])
        cell.put(_waiting(high))
        for _ in range(4):
            cell.commit(plan(cell.tables, now_ns=cell.now_ns, ids=cell.ids).changes)
            cell.advance(RETRY_NS / 1e9)
        assert set(_stopped(cell.tables)) == {f"low{place}"}


def test_of_two_that_wait_for_the_same_room_the_more_important_gets_it():
    low, mid, high = _service("a", 0), _service("b", 5), _service("c", 10)
    rows = [_node(1, 2), low, mid, high, _waiting(low), _waiting(mid), _waiting(high)]
    assert [task.id for task in _once(rows).tasks if task.node_id] == ["c1"]


@pytest.mark.parametrize("priority", [-1001, 1001])
def test_a_priority_out_of_range_is_refused(priority):
    with pytest.raises(InvalidArgument, match=r"priority: .* must be from -1000 to 1000"):
        service_mode(ServiceSpec(priority=priority))


def test_a_budget_out_of_range_is_refused():
    with pytest.raises(InvalidArgument, match="disruption budget: 100001 is more than"):
        service_mode(ServiceSpec(disruption_budget=100_001))


SERVICES = st.lists(
    st.tuples(
        st.integers(-1, 2),  # priority
        st.integers(1, 3),  # GiB
        st.integers(1, 3),  # replicas
        st.sampled_from([None, 0, 1, 2]),
    ),
    min_size=1,
    max_size=4,
)


@given(SERVICES, st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_whole_clusters_come_to_rest_with_the_important_served_first(wishes, nodes):
    """Agents obey at once: after every round tasks start, and stop, as the managers want it."""
    services = [
        _service(f"s{index}", priority, gib, replicas=replicas, budget=budget)
        for index, (priority, gib, replicas, budget) in enumerate(wishes)
    ]
    ranks = {service.id: service.spec.priority for service in services}
    cell = Cell([*(_node(index, gib) for index, gib in enumerate(nodes)), *services])
    for _ in range(60):
        before = {task.id: task for task in cell.tables.tasks}
        missing = {one.id: unserved(cell.tables, one) for one in services}
        done = plan_round(cell.tables, EVERYTHING, now_ns=cell.now_ns, ids=cell.ids)
        cell.commit(done.changes)
        stopped = [before[task_id] for task_id in _stopped(cell.tables)]
        for service in services:
            lost = [
                task
                for task in stopped
                if task.service_id == service.id
                and not task.stop_reason
                and task.status.state is TaskState.RUNNING
            ]
            budget = service.spec.disruption_budget
            assert not lost or any(rank > ranks[service.id] for rank in ranks.values())
            assert budget is None or len(lost) <= max(0, budget - missing[service.id])
        changed = _obey(cell)
        cell.advance(120)
        if not done.changes and not changed:
            break
    else:
        raise AssertionError("the cluster does not come to rest")
    unlimited = all(service.spec.disruption_budget is None for service in services)
    for node in cell.tables.nodes:
        there = [
            task for task in cell.tables.tasks_of_node(node.id).values() if not is_terminal(task)
        ]
        room = node.description.resources.memory_bytes
        assert sum(map(_memory, there)) <= room
        for task in cell.tables.unassigned_tasks().values() if unlimited else ():
            rank = ranks[task.service_id]
            stronger = [other for other in there if ranks[other.service_id] >= rank]
            assert sum(map(_memory, stronger)) + _memory(task) > room


def _memory(task: Task) -> int:
    return task.spec.resources.reservations.memory_bytes


def _obey(cell: Cell) -> bool:
    """What agents do between two rounds; whether there was anything."""
    changed = False
    for task in list(cell.tables.tasks):
        if not task.node_id or is_terminal(task):
            continue
        if not is_wanted(task):
            state = TaskState.SHUTDOWN
        elif task.desired_state is TaskState.READY:
            state = TaskState.READY
        else:
            state = TaskState.RUNNING
        if state is not task.status.state:
            changed = True
            cell.report(task.id, state)
    return changed


def test_room_that_is_made_is_not_taken_by_who_gave_way():
    """The successor of who gave way fits beside it; it waits until that one is gone."""
    low, high = _service("low", 0, 1), _service("high", 5, 3)
    gone = _running(low, 1, stop_reason="preempted", desired=TaskState.SHUTDOWN)
    rows = [_node(1), low, high, gone, _waiting(low, 2), _waiting(high)]
    tables = _once(rows)
    assert tables.tasks.get("low2").node_id == ""
    assert "room kept for more important tasks on 1 node" in tables.tasks.get("low2").status.error
    assert tables.tasks.get("high1").node_id == "n1", "3 GiB of 4 are free"


def test_who_gives_way_to_others_keeps_nobody_away_who_is_more_important():
    low, mid, high = _service("low", 0, 1), _service("mid", 3, 1), _service("high", 5, 4)
    gone = _running(low, 1, stop_reason="preempted", desired=TaskState.SHUTDOWN)
    tables = _once([_node(1), low, mid, high, gone, _waiting(mid)])
    assert tables.tasks.get("mid1").node_id == "n1"
