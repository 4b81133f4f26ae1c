"""What a stream sends: a mirror of its diffs is the node's part of the store; stops are held."""

from __future__ import annotations

import random

import pytest

from manager.dispatcher.assignments import CHANGES_PER_MESSAGE_MAX, NodeAssignments
from manager.dispatcher.endpoints import EndpointTable
from shoal.clock import NS_PER_S
from shoal.model.defaults import DRAIN_TIMEOUT_NS
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from shoal.model.types import Endpoint
from tests.support.planning import Cell, a_task
from tests.unit.manager.dispatcher.test_endpoints import a_member, a_published

DRAIN_S = DRAIN_TIMEOUT_NS / NS_PER_S


class Rig:
    """One node's stream over a store without a dispatcher."""

    def __init__(self, *rows) -> None:
        self.cell = Cell([a_published(), *rows])
        self.table = EndpointTable()
        self.stream = NodeAssignments("n1")
        self.now_s = 0.0
        self.acknowledged: int | None = 0
        self.tasks: dict[str, Task] = {}
        self.ports: dict[object, object] = {}
        self.overdue: list[str] = []
        self.table.update_services(self.cell.tables, ["web"])
        self.stream.mark_all(self.cell.tables, self.table)

    def put(self, *tasks: Task) -> None:
        self.cell.put(*tasks)
        ports = self.table.update_services(self.cell.tables, ["web"])
        self.stream.mark(tasks=[task.id for task in tasks], ports=ports)

    def take(self) -> list[str]:
        """Take once and mirror it. Result: `+id` and `-id` of tasks."""
        diff = self.stream.take(self.cell.tables, self.table, self.acknowledged, self.now_s)
        self.overdue += diff.overdue
        self.tasks.update((task.id, task) for task in diff.tasks)
        for task_id in diff.removed_tasks:
            del self.tasks[task_id]
        self.ports.update((row.key, row) for row in diff.ports)
        for key in diff.removed_ports:
            del self.ports[key]
        return [f"+{task.id}" for task in diff.tasks] + [f"-{key}" for key in diff.removed_tasks]

    def drain(self) -> list[str]:
        taken = self.take()
        while self.stream.is_dirty:
            taken += self.take()
        return taken


def stopping(rig: Rig, task_id: str = "t1") -> Task:
    task = rig.cell.tables.tasks.get(task_id)
    assert task is not None
    return task.with_desired_state(TaskState.SHUTDOWN)


def test_a_stopping_task_is_held_until_every_data_plane_is_past_it():
    rig = Rig(a_member("t1"))
    assert rig.drain() == ["+t1"]
    rig.acknowledged = rig.table.version
    rig.put(stopping(rig))
    assert rig.take() == []
    assert not rig.stream.is_dirty
    assert rig.ports == rig.table.ports, "the data plane hears of it at once"
    assert rig.stream.next_deadline_s() == DRAIN_S
    rig.acknowledged = rig.table.left_at("t1") - 1
    assert rig.take() == []
    rig.acknowledged = rig.table.left_at("t1")
    assert rig.take() == ["+t1"]
    assert rig.tasks["t1"].desired_state is TaskState.SHUTDOWN
    assert rig.stream.next_deadline_s() is None


def test_a_node_that_does_not_acknowledge_holds_nothing_back_for_ever():
    rig = Rig(a_member("t1"), a_member("t2"))
    rig.drain()
    rig.put(stopping(rig))
    assert rig.take() == []
    rig.now_s = 1.0
    rig.put(stopping(rig, "t2"))
    assert rig.take() == []
    rig.now_s = DRAIN_S
    assert rig.take() == ["+t1"]
    assert rig.stream.next_deadline_s() == 1.0 + DRAIN_S
    rig.acknowledged = None
    assert rig.take() == ["+t2"], "no node is there: nobody balances"
    assert rig.overdue == ["t1"]


@pytest.mark.parametrize("timeout_s", [0, 0.5, 30])
def test_a_service_says_how_long_its_tasks_may_be_held(timeout_s):
    rig = Rig(a_member("t1"))
    rig.cell.put(rig.cell.service().replaced(
        spec=rig.cell.service().spec.replaced(drain_timeout_ns=int(timeout_s * NS_PER_S))
    ))  # fmt: skip
    rig.drain()
    rig.put(stopping(rig))
    assert rig.take() == ([] if timeout_s else ["+t1"])
    rig.now_s = timeout_s * 0.9
    assert rig.take() == []
    rig.now_s = timeout_s
    assert rig.take() == (["+t1"] if timeout_s else [])
    assert rig.overdue == (["t1"] if timeout_s else []), "none was asked for: none is missed"


def test_a_new_stream_shows_a_task_that_is_held_as_wanted_until_its_time_has_come():
    rig = Rig(a_member("t1"))
    rig.drain()
    rig.put(stopping(rig))
    rig.stream, rig.tasks = NodeAssignments("n1"), {}  # the agent has come back
    rig.stream.mark_all(rig.cell.tables, rig.table)
    assert rig.take() == ["+t1"]
    assert rig.tasks["t1"].desired_state is TaskState.RUNNING
    assert rig.take() == []
    rig.acknowledged = rig.table.version
    assert rig.take() == ["+t1"]
    assert rig.tasks["t1"].desired_state is TaskState.SHUTDOWN


