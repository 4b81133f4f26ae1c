"""Tasks move from fuller to emptier nodes, a few at a time, and that comes to an end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manager.orchestrator.rebalance.balance import Move
from manager.orchestrator.rebalance.eligible import hindrance_of
from manager.orchestrator.rebalance.plan import (
    MOVES_PER_INTERVAL,
    SETTLED_NS,
    plan_background,
    proposed_moves,
)
from manager.reconcile.dirty import EVERYTHING
from manager.reconcile.plan import plan_round
from manager.scheduler.constraints import label_of
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import (
    DisconnectAction,
    NodeAvailability,
    NodeState,
    PlacementStrategy,
    RestartCondition,
    TaskState,
)
from shoal.model.objects import Cluster, Task
from shoal.model.specs import (
    ClusterSpec,
    ContainerSpec,
    GlobalMode,
    OrchestrationConfig,
    TaskSpec,
)
from shoal.model.types import (
    DisconnectPolicy,
    Placement,
    PlacementPreference,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    UpdateConfig,
)
from tests.support.planning import SECOND_NS, Cell, a_node, a_service, a_task

_NGINX = TaskSpec(runtime=ContainerSpec(image="nginx:1"))
_MINUTE = 60 * SECOND_NS


def _cell(where: dict[str, Iterable[str]], nodes: Iterable[str], **spec: object) -> Cell:
    """Services whose tasks run on these nodes, by service; each may move any number at once."""
    cell = Cell(a_node(name, labels={"zone": name[0]}) for name in nodes)
    task_spec = _NGINX.replaced(**spec)
    for name, places in where.items():
        places = list(places)
        service = a_service(
            name, replicas=len(places), task=task_spec, update=UpdateConfig(parallelism=10)
        )
        cell.put(service)
        version = cell.service(name).spec_version.index
        for slot, node_id in enumerate(places, 1):
            task = a_task(f"{name}{slot:03}", slot=slot, service_id=name, node_id=node_id,
                          version=version, spec=task_spec)  # fmt: skip
            cell.put(task)
    return cell


def _proposed(cell: Cell) -> list[Move]:
    services = sorted(cell.tables.services, key=lambda row: row.id)
    moves, more = proposed_moves(cell.tables, services, now_ns=cell.now_ns)
    assert not more
    return moves


def _shown(cell: Cell) -> list[str]:
    return [f"{move.task.node_id}>{move.to_node_id}" for move in _proposed(cell)]


def _agents(cell: Cell, *, failing: frozenset[str] = frozenset()) -> None:
    for task in list(cell.tables.tasks):
        if is_terminal(task) or task.status.state < TaskState.ASSIGNED:
            continue
        if task.desired_state >= TaskState.SHUTDOWN:
            cell.report(task.id, TaskState.SHUTDOWN)
        elif task.node_id in failing and task.status.state < TaskState.RUNNING:
            cell.report(task.id, TaskState.FAILED)
        elif task.status.state < TaskState.RUNNING:
            cell.report(task.id, TaskState.RUNNING)


def _plan(cell: Cell) -> None:
    cell.settle(lambda tables: plan_round(tables, EVERYTHING, now_ns=cell.now_ns, ids=cell.ids))


def _running(cell: Cell, service_id: str = "web") -> list[Task]:
    return [
        task
        for task in cell.tasks(service_id)
        if is_wanted(task) and task.status.state is TaskState.RUNNING
    ]


def _spread(cell: Cell, service_id: str = "web") -> list[int]:
    counts = Counter(task.node_id for task in _running(cell, service_id))
    return sorted(counts[node.id] for node in cell.tables.nodes)


def test_tasks_go_to_an_empty_node_until_all_have_as_many() -> None:
    cell = _cell({"web": ["a1"] * 3 + ["a2"] * 3}, ["a1", "a2", "a3"])
    assert _shown(cell) == ["a1>a3", "a2>a3"]


def test_of_services_with_one_task_each_some_go_to_the_empty_node() -> None:
    cell = _cell({f"s{number}": ["a1"] for number in range(4)}, ["a1", "a2"])
    assert _shown(cell) == ["a1>a2", "a1>a2"]


def test_branches_of_a_preference_come_before_nodes() -> None:
    spread = Placement(preferences=(PlacementPreference(spread_descriptor="node.labels.zone"),))
    cell = _cell({"web": ["a1", "a2", "a3", "b1"]}, ["a1", "a2", "a3", "b1"], placement=spread)
    assert _shown(cell) == ["a1>b1"]


def test_what_the_scheduler_would_refuse_is_no_place() -> None:
    only = Placement(constraints=("node.labels.zone==a",))
    assert not _shown(_cell({"web": ["a1", "a1"]}, ["a1", "b1"], placement=only))
    whole = ResourceRequirements(reservations=Resources(nano_cpus=2 * SECOND_NS))
    full = {"web": ["a1", "a1"], "x": ["a2", "a2"]}
    assert not _shown(_cell(full, ["a1", "a2"], resources=whole))


def test_nodes_on_pause_neither_get_nor_lose_tasks() -> None:
    cell = _cell({"web": ["a1"] * 4}, ["a1", "a2"])
    for name in ("a1", "a2"):
        node = cell.tables.nodes.resolve(name)
        paused = node.spec.replaced(availability=NodeAvailability.PAUSE)
        cell.put(node.replaced(spec=paused))
        assert not _shown(cell), name
        cell.put(cell.tables.nodes.resolve(name).replaced(spec=node.spec))
    assert _shown(cell) == ["a1>a2", "a1>a2"]


def test_a_node_that_failed_it_lately_gets_none() -> None:
    cell = _cell({"web": ["a1"] * 4}, ["a1", "a2", "a3"])
    failed = a_task("dead", node_id="a2", state=TaskState.FAILED, desired=TaskState.SHUTDOWN,
                    version=cell.service().spec_version.index, at_ns=cell.now_ns)  # fmt: skip
    cell.put(failed)
    assert _shown(cell) == ["a1>a3", "a1>a3"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mode": GlobalMode()}, "only replicated"),
        (
            {"task": _NGINX.replaced(placement=Placement(strategy=PlacementStrategy.BINPACK))},
            "packed",
        ),
        (
            {"task": _NGINX.replaced(disconnect=DisconnectPolicy(action=DisconnectAction.WAIT))},
            "must not run at once",
        ),
        (
            {"task": _NGINX.replaced(restart=RestartPolicy(condition=RestartCondition.NONE))},
            "run once only",
        ),
        (
            {"task": _NGINX.replaced(placement=Placement(constraints=("service.name!=db",)))},
            "placed by what other services",
        ),
    ],
)
def test_some_are_never_moved(fields: dict[str, object], why: str) -> None:
    cell = _cell({"web": ["a1", "a1"]}, ["a1", "a2"])
    service = cell.service()
    cell.put(service.replaced(spec=service.spec.replaced(**fields)))
    assert why in hindrance_of(cell.tables, cell.service())
    assert not _proposed(cell)


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_service_is_moved_by_its_own_budget(parallelism: int) -> None:
    cell = _cell({"web": ["a1"] * 8}, ["a1", "a2"])
    service = cell.service()
    spec = service.spec.replaced(update=UpdateConfig(parallelism=parallelism))
    cell.put(service.replaced(spec=spec, rebalance_moves=100))
    for _ in range(20):
        _plan(cell)
        moving = [task for task in cell.tasks() if task.takes_over and is_wanted(task)
                  and task.status.state < TaskState.RUNNING]  # fmt: skip
        assert len(moving) <= parallelism
        assert len(_running(cell)) >= 8
        _agents(cell)
    assert _spread(cell) == [4, 4]
    assert not cell.service().rebalance_moves, "nothing is left to move"


def test_no_more_is_moved_than_was_asked_for() -> None:
    cell = _cell({"web": ["a1"] * 8}, ["a1", "a2"])
    cell.put(cell.service().replaced(rebalance_moves=1))
    for _ in range(4):
        _plan(cell)
        _agents(cell)
    assert _spread(cell) == [1, 7]


def test_a_move_that_fails_is_given_up_and_its_node_passed_by() -> None:
    cell = _cell({"web": ["a1"] * 4}, ["a1", "a2"])
    cell.put(cell.service().replaced(rebalance_moves=2))
    for _ in range(4):
        _plan(cell)
        _agents(cell, failing=frozenset({"a2"}))
    assert _spread(cell) == [0, 4]
    assert not cell.service().rebalance_moves


def _with_background(cell: Cell, interval_ns: int = _MINUTE) -> None:
    orchestration = OrchestrationConfig(rebalance_interval_ns=interval_ns)
    cell.put(Cluster(id="c", spec=ClusterSpec(orchestration=orchestration)))
    cell.now_ns += SETTLED_NS


def test_in_the_background_a_few_are_moved_in_each_interval() -> None:
    cell = _cell({"web": ["a1"] * 12, "x": ["a1"] * 12}, ["a1", "a2"])
    _plan(cell)
    assert _spread(cell) == [0, 12], "off by default"
    _with_background(cell)
    for moved in (5, 10, 12, 12):
        for _ in range(5):
            _plan(cell)
            _agents(cell)
        there = [task for name in ("web", "x") for task in _running(cell, name)
                 if task.node_id == "a2"]  # fmt: skip
        assert len(there) == moved
        assert MOVES_PER_INTERVAL == 5
        cell.now_ns += _MINUTE
    assert _spread(cell) == _spread(cell, "x") == [6, 6]


def test_in_the_background_a_node_that_came_just_now_gets_none() -> None:
    cell = _cell({"web": ["a1"] * 4}, ["a1", "a2"])
    _with_background(cell)
    node = cell.tables.nodes.resolve("a2")
    cell.put(node.replaced(status=node.status.replaced(state=NodeState.DOWN)))
    cell.put(cell.tables.nodes.resolve("a2").replaced(status=node.status))

    assert not plan_background(cell.tables, now_ns=cell.now_ns, ids=cell.ids).changes
    cell.now_ns += SETTLED_NS
    done = plan_background(cell.tables, now_ns=cell.now_ns, ids=cell.ids)
    assert len(done.changes) == 2
    assert done.wake_at_ns == cell.now_ns + _MINUTE


_NODES = ["a1", "a2", "a3", "b1", "b2"]
_clusters = given(
    where=st.dictionaries(
        st.sampled_from(["s1", "s2", "s3"]),
        st.lists(st.sampled_from(_NODES), min_size=1, max_size=12),
        min_size=1,
    ),
    placement=st.sampled_from(
        [
            Placement(),
            Placement(max_replicas=4),
            Placement(constraints=("node.labels.zone==a",)),
            Placement(preferences=(PlacementPreference(spread_descriptor="node.labels.zone"),)),
            Placement(preferences=(PlacementPreference(prefer="node.labels.zone==a"),)),
        ]
    ),
)
_quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _potential(cell: Cell, homes: dict[str, str], placement: Placement) -> tuple[int, ...]:
    """What moving has to lower, computed from where each task is: nothing of the planner's."""
    tables = cell.tables
    zones: Counter[tuple[str, str]] = Counter()
    copies: Counter[tuple[str, str]] = Counter()
    totals: Counter[str] = Counter()
    unliked = 0
    spreads = any(one.spread_descriptor for one in placement.preferences)
    prefers = any(one.prefer for one in placement.preferences)
    for task in tables.tasks:
        node_id = homes[task.id]
        zone = label_of(tables.nodes.resolve(node_id), "node.labels.zone")
        zones[task.service_id, zone] += spreads
        unliked += prefers and zone != "a"
        copies[task.service_id, node_id] += 1
        totals[node_id] += 1
    sums = [sum(count**2 for count in counts.values()) for counts in (zones, copies, totals)]
    return sums[0], unliked, sums[1], sums[2]


