"""Tasks on lost nodes: waited for, replaced, and kept when their node comes back."""

from __future__ import annotations

import pytest

from manager.orchestrator.replicated import plan as replicated
from manager.orchestrator.restart.absence import RETURN_SETTLE_NS
from manager.orchestrator.restart.plan import plan as restart
from manager.orchestrator.update import plan as update
from shoal.model.enums import (
    DisconnectAction,
    NodeAvailability,
    NodeState,
    RestartCondition,
    ReturnAction,
    TaskState,
)
from shoal.model.objects import Task
from shoal.model.plan import Plan
from shoal.model.specs import ContainerSpec, ReplicatedMode, TaskSpec
from shoal.model.types import DisconnectPolicy, Endpoint, RestartPolicy
from tests.support.planning import SECOND_NS, Cell, a_node, a_service, a_task

WAIT = DisconnectPolicy(action=DisconnectAction.WAIT, wait_ns=60 * SECOND_NS)
KEEP = DisconnectPolicy(on_return=ReturnAction.KEEP_ORIGINAL)
WAIT_AND_KEEP = WAIT.replaced(on_return=ReturnAction.KEEP_ORIGINAL)


class Rig:
    """A service of one task `t0` on n1; n2 is there too."""

    def __init__(
        self,
        policy: DisconnectPolicy | None,
        *,
        restart: RestartPolicy | None = None,
        state: TaskState = TaskState.RUNNING,
    ) -> None:
        runtime = ContainerSpec(image="nginx:1")
        self.spec = TaskSpec(runtime=runtime, disconnect=policy, restart=restart)
        task = a_task("t0", spec=self.spec, state=state, endpoint=Endpoint(), created_at_ns=1)
        service = a_service(replicas=1, task=self.spec)
        self.cell = Cell([service, a_node("n1"), a_node("n2"), task])

    def node(self, state: NodeState, name: str = "n1", **spec: object) -> None:
        node = self.cell.tables.nodes.resolve(name)
        self.cell.put(
            node.replaced(status=node.status.replaced(state=state), spec=node.spec.replaced(**spec))
        )

    def plan(self) -> Plan:
        """Everything there is to do; the last plan has nothing but a time to wake up."""
        cell = self.cell
        for _ in range(3):
            for planner in (replicated.plan, restart, update.plan):
                cell.settle(
                    lambda view, act=planner: act(view, ["web"], now_ns=cell.now_ns, ids=cell.ids)
                )
        return restart(cell.tables, ["web"], now_ns=cell.now_ns, ids=cell.ids)

    def wanted(self) -> list[str]:
        return [task.id for task in self.cell.tasks() if task.desired_state <= TaskState.RUNNING]

    def newest(self) -> Task:
        return self.cell.tasks()[-1]

    def runs_elsewhere(self) -> None:
        """The replacement runs on n2."""
        task = self.newest().replaced(node_id="n2", endpoint=Endpoint())
        self.cell.put(task)
        self.cell.report(task.id, TaskState.RUNNING)


@pytest.mark.parametrize("policy", [None, DisconnectPolicy()])
def test_without_a_word_a_lost_task_is_replaced_at_once(policy) -> None:
    rig = Rig(policy)
    rig.node(NodeState.DOWN)
    rig.plan()
    assert rig.wanted() == [rig.newest().id] != ["t0"]


def test_a_task_that_waits_is_replaced_when_its_time_is_over() -> None:
    rig = Rig(WAIT)
    rig.node(NodeState.DOWN)
    lost_at_ns = rig.cell.tables.nodes.resolve("n1").meta.updated_at_ns
    assert rig.plan().wake_at_ns == lost_at_ns + 60 * SECOND_NS
    assert rig.wanted() == ["t0"]
    rig.cell.advance(59.9)
    rig.plan()
    assert rig.wanted() == ["t0"]
    rig.cell.advance(0.1)
    rig.plan()
    assert rig.wanted() == [rig.newest().id] != ["t0"]


def test_a_node_that_returns_in_time_costs_nothing() -> None:
    rig = Rig(WAIT)
    rig.node(NodeState.DOWN)
    rig.plan()
    rig.cell.advance(30)
    rig.node(NodeState.READY)
    assert rig.plan().wake_at_ns is None
    assert [task.id for task in rig.cell.tasks()] == ["t0"]


@pytest.mark.parametrize("how", ["removed", "drained", "not started"])
def test_nothing_is_waited_for_where_nothing_can_come_back(how: str) -> None:
    rig = Rig(WAIT_AND_KEEP, state=TaskState.READY if how == "not started" else TaskState.RUNNING)
    if how == "removed":
        rig.cell.remove(rig.cell.tables.nodes.resolve("n1"))
    else:
        drain = {"availability": NodeAvailability.DRAIN} if how == "drained" else {}
        rig.node(NodeState.DOWN, **drain)
    rig.plan()
    assert rig.wanted() == [rig.newest().id] != ["t0"]


