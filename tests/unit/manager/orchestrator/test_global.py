from __future__ import annotations

import pytest

from manager.reconcile.dirty import EVERYTHING, Dirty
from manager.reconcile.plan import plan_round
from shoal.model.enums import NodeAvailability, NodeState, TaskState, UpdateState
from shoal.model.objects import AnyObject, Task
from shoal.model.specs import ContainerSpec, GlobalMode, TaskSpec
from shoal.model.types import Placement, Platform, Resources, UpdateConfig
from tests.support.planning import SECOND_NS, Cell, a_node, a_service

DOWN, DRAIN, PAUSE = NodeState.DOWN, NodeAvailability.DRAIN, NodeAvailability.PAUSE


class Rig:
    """A global service on n1, n2 and n3, with agents that do at once what they are told."""

    def __init__(self, *rows: AnyObject, task: TaskSpec | None = None, **spec: object) -> None:
        service = a_service(task=task)
        spec = {"mode": GlobalMode()} | spec
        self.cell = Cell(
            [
                service.replaced(spec=service.spec.replaced(**spec)),
                *(rows or (a_node("n1"), a_node("n2"), a_node("n3"))),
            ]
        )
        self.settle()

    def settle(self, dirty: Dirty = EVERYTHING) -> None:
        """Plan and run until nothing happens any more."""
        cell = self.cell
        for _ in range(20):
            cell.settle(lambda view: plan_round(view, dirty, now_ns=cell.now_ns, ids=cell.ids))
            if sum(self._obey(task) for task in cell.tasks()) == 0:
                return
            cell.advance(1)
        raise AssertionError("no rest")

    def _obey(self, task: Task) -> bool:
        state = task.status.state
        node = self.cell.tables.nodes.get(task.node_id)
        is_there = node is not None and node.status.state is not DOWN
        if not is_there or not TaskState.ASSIGNED <= state <= TaskState.RUNNING:
            return False
        if task.desired_state >= TaskState.SHUTDOWN:
            self.cell.report(task.id, TaskState.SHUTDOWN)
        elif task.desired_state is TaskState.RUNNING and state is not TaskState.RUNNING:
            self.cell.report(task.id, TaskState.RUNNING)
        else:
            return False
        return True

    def node(self, name: str, state: NodeState = NodeState.READY, **spec: object) -> None:
        node = self.cell.tables.nodes.resolve(name)
        status = node.status.replaced(state=state)
        self.cell.put(node.replaced(status=status, spec=node.spec.replaced(**spec)))

    def label(self, name: str, zone: str) -> None:
        annotations = self.cell.tables.nodes.resolve(name).spec.annotations
        self.node(name, annotations=annotations.replaced(labels={"zone": zone}))

    def running(self) -> list[str]:
        return sorted(
            task.node_id
            for task in self.cell.tasks()
            if task.status.state is TaskState.RUNNING and task.desired_state is TaskState.RUNNING
        )

    def on(self, node_id: str) -> list[Task]:
        return [task for task in self.cell.tasks() if task.node_id == node_id]


def _image(name: str, **fields: object) -> TaskSpec:
    return TaskSpec(runtime=ContainerSpec(image=name)).replaced(**fields)


def test_every_node_has_a_task_named_after_it() -> None:
    rig = Rig()
    assert rig.running() == ["n1", "n2", "n3"]
    (task,) = rig.on("n1")
    assert (task.slot, task.annotations.name) == (0, f"web.n1.{task.id}")


def test_a_node_that_joins_gets_one_and_nobody_else() -> None:
    rig = Rig()
    rig.cell.put(a_node("n4"))
    rig.settle(Dirty(nodes=frozenset({"n4"})))
    assert rig.running() == ["n1", "n2", "n3", "n4"]
    assert len(rig.cell.tasks()) == 4


@pytest.mark.parametrize("state", [NodeState.UNKNOWN, DOWN, NodeState.DISCONNECTED])
def test_a_node_that_is_not_ready_gets_none(state: NodeState) -> None:
    assert Rig(a_node("n1"), a_node("n2", state=state)).running() == ["n1"]


@pytest.mark.parametrize("availability", [DRAIN, PAUSE])
def test_a_node_that_takes_no_tasks_gets_none(availability: NodeAvailability) -> None:
    assert Rig(a_node("n1"), a_node("n2", availability=availability)).running() == ["n1"]


def test_constraints_and_platforms_choose_the_nodes() -> None:
    placement = Placement(
        constraints=("node.labels.zone==a",), platforms=(Platform(architecture="amd64"),)
    )
    rig = Rig(
        a_node("n1", labels={"zone": "a"}),
        a_node("n2", labels={"zone": "b"}),
        a_node("n3", labels={"zone": "a"}, architecture="arm64"),
        task=_image("a", placement=placement),
    )
    assert rig.running() == ["n1"]
    rig.label("n2", "a")
    rig.settle(Dirty(nodes=frozenset({"n2"})))
    assert rig.running() == ["n1", "n2"]
    rig.label("n1", "c")
    rig.settle(Dirty(nodes=frozenset({"n1"})))
    assert rig.running() == ["n2"]
    assert rig.on("n1")[0].status.state is TaskState.SHUTDOWN
    rig.label("n1", "a")
    rig.settle(Dirty(nodes=frozenset({"n1"})))
    assert rig.running() == ["n1", "n2"]


