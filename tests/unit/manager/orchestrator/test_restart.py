from __future__ import annotations

import pytest

from manager.orchestrator.reaper import plan as reaper
from manager.orchestrator.restart.plan import plan
from shoal.model.enums import NodeAvailability, NodeState, RestartCondition, TaskState
from shoal.model.objects import AnyObject, Cluster, Task
from shoal.model.plan import Plan
from shoal.model.specs import ClusterSpec, ContainerSpec, OrchestrationConfig, TaskSpec
from shoal.model.types import Endpoint, RestartPolicy
from tests.support.planning import SECOND_NS, START_NS, Cell, a_node, a_service, a_task

CREATED_NS = START_NS - 60 * SECOND_NS


def _spec(**policy: object) -> TaskSpec:
    return TaskSpec(
        runtime=ContainerSpec(image="nginx:1"), restart=RestartPolicy().replaced(**policy)
    )


def _plan(cell: Cell) -> Plan:
    return plan(cell.tables, ["web"], now_ns=cell.now_ns, ids=cell.ids)


def _cell(*rows: AnyObject, spec: TaskSpec | None = None) -> Cell:
    return Cell([a_service(replicas=1, task=spec), a_node("n1"), a_node("n2"), *rows])


def _failed(spec: TaskSpec | None = None, state: TaskState = TaskState.FAILED) -> Task:
    return a_task("t0", state=state, at_ns=START_NS, created_at_ns=CREATED_NS, spec=spec)


def _by_id(cell: Cell, task_id: str) -> Task:
    task = cell.tables.tasks.get(task_id)
    assert task is not None
    return task


def _newest(cell: Cell) -> Task:
    return cell.tasks()[-1]


def test_a_failed_task_is_followed_by_one_that_waits_for_the_delay() -> None:
    cell = _cell(_failed())

    plans = cell.settle(lambda _: _plan(cell))

    assert _by_id(cell, "t0").desired_state is TaskState.SHUTDOWN
    new = _newest(cell)
    assert (new.desired_state, new.replaces_task_id, new.slot) == (TaskState.READY, "t0", 1)
    assert new.start_after_ns == START_NS + 5 * SECOND_NS
    assert plans[-1].wake_at_ns == new.start_after_ns


def test_the_delay_counts_from_the_end_not_from_when_a_new_leader_sees_it() -> None:
    cell = _cell(_failed())
    cell.advance(3)
    cell.settle(lambda _: _plan(cell))

    assert _newest(cell).start_after_ns == START_NS + 5 * SECOND_NS


def test_the_replacement_starts_when_the_delay_has_passed() -> None:
    cell = _cell(_failed())
    cell.settle(lambda _: _plan(cell))
    cell.advance(4.9)
    assert not _plan(cell).changes
    cell.advance(0.1)
    cell.settle(lambda _: _plan(cell))

    assert _newest(cell).desired_state is TaskState.RUNNING


def test_a_failure_during_the_delay_waits_for_both_delays() -> None:
    cell = _cell(_failed())
    cell.settle(lambda _: _plan(cell))
    cell.advance(1)
    first = _newest(cell)
    cell.report(first.id, TaskState.REJECTED)
    cell.settle(lambda _: _plan(cell))
    # Replaced at once, every try would be prepared at once: a missing image would spin.
    assert _newest(cell).id == first.id
    assert _newest(cell).desired_state is TaskState.SHUTDOWN
    assert _plan(cell).wake_at_ns == first.start_after_ns

    cell.advance(4)
    cell.settle(lambda _: _plan(cell))

    assert _newest(cell).id != first.id
    assert _newest(cell).start_after_ns == first.start_after_ns + 5 * SECOND_NS


@pytest.mark.parametrize(
    ("condition", "state", "followed"),
    [
        (RestartCondition.ANY, TaskState.COMPLETE, True),
        (RestartCondition.ANY, TaskState.FAILED, True),
        (RestartCondition.ON_FAILURE, TaskState.COMPLETE, False),
        (RestartCondition.ON_FAILURE, TaskState.FAILED, True),
        (RestartCondition.ON_FAILURE, TaskState.REJECTED, True),
        (RestartCondition.NONE, TaskState.COMPLETE, False),
        (RestartCondition.NONE, TaskState.FAILED, False),
    ],
)
def test_the_condition_decides(
    condition: RestartCondition, state: TaskState, followed: bool
) -> None:
    cell = _cell(_failed(_spec(condition=condition), state))
    cell.settle(lambda _: _plan(cell))

    assert len(cell.tasks()) == 1 + followed
    assert _by_id(cell, "t0").desired_state is TaskState.SHUTDOWN
    assert not _plan(cell).changes, "an ended slot stays as it is"


@pytest.mark.parametrize("limit", [0, 1, 5, -1])
@pytest.mark.parametrize("window_s", [0, 1, 3600])
def test_max_attempts_holds_whatever_the_history_limit_and_the_window(
    limit: int, window_s: int
) -> None:
    # A window shorter than the delay of 5 s must work: swarmkit 2936. History: moby 35637.
    spec = _spec(max_attempts=3, window_ns=window_s * SECOND_NS)
    settings = ClusterSpec(orchestration=OrchestrationConfig(task_history_retention_limit=limit))
    cell = _cell(Cluster(id="c", spec=settings), _failed(spec), spec=spec)
    started = 1
    for _ in range(8):
        cell.settle(lambda _: _plan(cell))
        cell.settle(lambda _: reaper.plan(cell.tables, ["web"], now_ns=cell.now_ns, ids=cell.ids))
        cell.advance(5)
        cell.settle(lambda _: _plan(cell))
        alive = [task for task in cell.tasks() if task.desired_state is TaskState.RUNNING]
        if not alive:
            break
        started += 1
        cell.advance(0.1)
        cell.report(alive[0].id, TaskState.FAILED)

    assert started == 1 + 3


