"""Other contents of secrets and configs, swapped below the tasks that run."""

from __future__ import annotations

from manager.orchestrator.update.dirty import is_dirty
from manager.reconcile.dirty import EVERYTHING
from manager.reconcile.plan import plan_round
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import FileReference, FileRotation
from tests.support.planning import Cell, a_node, a_service

LIVE = FileRotation("SIGHUP")


def a_spec(content: str, *, rotation: FileRotation | None = LIVE, target: str = "db") -> TaskSpec:
    reference = FileReference(id=content, name=f"db-{content}", target=target)
    runtime = ContainerSpec(image="nginx:1", secrets=(reference,), file_rotation=rotation)
    return TaskSpec(runtime=runtime)


def a_cell(spec: TaskSpec, *, running: int = 2) -> Cell:
    """Two tasks, of which some run."""
    cell = Cell([a_node("n1"), a_service(replicas=2, task=spec)])
    plan(cell)
    for task in cell.tasks()[:running]:
        cell.report(task.id, TaskState.RUNNING)
    return cell


def plan(cell: Cell) -> None:
    cell.settle(lambda tables: plan_round(tables, EVERYTHING, now_ns=cell.now_ns, ids=cell.ids))


def change(cell: Cell, spec: TaskSpec) -> None:
    service = cell.service()
    cell.put(service.replaced(spec=service.spec.replaced(task=spec), previous_spec=service.spec))
    plan(cell)


def contents(tasks: list[Task]) -> list[str]:
    return [task.container.secrets[0].id for task in tasks]


def test_running_tasks_are_given_other_contents_and_no_task_is_made():
    cell = a_cell(a_spec("s1"))
    before = [task.id for task in cell.tasks()]

    change(cell, a_spec("s2"))

    assert [task.id for task in cell.tasks()] == before
    assert contents(cell.tasks()) == ["s2", "s2"]
    assert cell.service().update_status is None
    assert all(task.spec == cell.service().spec.task for task in cell.tasks())


def test_going_back_gives_them_what_they_had():
    cell = a_cell(a_spec("s1"))
    change(cell, a_spec("s2"))
    change(cell, a_spec("s1"))
    assert contents(cell.tasks()) == ["s1", "s1"]
    assert len(cell.tasks()) == 2


def test_a_task_that_does_not_run_yet_is_given_them_when_it_does():
    cell = a_cell(a_spec("s1"), running=1)
    change(cell, a_spec("s2"))
    assert contents(cell.tasks()) == ["s2", "s1"]
    cell.report(cell.tasks()[1].id, TaskState.RUNNING)
    plan(cell)
    assert contents(cell.tasks()) == ["s2", "s2"]
    assert len(cell.tasks()) == 2


def test_how_the_program_is_told_may_change_with_it():
    cell = a_cell(a_spec("s1"))
    change(cell, a_spec("s2", rotation=FileRotation()))
    assert len(cell.tasks()) == 2
    assert cell.tasks()[0].container.file_rotation == FileRotation()


def test_everything_else_makes_them_out_of_date():
    for spec in (
        a_spec("s2", target="other"),
        a_spec("s2", rotation=None),
        a_spec("s2").replaced(force_update=1),
    ):
        cell = a_cell(a_spec("s1"))
        service = cell.service()
        cell.put(service.replaced(spec=service.spec.replaced(task=spec)))
        assert is_dirty(cell.tables, cell.service(), cell.tasks()[0])
    cell = a_cell(a_spec("s1", rotation=None))
    change(cell, a_spec("s2", rotation=None))
    assert len(cell.tasks()) > 2, "a service that says nothing is updated as ever"
