from __future__ import annotations

import pytest

from manager.reconcile.agenda import Agenda
from manager.reconcile.dirty import EVERYTHING, NOTHING, Dirty, dirty_from_event
from manager.reconcile.plan import EXAMINED_MAX, Round, plan_round
from shoal.model.enums import ActionKind, NodeAvailability, NodeState, TaskState
from shoal.model.objects import AnyObject, Cluster, Network, Task
from shoal.model.plan import CHANGES_MAX
from shoal.model.specs import ClusterSpec, GlobalMode, OrchestrationConfig
from shoal.model.types import Driver
from tests.support.planning import SECOND_NS, Cell, a_node, a_port, a_service, a_task


def _plan(cell: Cell, dirty: Dirty = EVERYTHING) -> Round:
    return plan_round(cell.tables, dirty, now_ns=cell.now_ns, ids=cell.ids)


def test_one_commit_takes_a_service_from_nothing_to_assigned_tasks() -> None:
    cell = Cell([a_node("n1"), a_node("n2"), a_service(replicas=3, ports=(a_port(80, 8080),))])
    done = _plan(cell)
    cell.commit(done.changes)

    assert [task.status.state for task in cell.tasks()] == [TaskState.ASSIGNED] * 3
    assert all(task.endpoint == cell.service().endpoint for task in cell.tasks())
    kinds = [change.kind for change in done.changes if isinstance(change.object, Task)]
    assert kinds == [ActionKind.CREATE] * 3
    assert not done.more
    assert not done.rest


def test_a_replacement_is_placed_in_the_commit_that_gives_up_the_old_task() -> None:
    cell = Cell([a_node("n1"), a_node("n2"), a_service(replicas=1), a_task("t0")])
    cell.commit(_plan(cell).changes)
    cell.put(a_node("n1", state=NodeState.DOWN))
    cell.commit(_plan(cell, Dirty(nodes=frozenset({"n1"}))).changes)

    old, new = cell.tasks()
    assert (old.desired_state, new.node_id) == (TaskState.SHUTDOWN, "n2")
    assert (new.status.state, new.desired_state) == (TaskState.ASSIGNED, TaskState.RUNNING)


def test_what_does_not_fit_into_a_round_is_left_for_the_next() -> None:
    cell = Cell([a_node("n1"), *(a_service(f"s{number}", replicas=90) for number in range(5))])
    first = _plan(cell)
    assert len(first.changes) == CHANGES_MAX
    assert first.more
    assert "s4" in first.rest.services
    cell.commit(first.changes)
    rest, rounds = first.rest, 1
    while rest:
        done = _plan(cell, rest)
        cell.commit(done.changes)
        rest, rounds = done.rest, rounds + 1

    assert rounds == 3
    states = {task.status.state for task in cell.tables.tasks}
    assert (len(cell.tables.tasks), states) == (450, {TaskState.ASSIGNED})


def test_a_round_looks_at_a_bounded_number_of_tasks() -> None:
    services = [a_service(f"s{number}", replicas=300) for number in range(10)]
    tasks = [
        a_task(f"t{number}", service_id=f"s{number // 300}", slot=number % 300 + 1)
        for number in range(3_000)
    ]
    cell = Cell([a_node("n1"), *services, *tasks])
    cell.commit(_plan(cell).changes)  # a place in the mesh for the node
    done = _plan(cell)

    assert not done.changes
    assert done.more
    assert len(done.rest.services) == 10 - EXAMINED_MAX // 301
    assert not _plan(cell, Dirty(services=frozenset({"s9"}))).more


def test_a_changed_node_has_every_global_service_looked_at_once() -> None:
    """Their tasks together are more than one round looks at."""
    services = [a_service(f"s{number}") for number in range(5)]
    cell = Cell([a_node(f"n{number:03}") for number in range(600)])
    cell.put(*(one.replaced(spec=one.spec.replaced(mode=GlobalMode())) for one in services))
    rest = EVERYTHING
    while rest:
        done = _plan(cell, rest)
        cell.commit(done.changes)
        rest = done.rest
    cell.put(a_node("n007", state=NodeState.DOWN))

    rest, rounds = Dirty(nodes=frozenset({"n007"})), 0
    while rest:
        done = _plan(cell, rest)
        cell.commit(done.changes)
        rest, rounds = done.rest, rounds + 1
        assert rounds <= 3

    lost = cell.tables.tasks_of_node("n007").values()
    assert {task.desired_state for task in lost} == {TaskState.SHUTDOWN}
    assert len(lost) == 5


def test_only_dirty_services_are_looked_at() -> None:
    cell = Cell([a_node("n1"), a_service("a"), a_service("b")])
    cell.commit(_plan(cell, Dirty(services=frozenset({"a"}))).changes)

    assert {task.service_id for task in cell.tables.tasks} == {"a"}