@_clusters
@_quick
def test_each_move_lowers_the_imbalance_and_nothing_is_left_after_the_last(
    where: dict[str, list[str]], placement: Placement
) -> None:
    cell = _cell(where, _NODES, placement=placement)
    homes = {task.id: task.node_id for task in cell.tables.tasks}
    before = _potential(cell, homes, placement)
    rounds = 0
    while moves := _proposed(cell):
        rounds += 1
        assert rounds <= 3, "a task that was moved may be the one to move on, but not for ever"
        assert len({move.task.id for move in moves}) == len(moves), "no task is moved twice"
        for move in moves:
            homes[move.task.id] = move.to_node_id
            after = _potential(cell, homes, placement)
            assert after < before
            before = after
        for task in list(cell.tables.tasks):
            cell.put(task.replaced(node_id=homes[task.id]))


@_clusters
@_quick
def test_the_background_comes_to_rest_and_no_task_is_missed_meanwhile(
    where: dict[str, list[str]], placement: Placement
) -> None:
    cell = _cell(where, _NODES, placement=placement)
    _with_background(cell)
    for _ in range(30):
        _plan(cell)
        _agents(cell)
        for name, places in where.items():
            assert len(_running(cell, name)) >= len(places)
        cell.now_ns += _MINUTE
    settled = len(cell.commits)
    for _ in range(5):
        _plan(cell)
        _agents(cell)
        cell.now_ns += _MINUTE
    assert len(cell.commits) == settled
    assert not _proposed(cell)
    if placement == Placement():
        for name in where:
            spread = _spread(cell, name)
            assert spread[-1] - spread[0] <= 1
