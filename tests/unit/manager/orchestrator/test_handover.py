"""Nodes that are emptied: what runs there serves on until it runs elsewhere."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manager.orchestrator.handover.waits import hand_overs_of
from manager.reconcile.dirty import EVERYTHING
from manager.reconcile.plan import plan_round
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import (
    DisconnectAction,
    NodeAvailability,
    NodeState,
    RestartCondition,
    TaskState,
)
from shoal.model.objects import Task
from shoal.model.specs import ContainerSpec, GlobalMode, ReplicatedJobMode, TaskSpec
from shoal.model.types import (
    DisconnectPolicy,
    DrainPolicy,
    JobStatus,
    Placement,
    RestartPolicy,
)
from tests.support.planning import SECOND_NS, Cell, a_node, a_port, a_service

_DEADLINE_S = 300


def _spec(**fields: object) -> TaskSpec:
    return TaskSpec(runtime=ContainerSpec(image="nginx:1")).replaced(**fields)


def _plan(cell: Cell) -> None:
    cell.settle(
        lambda tables: plan_round(tables, EVERYTHING, now_ns=cell.now_ns, ids=cell.ids),
    )


def _agents(cell: Cell, *, failing: frozenset[str] = frozenset()) -> None:
    """Every node does what it is asked to, but those that fail whatever they start."""
    for task in list(cell.tables.tasks):
        node = cell.tables.nodes.get(task.node_id)
        if node is None or node.status.state is not NodeState.READY or is_terminal(task):
            continue
        if task.desired_state >= TaskState.SHUTDOWN:
            cell.report(task.id, TaskState.SHUTDOWN)
        elif task.node_id in failing and task.status.state < TaskState.RUNNING:
            cell.report(task.id, TaskState.FAILED)
        elif task.desired_state is TaskState.READY:
            cell.report(task.id, TaskState.READY)
        elif task.status.state < TaskState.RUNNING:
            cell.report(task.id, TaskState.RUNNING)


def _settled(nodes: int = 3, **fields: object) -> Cell:
    """A cluster on which everything runs."""
    cell = Cell(a_node(f"n{number}") for number in range(1, nodes + 1))
    task = fields.pop("task", None)
    cell.put(a_service(task=task, replicas=3).replaced(**fields))
    _plan(cell)
    _agents(cell)
    _plan(cell)
    return cell


def _drain(cell: Cell, node_id: str, *, deadline_s: int = _DEADLINE_S) -> None:
    node = cell.tables.nodes.get(node_id)
    assert node is not None
    policy = DrainPolicy(deadline_ns=deadline_s * SECOND_NS)
    spec = node.spec.replaced(availability=NodeAvailability.DRAIN, drain=policy)
    until_ns = cell.now_ns + deadline_s * SECOND_NS
    cell.put(node.replaced(spec=spec, drain_until_ns=until_ns))
    _plan(cell)


def _activate(cell: Cell, node_id: str) -> None:
    node = cell.tables.nodes.get(node_id)
    assert node is not None
    cell.put(node.replaced(spec=node.spec.replaced(availability=NodeAvailability.ACTIVE,
                                                   drain=None), drain_until_ns=0))  # fmt: skip
    _plan(cell)


def _wanted_on(cell: Cell, node_id: str) -> list[Task]:
    return [task for task in cell.tasks() if task.node_id == node_id and is_wanted(task)]


def _running(cell: Cell) -> list[Task]:
    return [
        task
        for task in cell.tasks()
        if task.status.state is TaskState.RUNNING and is_wanted(task)
    ]  # fmt: skip


def test_a_task_serves_until_its_successor_runs() -> None:
    cell = _settled()
    (old,) = _wanted_on(cell, "n1")

    _drain(cell, "n1")

    (new,) = [task for task in cell.tasks() if task.takes_over]
    assert (new.replaces_task_id, new.slot) == (old.id, old.slot)
    assert new.desired_state is TaskState.RUNNING
    assert new.node_id in {"n2", "n3"}
    assert _wanted_on(cell, "n1") == [old]
    _agents(cell)
    _plan(cell)
    assert not _wanted_on(cell, "n1")
    assert len(_running(cell)) == 3


def test_what_does_not_run_yet_is_replaced_at_once() -> None:
    cell = Cell(a_node(f"n{number}") for number in range(1, 4))
    cell.put(a_service(replicas=3))
    _plan(cell)

    _drain(cell, "n1")

    assert not _wanted_on(cell, "n1")


def test_where_there_is_no_other_place_it_serves_until_the_deadline() -> None:
    cell = _settled(task=_spec(placement=Placement(max_replicas=1)))
    (old,) = _wanted_on(cell, "n1")

    _drain(cell, "n1")
    cell.advance(_DEADLINE_S - 1)
    _plan(cell)

    assert _wanted_on(cell, "n1") == [old]
    cell.advance(2)
    _plan(cell)
    assert not _wanted_on(cell, "n1")


def test_the_deadline_is_when_it_is_looked_at_again() -> None:
    cell = _settled(task=_spec(placement=Placement(max_replicas=1)))
    _drain(cell, "n1")
    node = cell.tables.nodes.get("n1")
    assert node is not None

    done = plan_round(cell.tables, EVERYTHING, now_ns=cell.now_ns, ids=cell.ids)

    assert not done.changes
    assert done.wake_at_ns == node.drain_until_ns


def test_ports_of_nodes_do_not_stop_a_hand_over() -> None:
    cell = _settled(4, spec=a_service(replicas=3, ports=(a_port(80, 8080, host=True),)).spec)
    crowded = next(node for node in ("n1", "n2", "n3", "n4") if _wanted_on(cell, node))

    _drain(cell, crowded)

    (new,) = [task for task in cell.tasks() if task.takes_over]
    assert not _wanted_on(cell, new.node_id)[1:], "where nobody has the port"
    assert _wanted_on(cell, crowded)


def test_a_successor_that_fails_is_followed_by_the_restart_policy() -> None:
    cell = _settled(task=_spec(restart=RestartPolicy(delay_ns=10 * SECOND_NS, max_attempts=1)))
    (old,) = _wanted_on(cell, "n1")
    _drain(cell, "n1")
    others = frozenset({"n2", "n3"})

    _agents(cell, failing=others)
    _plan(cell)
    (second,) = [task for task in cell.tasks() if task.takes_over and is_wanted(task)]
    assert second.desired_state is TaskState.READY, "it waits for the delay"
    cell.advance(11)
    _plan(cell)
    _agents(cell, failing=others)
    _plan(cell)

    assert not [task for task in cell.tasks() if task.takes_over and is_wanted(task)]
    assert _wanted_on(cell, "n1") == [old], "its attempts are used up"


def test_a_successor_that_is_lost_is_made_again() -> None:
    cell = _settled()
    (old,) = _wanted_on(cell, "n1")
    _drain(cell, "n1")
    (first,) = [task for task in cell.tasks() if task.takes_over]
    node = cell.tables.nodes.get(first.node_id)
    assert node is not None

    cell.put(node.replaced(status=node.status.replaced(state=NodeState.DOWN)))
    _plan(cell)

    again = [task for task in cell.tasks() if task.replaces_task_id == old.id and is_wanted(task)]
    assert len(again) == 1
    assert again[0].node_id not in {"n1", first.node_id}
    assert _wanted_on(cell, "n1") == [old]


def test_a_hand_over_that_waits_for_a_place_is_called_off_with_the_drain() -> None:
    cell = _settled(task=_spec(placement=Placement(max_replicas=1)))
    (old,) = _wanted_on(cell, "n1")
    _drain(cell, "n1")
    assert [task for task in cell.tasks() if task.takes_over]

    _activate(cell, "n1")

    assert [task for task in cell.tasks() if is_wanted(task) and task.slot == old.slot] == [old]


def test_a_hand_over_on_its_way_is_ended_although_the_drain_is_taken_back() -> None:
    cell = _settled()
    _drain(cell, "n1")

    _activate(cell, "n1")
    _agents(cell)
    _plan(cell)

    assert len(_running(cell)) == 3 == len([task for task in cell.tasks() if is_wanted(task)])


@pytest.mark.parametrize(
    "fields",
    [
        {"task": _spec(disconnect=DisconnectPolicy(action=DisconnectAction.WAIT))},
        {"spec": a_service().spec.replaced(mode=GlobalMode())},
    ],
    ids=["two must not run at once", "nobody takes over"],
)
def test_some_stop_first(fields: dict[str, object]) -> None:
    cell = _settled(**fields)
    assert _wanted_on(cell, "n1")

    _drain(cell, "n1")

    assert not _wanted_on(cell, "n1")


def test_a_job_may_end_its_work_until_the_deadline() -> None:
    spec = a_service().spec.replaced(
        mode=ReplicatedJobMode(total_completions=3, max_concurrent=3),
        task=_spec(restart=RestartPolicy(condition=RestartCondition.ON_FAILURE)),
    )
    cell = _settled(spec=spec, job_status=JobStatus())
    (old,) = _wanted_on(cell, "n1")

    _drain(cell, "n1")

    assert [task for task in cell.tasks() if task.slot == old.slot] == [old]
    cell.advance(_DEADLINE_S + 1)
    _plan(cell)
    assert not _wanted_on(cell, "n1")
    assert len([task for task in cell.tasks() if task.slot == old.slot]) == 2


def test_what_may_run_once_only_is_not_started_elsewhere() -> None:
    cell = _settled(task=_spec(restart=RestartPolicy(condition=RestartCondition.NONE)))
    (old,) = _wanted_on(cell, "n1")

    _drain(cell, "n1")

    assert [task for task in cell.tasks() if task.slot == old.slot] == [old]


@given(
    drains=st.lists(st.sampled_from(["n1", "n2", "n3", "n4"]), max_size=8),
    failing=st.lists(st.booleans(), min_size=12, max_size=12),
    replicas=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_service_never_has_fewer_running_tasks(
    drains: list[str], failing: list[bool], replicas: int
) -> None:
    cell = _settled(5, spec=a_service(replicas=replicas).spec)
    emptied: set[str] = set()
    for number in count():
        if number < len(drains):
            node_id = drains[number]
            (_activate if node_id in emptied else _drain)(cell, node_id)
            emptied ^= {node_id}
        elif number >= len(failing):
            break
        bad = frozenset({f"n{1 + number % 5}"}) if failing[number] else frozenset[str]()
        _agents(cell, failing=bad)
        assert len(_running(cell)) >= replicas
        _plan(cell)
        assert len(_running(cell)) >= replicas
        cell.advance(3)
    for _ in range(8):
        _agents(cell)
        cell.advance(6)
        _plan(cell)

    assert len(_running(cell)) == replicas
    assert not [task for node_id in emptied for task in _wanted_on(cell, node_id)]


def _explained(cell: Cell) -> tuple[str, ...]:
    return hand_overs_of(cell.tables, cell.service(), now_ns=cell.now_ns)


def test_what_a_hand_over_waits_for_is_said() -> None:
    cell = _settled(task=_spec(placement=Placement(max_replicas=1)))
    assert _explained(cell) == ()
    (old,) = _wanted_on(cell, "n1")

    _drain(cell, "n1")

    (new,) = [task for task in cell.tasks() if task.takes_over]
    assert _explained(cell) == (
        f"slot {old.slot}: task {old.id} stays on host-n1 until task {new.id}, pending: no suitable"
        " node (max replicas per node limit exceed; 1 node not available for new tasks), runs,"
        f" or for {_DEADLINE_S} s, until the drain's deadline",
    )
