from __future__ import annotations

import pytest

from manager.reconcile.dirty import EVERYTHING, Dirty
from manager.reconcile.plan import Round, plan_round
from shoal.model.defaults import is_terminal
from shoal.model.enums import NodeAvailability, NodeState, RestartCondition, TaskState
from shoal.model.objects import Cluster, Task
from shoal.model.specs import (
    ClusterSpec,
    ContainerSpec,
    GlobalJobMode,
    OrchestrationConfig,
    ReplicatedJobMode,
    ServiceMode,
    TaskSpec,
)
from shoal.model.types import JobStatus, RestartPolicy
from tests.support.planning import SECOND_NS, Cell, a_node, a_service

COMPLETE, FAILED = TaskState.COMPLETE, TaskState.FAILED


class Rig:
    """A job on two nodes."""

    def __init__(self, mode: ServiceMode, *, ttl_ns: int | None = None, **restart: object) -> None:
        task = TaskSpec(
            runtime=ContainerSpec(image="a"), restart=RestartPolicy().replaced(**restart)
        )
        service = a_service(task=task)
        spec = service.spec.replaced(mode=mode, ttl_after_finish_ns=ttl_ns)
        self.cell = Cell([a_node("n1"), a_node("n2")])
        self.cell.put(service.replaced(spec=spec, job_status=JobStatus()))
        self.plan()

    def plan(self, dirty: Dirty = EVERYTHING) -> Round:
        cell = self.cell
        plans = cell.settle(lambda view: plan_round(view, dirty, now_ns=cell.now_ns, ids=cell.ids))
        (*_, last) = plans
        assert isinstance(last, Round)
        return last

    def open(self) -> list[Task]:
        return [
            task
            for task in self.cell.tasks()
            if task.desired_state <= COMPLETE and not is_terminal(task)
        ]

    def end(self, task: Task, state: TaskState = COMPLETE) -> None:
        self.cell.report(task.id, state)
        self.plan()

    def node(self, name: str, state: NodeState, **spec: object) -> None:
        node = self.cell.tables.nodes.resolve(name)
        self.cell.put(
            node.replaced(status=node.status.replaced(state=state), spec=node.spec.replaced(**spec))
        )
        self.plan(Dirty(nodes=frozenset({name})))

    def again(self) -> None:
        """The user changes the job."""
        service = self.cell.service()
        status = service.job_status or JobStatus()
        task = service.spec.task.replaced(force_update=service.spec.task.force_update + 1)
        self.cell.put(
            service.replaced(
                spec=service.spec.replaced(task=task),
                job_status=status.replaced(iteration=status.iteration + 1),
            )
        )
        self.plan()


def test_no_more_than_allowed_run_at_once_until_all_are_complete() -> None:
    rig = Rig(ReplicatedJobMode(max_concurrent=2, total_completions=5))
    done = []
    while tasks := rig.open():
        assert len(tasks) == min(2, 5 - len(done))
        assert {task.desired_state for task in tasks} == {COMPLETE}
        done.append(tasks[-1].slot)
        rig.end(tasks[-1])
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert [task.status.state for task in rig.cell.tasks()] == [COMPLETE] * 5
    assert {task.job_iteration for task in rig.cell.tasks()} == {0}


def test_without_a_limit_all_run_at_once() -> None:
    assert len(Rig(ReplicatedJobMode(total_completions=7)).open()) == 7


@pytest.mark.parametrize("condition", [RestartCondition.ANY, RestartCondition.ON_FAILURE])
def test_a_failed_attempt_is_repeated_in_its_slot_and_a_completed_one_never(
    condition: RestartCondition,
) -> None:
    rig = Rig(ReplicatedJobMode(total_completions=1), condition=condition)
    (first,) = rig.open()
    rig.end(first, FAILED)
    rig.cell.advance(5)
    rig.plan()
    (second,) = rig.open()
    assert (second.slot, second.replaces_task_id) == (0, first.id)
    assert second.desired_state is COMPLETE
    rig.end(second)
    rig.cell.advance(3600)
    rig.plan()
    assert not rig.open()


