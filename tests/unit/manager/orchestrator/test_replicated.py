from __future__ import annotations

from manager.orchestrator.replicated.plan import plan
from shoal.model.enums import ActionKind, PlacementStrategy, TaskState
from shoal.model.objects import Task
from shoal.model.plan import CHANGES_MAX, Plan
from shoal.model.specs import ReplicatedMode, TaskSpec
from shoal.model.types import Placement
from tests.support.planning import START_NS, Cell, a_node, a_service, a_task


def _plan(cell: Cell) -> Plan:
    return plan(cell.tables, ["web"], now_ns=cell.now_ns, ids=cell.ids)


def _created(done: Plan) -> list[Task]:
    return [
        change.object
        for change in done.changes
        if change.kind is ActionKind.CREATE and isinstance(change.object, Task)
    ]


def _removed_slots(done: Plan) -> list[int]:
    return sorted(
        change.object.slot
        for change in done.changes
        if isinstance(change.object, Task) and change.object.desired_state is TaskState.REMOVE
    )


def test_new_tasks_take_the_lowest_free_slots_and_carry_the_service_along() -> None:
    cell = Cell([a_service(replicas=4), a_task("old", slot=2)])

    created = _created(_plan(cell))

    assert [task.slot for task in created] == [1, 3, 4]
    first = created[0]
    service = cell.service()
    assert first.annotations.name == f"web.1.{first.id}"
    assert first.service_annotations == service.spec.annotations
    assert first.spec_version == service.spec_version
    assert (first.status.state, first.desired_state) == (TaskState.NEW, TaskState.RUNNING)


def test_scaling_down_takes_what_does_not_run_then_crowded_nodes_then_high_slots() -> None:
    tasks = [
        a_task("a", slot=1, node_id="n1", state=TaskState.PREPARING),
        a_task("b", slot=2, node_id="n2"),
        a_task("c", slot=3, node_id="n2"),
        a_task("d", slot=4, node_id="n3"),
        a_task("e", slot=5, node_id="n4"),
    ]
    for replicas, removed in [(4, [1]), (3, [1, 3]), (2, [1, 3, 5])]:
        cell = Cell([a_service(replicas=replicas), *tasks])
        assert _removed_slots(_plan(cell)) == removed


def test_scaling_down_a_packed_service_frees_nodes_with_few_of_its_tasks() -> None:
    packed = TaskSpec(placement=Placement(strategy=PlacementStrategy.BINPACK))
    tasks = [
        a_task("a", slot=1, node_id="n2"),
        a_task("b", slot=2, node_id="n1"),
        a_task("c", slot=3, node_id="n1"),
        a_task("d", slot=4, node_id="n1", state=TaskState.PREPARING),
        a_task("e", slot=5, node_id="n3"),
    ]
    for replicas, removed in [(4, [4]), (3, [4, 5]), (2, [1, 4, 5]), (1, [1, 3, 4, 5])]:
        cell = Cell([a_service(replicas=replicas, task=packed), *tasks])
        assert sorted(_removed_slots(_plan(cell))) == removed


def test_scaling_down_marks_the_whole_history_of_a_slot() -> None:
    dead = a_task("dead", slot=2, state=TaskState.FAILED, desired=TaskState.SHUTDOWN)
    alive = a_task("alive", slot=2, created_at_ns=START_NS + 1)
    cell = Cell([a_service(replicas=1), a_task("other", slot=1), dead, alive])

    assert _removed_slots(_plan(cell)) == [2, 2]


def test_a_slot_that_finished_counts_as_filled() -> None:
    ended = a_task("ended", state=TaskState.COMPLETE, desired=TaskState.SHUTDOWN)
    cell = Cell([a_service(replicas=1), ended])

    assert not _plan(cell).changes


def test_tasks_marked_for_removal_do_not_hold_their_slot() -> None:
    leaving = a_task("leaving", slot=1, desired=TaskState.REMOVE)
    cell = Cell([a_service(replicas=1), leaving])

    assert [task.slot for task in _created(_plan(cell))] == [1]


def test_a_service_that_is_gone_or_leaving_gives_up_every_task() -> None:
    tasks = [a_task("a", slot=1), a_task("b", slot=2, desired=TaskState.SHUTDOWN)]

    for rows in [tasks, [a_service().replaced(pending_delete=True), *tasks]]:
        cell = Cell(rows)
        assert _removed_slots(_plan(cell)) == [1, 2]


def test_a_large_service_comes_in_rounds_of_two_hundred() -> None:
    cell = Cell([a_service(replicas=450), a_node("n1")])

    plans = cell.settle(lambda _: _plan(cell))

    assert [len(done.changes) for done in plans] == [CHANGES_MAX, CHANGES_MAX, 50, 0]
    assert [done.more for done in plans] == [True, True, False, False]
    assert {task.slot for task in cell.tasks()} == set(range(1, 451))


def test_scaling_to_zero_and_back_starts_with_slot_one() -> None:
    cell = Cell([a_service(replicas=2)])
    cell.settle(lambda _: _plan(cell))
    service = cell.service()
    cell.put(service.replaced(spec=service.spec.replaced(mode=ReplicatedMode(replicas=0))))
    cell.settle(lambda _: _plan(cell))
    assert all(task.desired_state is TaskState.REMOVE for task in cell.tasks())
    service = cell.service()
    cell.put(service.replaced(spec=service.spec.replaced(mode=ReplicatedMode(replicas=1))))

    assert [task.slot for task in _created(_plan(cell))] == [1]


def test_a_slot_with_a_long_history_goes_in_several_rounds() -> None:
    past = [
        a_task(f"dead{number:03}", state=TaskState.FAILED, desired=TaskState.SHUTDOWN)
        for number in range(450)
    ]
    cell = Cell([a_service(replicas=0), *past, a_task("zlive")])

    plans = cell.settle(lambda _: _plan(cell))

    assert [len(done.changes) for done in plans] == [CHANGES_MAX, CHANGES_MAX, 51, 0]
    assert {task.desired_state for task in cell.tasks()} == {TaskState.REMOVE}