def test_unplaced_tasks_of_all_services_are_tried_again_when_a_node_changes() -> None:
    cell = Cell([a_service("a", replicas=1), a_service("b", replicas=1)])
    cell.settle(lambda _: _plan(cell))
    assert all(task.status.error == "no suitable node" for task in cell.tables.tasks)
    cell.put(a_node("n1"))
    cell.commit(_plan(cell, Dirty(nodes=frozenset({"n1"}))).changes)

    assert [(task.node_id, task.status.error) for task in cell.tables.tasks] == [("n1", "")] * 2


def test_tasks_of_a_service_without_a_row_are_cleaned_up() -> None:
    cell = Cell([a_node("n1"), a_task("t0", service_id="gone")])
    cell.settle(lambda _: _plan(cell))
    assert [task.desired_state for task in cell.tables.tasks] == [TaskState.REMOVE]
    cell.report("t0", TaskState.SHUTDOWN)
    cell.settle(lambda _: _plan(cell))

    assert not len(cell.tables.tasks)


def test_a_preassigned_task_is_only_checked() -> None:
    tasks = [
        a_task(f"t{number}", slot=number, state=TaskState.PENDING, node_id=f"n{number}")
        for number in (1, 2)
    ]
    paused = a_node("n2", availability=NodeAvailability.PAUSE)
    cell = Cell([a_node("n1"), paused, a_service(replicas=2), *tasks])
    cell.settle(lambda _: _plan(cell))

    good, bad = cell.tasks()
    assert good.status.state is TaskState.ASSIGNED
    assert bad.status.error == "no suitable node (1 node not available for new tasks)"


def _task(state: TaskState, desired: TaskState = TaskState.RUNNING) -> Task:
    return a_task("t0", state=state, desired=desired)


WEB = Dirty(services=frozenset({"web"}))
WEB_FREED = Dirty(services=frozenset({"web"}), tasks=frozenset({"t0"}))


@pytest.mark.parametrize(
    ("old", "new", "dirty"),
    [
        (None, a_service(), WEB),
        (a_service(), a_service(replicas=9), WEB),
        (a_service(), a_service().replaced(pending_delete=True), WEB),
        (a_service(), None, WEB),
        (None, _task(TaskState.NEW), WEB),
        (_task(TaskState.ACCEPTED), _task(TaskState.PREPARING), NOTHING),
        (_task(TaskState.STARTING), _task(TaskState.RUNNING), WEB),
        (_task(TaskState.RUNNING), _task(TaskState.RUNNING, TaskState.SHUTDOWN), WEB),
        (_task(TaskState.RUNNING), _task(TaskState.FAILED), WEB_FREED),
        (_task(TaskState.RUNNING), None, WEB_FREED),
        (_task(TaskState.FAILED), None, WEB),
        (None, a_node("n1"), Dirty(nodes=frozenset({"n1"}))),
        (a_node("n1"), a_node("n1"), NOTHING),
        (a_node("n1"), a_node("n1", state=NodeState.DOWN), Dirty(nodes=frozenset({"n1"}))),
        (a_node("n1"), a_node("n1", labels={"a": "b"}), Dirty(nodes=frozenset({"n1"}))),
        (a_node("n1"), None, Dirty(nodes=frozenset({"n1"}))),
        (Cluster(id="c"), Cluster(id="c"), NOTHING),
        (
            Cluster(id="c"),
            Cluster(
                id="c",
                spec=ClusterSpec(orchestration=OrchestrationConfig(task_history_retention_limit=1)),
            ),
            EVERYTHING,
        ),
        (None, Network(id="net"), Dirty(networks=frozenset({"net"}))),
        (Network(id="net"), None, Dirty(networks=frozenset({"net"}))),
        (Network(id="net"), Network(id="net", driver_state=Driver("overlay")), NOTHING),
    ],
)
def test_what_an_event_makes_dirty(
    old: AnyObject | None, new: AnyObject | None, dirty: Dirty
) -> None:
    kind = ActionKind.CREATE if old is None else ActionKind.UPDATE
    kind = ActionKind.REMOVE if new is None else kind

    assert dirty_from_event(kind, old, new) == dirty


def test_the_agenda_keeps_timers_of_services_that_a_round_did_not_look_at() -> None:
    agenda = Agenda()
    dirty = agenda.take(0)
    assert dirty == EVERYTHING
    agenda.finish(dirty, Round(wakes=(("a", 5 * SECOND_NS), ("b", 9 * SECOND_NS))))
    assert not agenda.take(SECOND_NS)
    agenda.add(Dirty(services=frozenset({"b"})))
    dirty = agenda.take(SECOND_NS)
    agenda.finish(dirty, Round())

    assert agenda.wake_at_ns == 5 * SECOND_NS
    assert agenda.take(5 * SECOND_NS) == Dirty(services=frozenset({"a"}))


def test_the_agenda_takes_up_what_a_round_left() -> None:
    agenda = Agenda()
    dirty = agenda.take(0)
    agenda.finish(dirty, Round(more=True, rest=WEB))

    assert agenda.take(0) == WEB
    assert agenda.wake_at_ns is None