def test_a_slot_whose_attempts_are_used_up_is_not_made_up_for() -> None:
    rig = Rig(ReplicatedJobMode(max_concurrent=1, total_completions=2), max_attempts=1, delay_ns=0)
    for _ in range(2):
        (task,) = rig.open()
        assert task.slot == 0
        rig.end(task, FAILED)
    (task,) = rig.open()
    assert task.slot == 1
    rig.end(task)
    assert not rig.open()


def test_with_condition_none_nothing_is_tried_twice() -> None:
    rig = Rig(ReplicatedJobMode(total_completions=1), condition=RestartCondition.NONE)
    rig.end(rig.open()[0], FAILED)
    assert not rig.open()


def test_the_work_of_a_lost_node_is_done_elsewhere_at_once() -> None:
    rig = Rig(ReplicatedJobMode(total_completions=1))
    (lost,) = rig.open()
    rig.cell.report(lost.id, TaskState.RUNNING)
    rig.node(lost.node_id, NodeState.DOWN)
    (other,) = rig.open()
    assert other.node_id != lost.node_id
    # The node returns, and it had been done: what was to repeat it is let go.
    rig.end(lost)
    assert not rig.open()
    rig.node(lost.node_id, NodeState.READY)
    assert not rig.open()


def test_completed_work_is_remembered_beyond_the_history_limit() -> None:
    rig = Rig(ReplicatedJobMode(total_completions=2))
    orchestration = OrchestrationConfig(task_history_retention_limit=0)
    rig.cell.put(Cluster(id="c", spec=ClusterSpec(orchestration=orchestration)))
    first, second = rig.open()
    rig.node(first.node_id, NodeState.DOWN)
    rig.end(first)
    rig.end(second)
    rig.plan()
    rig.cell.advance(3600)
    rig.plan()
    assert not rig.open()
    assert sum(task.status.state is COMPLETE for task in rig.cell.tasks()) == 2


def test_a_change_begins_again_and_waits_for_what_still_stops() -> None:
    rig = Rig(ReplicatedJobMode(total_completions=2))
    for task in rig.open():
        rig.cell.report(task.id, TaskState.RUNNING)
    rig.end(rig.open()[0])
    rig.again()
    by_iteration: dict[int | None, list[Task]] = {0: [], 1: []}
    for task in rig.cell.tasks():
        by_iteration[task.job_iteration].append(task)
    assert [task.desired_state for task in by_iteration[0]] == [TaskState.REMOVE]
    assert [task.desired_state for task in by_iteration[1]] == [COMPLETE, TaskState.READY]
    rig.end(by_iteration[0][0], TaskState.SHUTDOWN)
    assert [task.desired_state for task in rig.open()] == [COMPLETE, COMPLETE]


def test_a_global_job_runs_once_on_every_node_also_on_later_ones() -> None:
    rig = Rig(GlobalJobMode())
    assert [task.node_id for task in rig.open()] == ["n1", "n2"]
    for task in rig.open():
        rig.end(task)
    assert not rig.open()
    rig.cell.put(a_node("n3"))
    rig.plan(Dirty(nodes=frozenset({"n3"})))
    assert [task.node_id for task in rig.open()] == ["n3"]


def test_a_global_job_waits_for_a_node_that_is_down_and_leaves_one_on_drain() -> None:
    rig = Rig(GlobalJobMode())
    rig.node("n1", NodeState.DOWN)
    assert [task.node_id for task in rig.open()] == ["n1", "n2"]
    rig.node("n1", NodeState.READY, availability=NodeAvailability.DRAIN)
    assert [task.node_id for task in rig.open()] == ["n2"]


def test_a_job_is_removed_when_its_time_after_the_end_is_over() -> None:
    rig = Rig(ReplicatedJobMode(total_completions=1), ttl_ns=60 * SECOND_NS)
    rig.cell.advance(3600)
    assert rig.plan().wake_at_ns is None
    rig.end(rig.open()[0])
    end_ns = rig.cell.now_ns
    rig.cell.advance(59)
    assert rig.plan().wake_at_ns == end_ns + 60 * SECOND_NS
    rig.cell.advance(1)
    rig.plan()
    rig.plan()
    assert rig.cell.tables.services.get("web") is None
    assert not rig.cell.tasks()