def test_a_new_manager_holds_what_nodes_may_have_in_the_table_of_the_last_one():
    published = Endpoint(ports=a_published().spec.endpoint.ports)
    rig = Rig(
        a_member("t1", desired=TaskState.SHUTDOWN).replaced(endpoint=published),
        a_member("t2", desired=TaskState.SHUTDOWN),
    )
    assert rig.take() == ["+t1", "+t2"]
    assert rig.tasks["t1"].desired_state is TaskState.RUNNING
    assert rig.tasks["t2"].desired_state is TaskState.SHUTDOWN, "it is not published"
    rig.acknowledged = 1
    assert rig.take() == ["+t1"]
    assert rig.tasks["t1"].desired_state is TaskState.SHUTDOWN


def test_a_task_is_held_also_while_the_table_has_not_heard_of_it_yet():
    rig = Rig(a_member("t1"))
    rig.drain()
    rig.acknowledged = rig.table.version
    rig.cell.put(stopping(rig))
    rig.stream.mark(tasks=["t1"])
    assert rig.take() == [], "the table still sends connections to it"
    rig.stream.mark(ports=rig.table.update_services(rig.cell.tables, ["web"]))
    assert rig.take() == []
    rig.acknowledged = rig.table.version
    assert rig.take() == ["+t1"]


@pytest.mark.parametrize("state", [TaskState.STARTING, TaskState.FAILED])
def test_a_task_that_takes_no_traffic_is_not_held(state):
    rig = Rig(a_member("t1"))
    rig.drain()
    rig.put(stopping(rig).replaced(status=a_member("t1", state=state).status))
    assert rig.take() == ["+t1"]


def test_a_removed_task_is_not_held_and_leaves_no_deadline():
    rig = Rig(a_member("t1"))
    rig.drain()
    rig.put(stopping(rig))
    assert rig.take() == []
    task = rig.cell.tables.tasks.get("t1")
    assert task is not None
    rig.cell.remove(task)
    rig.stream.mark(tasks=["t1"])
    assert rig.take() == ["-t1"]
    assert rig.stream.next_deadline_s() is None


def test_an_agents_own_reports_are_no_news():
    rig = Rig(a_task("t1", state=TaskState.ASSIGNED), a_task("t2", state=TaskState.PENDING))
    assert rig.drain() == ["+t1"]
    rig.put(a_task("t1", state=TaskState.PREPARING))
    assert rig.drain() == []
    rig.put(a_task("t2", state=TaskState.ASSIGNED))
    assert rig.drain() == ["+t2"]


def test_a_message_holds_a_bounded_number_of_tasks():
    rig = Rig(*(a_task(f"t{number:03}") for number in range(250)))
    sizes = []
    while rig.stream.is_dirty:
        sizes.append(len(rig.take()))
    assert sizes == [CHANGES_PER_MESSAGE_MAX, CHANGES_PER_MESSAGE_MAX, 50]


def test_after_missed_commits_marking_everything_finds_what_is_gone():
    rig = Rig(a_member("t1"), a_member("t2"))
    rig.drain()
    for task in rig.cell.tasks():
        rig.cell.remove(task)
    rig.cell.remove(rig.cell.service())
    rig.table.update_services(rig.cell.tables, ["web"])
    rig.stream.mark_all(rig.cell.tables, rig.table)
    assert rig.drain() == ["-t1", "-t2"]
    assert rig.ports == {}


@pytest.mark.parametrize("seed", range(20))
def test_the_mirror_of_all_diffs_is_the_nodes_part_of_the_store(seed):
    chosen = random.Random(seed)
    rig = Rig()
    for _ in range(60):
        task_id = f"t{chosen.randrange(12)}"
        old = rig.cell.tables.tasks.get(task_id)
        if old is None:
            node_id = chosen.choice(["n1", "n1", "n2", ""])
            state = TaskState.ASSIGNED if node_id else TaskState.PENDING
            rig.put(a_member(task_id, node_id=node_id, state=state))
        elif chosen.random() < 0.2:
            rig.cell.remove(old)
            rig.stream.mark(tasks=[task_id], ports=rig.table.update_services(
                rig.cell.tables, ["web"]
            ))  # fmt: skip
        elif chosen.random() < 0.5 and old.node_id:
            state = chosen.choice([s for s in TaskState if s >= old.status.state])
            rig.put(old.with_status(old.status.replaced(state=state)))
        else:
            rig.put(old.with_desired_state(max(old.desired_state, TaskState.SHUTDOWN)))
        rig.now_s += chosen.random()
        if chosen.random() < 0.5:
            rig.acknowledged = rig.table.version
        if chosen.random() < 0.4:
            rig.take()
    rig.now_s += 2 * DRAIN_S
    rig.drain()
    wanted = {
        task.id: (task.desired_state, task.spec)
        for task in rig.cell.tables.tasks_of_node("n1").values()
        if task.status.state >= TaskState.ASSIGNED
    }
    assert {key: (task.desired_state, task.spec) for key, task in rig.tasks.items()} == wanted
    assert rig.ports == rig.table.ports