def test_a_task_that_served_longer_than_the_window_starts_the_count_anew() -> None:
    spec = _spec(max_attempts=1, window_ns=60 * SECOND_NS, delay_ns=0)
    cell = _cell(_failed(spec), spec=spec)
    for _ in range(4):
        cell.settle(lambda _: _plan(cell))
        cell.advance(61)
        cell.report(_newest(cell).id, TaskState.FAILED)
    cell.settle(lambda _: _plan(cell))

    assert _newest(cell).desired_state is TaskState.RUNNING


def test_attempts_of_an_older_version_do_not_count() -> None:
    spec = _spec(max_attempts=1, delay_ns=0)
    old = [
        a_task(
            f"old{number}",
            version=0,
            state=TaskState.FAILED,
            desired=TaskState.SHUTDOWN,
            created_at_ns=CREATED_NS - 10 + number,
            spec=spec,
        )
        for number in range(3)
    ]
    cell = _cell(*old, _failed(spec), spec=spec)
    cell.settle(lambda _: _plan(cell))

    assert _newest(cell).desired_state is TaskState.RUNNING


def test_a_lost_node_costs_neither_delay_nor_attempt() -> None:
    spec = _spec(max_attempts=1)
    cell = _cell(a_task("t0", created_at_ns=CREATED_NS, spec=spec), spec=spec)
    for name in ["n1", "n2"]:
        cell.put(a_node(name, state=NodeState.DOWN))
        cell.settle(lambda _: _plan(cell))
        new = _newest(cell)
        assert new.desired_state is TaskState.RUNNING
        cell.put(new.replaced(node_id="n2"))

    assert len(cell.tasks()) == 3


def test_a_node_that_left_the_cluster_is_a_lost_node() -> None:
    cell = _cell(a_task("t0", node_id="gone"))
    cell.settle(lambda _: _plan(cell))

    assert _newest(cell).desired_state is TaskState.RUNNING


def test_a_drained_node_is_left_without_delay_but_not_before_the_old_task_stopped() -> None:
    cell = _cell(a_task("t0"))
    cell.put(a_node("n1", availability=NodeAvailability.DRAIN))
    cell.settle(lambda _: _plan(cell))
    assert _newest(cell).desired_state is TaskState.READY
    cell.report("t0", TaskState.SHUTDOWN)
    cell.settle(lambda _: _plan(cell))

    assert _newest(cell).desired_state is TaskState.RUNNING


def test_an_old_task_that_does_not_stop_is_waited_for_one_minute() -> None:
    cell = _cell(a_task("t0"))
    cell.put(a_node("n1", availability=NodeAvailability.DRAIN))
    plans = cell.settle(lambda _: _plan(cell))
    assert plans[-1].wake_at_ns == START_NS + 60 * SECOND_NS
    cell.advance(60)
    cell.settle(lambda _: _plan(cell))

    assert _newest(cell).desired_state is TaskState.RUNNING


def test_a_paused_node_keeps_its_tasks() -> None:
    cell = _cell(a_task("t0"))
    cell.put(a_node("n1", availability=NodeAvailability.PAUSE))

    assert not _plan(cell).changes


def test_a_task_that_may_run_once_is_not_moved_after_it_started() -> None:
    spec = _spec(condition=RestartCondition.NONE)
    for state, followed in [(TaskState.RUNNING, False), (TaskState.PREPARING, True)]:
        cell = _cell(a_task("t0", state=state, spec=spec), spec=spec)
        cell.put(a_node("n1", state=NodeState.DOWN))
        cell.commit(_plan(cell).changes)
        assert len(cell.tasks()) == 1 + followed


def test_a_new_task_of_a_start_first_update_that_fails_before_its_turn_is_tried_again() -> None:
    # The old task is still wanted while the failed one is given up and its turn has not come.
    new = TaskSpec(runtime=ContainerSpec(image="nginx:2"))
    old = a_task("t0", version=0, created_at_ns=CREATED_NS, endpoint=Endpoint())
    failed = a_task(
        "t1",
        state=TaskState.REJECTED,
        at_ns=START_NS,
        version=1,
        spec=new,
        desired=TaskState.READY,
        start_after_ns=START_NS + 3 * SECOND_NS,
        replaces_task_id="t0",
        endpoint=Endpoint(),
    )
    cell = _cell(old, failed, spec=new)
    cell.settle(lambda _: _plan(cell))
    assert _by_id(cell, "t1").desired_state is TaskState.SHUTDOWN
    assert len(cell.tasks()) == 2
    assert _plan(cell).wake_at_ns == failed.start_after_ns

    cell.advance(3)
    cell.settle(lambda _: _plan(cell))

    assert _newest(cell).replaces_task_id == "t1"
    assert _by_id(cell, "t0").desired_state is TaskState.RUNNING


def test_a_failed_task_is_followed_once_the_old_one_that_covered_for_it_is_lost() -> None:
    old_spec = _spec(condition=RestartCondition.NONE)
    old = a_task("t0", version=0, created_at_ns=CREATED_NS, spec=old_spec, endpoint=Endpoint())
    failed = a_task(
        "t1",
        state=TaskState.REJECTED,
        at_ns=START_NS,
        spec=_spec(),
        desired=TaskState.SHUTDOWN,
        node_id="n2",
        endpoint=Endpoint(),
    )
    cell = _cell(old, failed, spec=_spec())
    cell.put(a_node("n1", availability=NodeAvailability.DRAIN))

    cell.commit(_plan(cell).changes)

    assert _by_id(cell, "t0").desired_state is TaskState.SHUTDOWN
    assert _newest(cell).replaces_task_id == "t1"