def test_an_update_does_not_wait() -> None:
    rig = Rig(WAIT)
    rig.node(NodeState.DOWN)
    rig.plan()
    service = rig.cell.service()
    spec = rig.spec.replaced(runtime=ContainerSpec(image="nginx:2"))
    rig.cell.put(service.replaced(spec=service.spec.replaced(task=spec)))
    rig.plan()
    assert rig.wanted() == [rig.newest().id] != ["t0"]


def test_another_policy_is_in_force_at_once_and_replaces_no_running_task() -> None:
    rig = Rig(None)
    service = rig.cell.service()
    spec = rig.spec.replaced(disconnect=WAIT)
    rig.cell.put(service.replaced(spec=service.spec.replaced(task=spec)))
    rig.plan()
    assert rig.wanted() == ["t0"]
    rig.node(NodeState.DOWN)
    rig.plan()
    assert rig.wanted() == ["t0"]


def test_the_original_stays_when_it_runs_on_and_its_replacement_goes() -> None:
    rig = Rig(KEEP)
    rig.node(NodeState.DOWN)
    rig.plan()
    other = rig.newest().id
    assert rig.wanted() == ["t0", other]
    rig.runs_elsewhere()
    rig.cell.advance(60)
    rig.node(NodeState.READY)
    back_at_ns = rig.cell.tables.nodes.resolve("n1").meta.updated_at_ns
    assert rig.plan().wake_at_ns == back_at_ns + RETURN_SETTLE_NS
    assert rig.wanted() == ["t0", other]
    rig.cell.advance(5)
    rig.plan()
    assert rig.wanted() == ["t0"]
    gone = rig.cell.tables.tasks.resolve(other)
    assert gone.desired_state is TaskState.REMOVE, "it leaves no mark in the slot's history"


def test_the_replacement_stays_when_the_original_has_ended() -> None:
    rig = Rig(KEEP)
    rig.node(NodeState.DOWN)
    rig.plan()
    rig.runs_elsewhere()
    other = rig.newest().id
    rig.node(NodeState.READY)
    rig.cell.advance(1)
    rig.cell.report("t0", TaskState.FAILED)
    rig.cell.advance(60)
    rig.plan()
    assert rig.wanted() == [other]
    assert rig.newest().id == other


def test_without_keep_original_the_original_is_stopped() -> None:
    rig = Rig(WAIT)
    rig.node(NodeState.DOWN)
    rig.cell.advance(60)
    rig.plan()
    rig.runs_elsewhere()
    rig.node(NodeState.READY)
    rig.cell.advance(60)
    rig.plan()
    assert rig.wanted() == [rig.newest().id] != ["t0"]
    assert rig.cell.tables.tasks.resolve("t0").desired_state is TaskState.SHUTDOWN


def test_at_most_one_original_is_kept() -> None:
    rig = Rig(KEEP)
    rig.node(NodeState.DOWN)
    rig.plan()
    rig.runs_elsewhere()
    second = rig.newest().id
    rig.node(NodeState.DOWN, "n2")
    rig.plan()
    assert rig.wanted() == ["t0", rig.newest().id]
    assert rig.cell.tables.tasks.resolve(second).desired_state is TaskState.SHUTDOWN


def test_the_replacement_s_own_failures_follow_the_restart_policy() -> None:
    policy = RestartPolicy(condition=RestartCondition.ON_FAILURE, delay_ns=9 * SECOND_NS)
    rig = Rig(KEEP, restart=policy)
    rig.node(NodeState.DOWN)
    rig.plan()
    rig.runs_elsewhere()
    second = rig.newest().id
    rig.cell.report(second, TaskState.FAILED)
    rig.plan()
    third = rig.newest()
    assert third.replaces_task_id == second
    assert third.start_after_ns >= rig.cell.now_ns + 8 * SECOND_NS
    rig.runs_elsewhere()
    rig.cell.report(third.id, TaskState.COMPLETE)
    rig.plan()
    assert rig.wanted() == ["t0"], "the work is done: nothing follows, and the original may return"


def test_a_policy_taken_back_leaves_one_task() -> None:
    rig = Rig(KEEP)
    rig.node(NodeState.DOWN)
    rig.plan()
    rig.runs_elsewhere()
    service = rig.cell.service()
    spec = rig.spec.replaced(disconnect=None)
    rig.cell.put(service.replaced(spec=service.spec.replaced(task=spec)))
    rig.plan()
    assert rig.wanted() == [rig.newest().id] != ["t0"]


def test_scaling_down_takes_both() -> None:
    rig = Rig(KEEP)
    rig.node(NodeState.DOWN)
    rig.plan()
    rig.runs_elsewhere()
    service = rig.cell.service()
    rig.cell.put(service.replaced(spec=service.spec.replaced(mode=ReplicatedMode(replicas=0))))
    rig.plan()
    assert rig.wanted() == []
