"""The `up_to_date` filter of tasks, by which clients see that a change took effect."""

from __future__ import annotations

from manager.controlapi.select import Filters, select_tasks
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import Endpoint
from tests.support.planning import Cell, a_node, a_port, a_service, a_task


def up_to_date(cell: Cell) -> set[str]:
    return {task.id for task in select_tasks(cell.tables, Filters(up_to_date=True))}


def test_a_task_that_runs_the_spec_counts_whatever_its_spec_version():
    service = a_service()  # written at version 2; the tasks were made from version 1
    other = TaskSpec(runtime=ContainerSpec(image="nginx:2"))
    endpoint = Endpoint(spec=service.spec.endpoint)
    same = a_task("same", slot=1, version=1, endpoint=endpoint)
    old = a_task("old", slot=2, version=1, spec=other, endpoint=endpoint)
    cell = Cell([a_node("n1"), service, same, old])
    assert up_to_date(cell) == {"same"}


def test_a_task_with_another_endpoint_does_not_count():
    service = a_service(ports=(a_port(80, 8080),))
    cell = Cell([a_node("n1"), service])
    version = cell.tables.services.resolve("web").spec_version.index
    moved = a_task("moved", slot=1, version=version, endpoint=Endpoint())
    given = a_task("given", slot=2, version=version, endpoint=Endpoint(spec=service.spec.endpoint))
    cell.put(moved, given)
    assert up_to_date(cell) == {"given"}


def test_tasks_of_removed_services_do_not_count():
    cell = Cell([a_node("n1"), a_task("orphan", service_id="gone")])
    assert up_to_date(cell) == set()