def test_drain_shuts_down_and_going_back_to_work_starts_again() -> None:
    rig = Rig()
    rig.node("n2", availability=DRAIN)
    rig.settle()
    assert rig.running() == ["n1", "n3"]
    rig.node("n2", availability=NodeAvailability.ACTIVE)
    rig.settle()
    assert rig.running() == ["n1", "n2", "n3"]


def test_pause_leaves_tasks_alone_but_replaces_none() -> None:
    rig = Rig()
    rig.node("n2", availability=PAUSE)
    rig.settle()
    assert rig.running() == ["n1", "n2", "n3"]
    rig.cell.report(rig.on("n2")[0].id, TaskState.FAILED)
    rig.settle()
    (task,) = rig.on("n2")
    assert task.desired_state is TaskState.SHUTDOWN
    rig.node("n2", availability=NodeAvailability.ACTIVE)
    rig.settle()
    rig.cell.advance(5)
    rig.settle()
    assert rig.running() == ["n1", "n2", "n3"]


def test_a_node_that_is_down_has_none_and_a_fresh_one_when_it_returns() -> None:
    rig = Rig()
    (old,) = rig.on("n2")
    rig.node("n2", DOWN)
    rig.settle()
    assert rig.running() == ["n1", "n3"]
    rig.node("n2")
    rig.settle()
    assert rig.running() == ["n1", "n2", "n3"]
    assert [task.status.state for task in rig.on("n2") if task.id == old.id] == [TaskState.SHUTDOWN]


def test_a_node_that_is_removed_leaves_no_task() -> None:
    rig = Rig()
    rig.cell.remove(rig.cell.tables.nodes.resolve("n2"))
    rig.settle(Dirty(nodes=frozenset({"n2"})))
    assert not rig.on("n2")
    assert rig.running() == ["n1", "n3"]


def test_a_failed_task_is_replaced_on_its_node_after_the_delay() -> None:
    rig = Rig()
    rig.cell.report(rig.on("n2")[0].id, TaskState.FAILED)
    rig.settle()
    assert rig.running() == ["n1", "n3"]
    rig.cell.advance(5)
    rig.settle()
    assert rig.running() == ["n1", "n2", "n3"]
    first, second = rig.on("n2")
    assert second.replaces_task_id == first.id


def test_a_rolling_update_goes_node_by_node_and_leaves_paused_ones() -> None:
    rig = Rig(update=UpdateConfig(parallelism=1, monitor_ns=SECOND_NS))
    rig.node("n3", availability=PAUSE)
    service = rig.cell.service()
    rig.cell.put(service.replaced(spec=service.spec.replaced(task=_image("new"))))
    at_once = set()
    for _ in range(12):
        rig.cell.settle(
            lambda view: plan_round(view, EVERYTHING, now_ns=rig.cell.now_ns, ids=rig.cell.ids)
        )
        stopping = [task for task in rig.cell.tasks() if task.status.state is TaskState.RUNNING]
        at_once.add(len(stopping))
        for task in rig.cell.tasks():
            rig._obey(task)
        rig.cell.advance(1)
    assert min(at_once) >= 2
    images = {task.node_id: task.container.image for task in rig.cell.tasks()
              if task.status.state is TaskState.RUNNING}  # fmt: skip
    assert images == {"n1": "new", "n2": "new", "n3": "nginx:1"}
    status = rig.cell.service().update_status
    assert status is not None
    assert status.state is UpdateState.COMPLETED
    rig.node("n3", availability=NodeAvailability.ACTIVE)
    rig.settle()
    assert rig.on("n3")[-1].container.image == "new"


def test_what_does_not_fit_waits_with_its_reason_until_there_is_room() -> None:
    small = Resources(memory_bytes=1 << 20)
    task = _image("a")
    task = task.replaced(resources=task.resources.replaced(reservations=Resources(0, 1 << 30)))
    rig = Rig(a_node("n1"), a_node("n2", resources=small), task=task)
    assert rig.running() == ["n1"]
    (waiting,) = rig.on("n2")
    assert waiting.status.error == "no suitable node (insufficient resources on 1 node)"
    node = rig.cell.tables.nodes.resolve("n2")
    large = node.description.replaced(resources=Resources(memory_bytes=1 << 30))
    rig.cell.put(node.replaced(description=large))
    rig.settle(Dirty(nodes=frozenset({"n2"})))
    assert rig.running() == ["n1", "n2"]
