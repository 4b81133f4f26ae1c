"""New tasks for a slot of a service."""

from __future__ import annotations

from manager.orchestrator.restart.policy import backoff_of
from manager.orchestrator.slots import Place
from manager.store.view import View
from shoal.model.enums import TaskState
from shoal.model.modes import goal_of, iteration_of
from shoal.model.objects import Service, Task
from shoal.model.types import Annotations, TaskStatus


def new_task(
    view: View,
    service: Service,
    *,
    place: Place,
    task_id: str,
    now_ns: int,
    waits: bool = False,
    start_after_ns: int = 0,
    replaces: Task | None = None,
    takes_over: bool = False,
) -> Task:
    """A task in state NEW, made from the service's current spec.

    waits: it is prepared, and starts when the restart planner says so. takes_over: what it
    replaces goes on until it runs.
    """
    cluster = view.cluster
    spec = service.spec.task
    slot, node_id = place
    default_driver = None if cluster is None else cluster.spec.task_defaults.log_driver
    return Task(
        id=task_id,
        spec=spec,
        spec_version=service.spec_version,
        service_id=service.id,
        slot=slot,
        node_id=node_id,
        annotations=Annotations(
            name=f"{service.spec.annotations.name}.{node_id or slot}.{task_id}"
        ),
        service_annotations=service.spec.annotations,
        status=TaskStatus(state=TaskState.NEW, timestamp_ns=now_ns, message="created"),
        desired_state=TaskState.READY if waits else goal_of(service.spec.mode),
        log_driver=spec.log_driver or default_driver,
        job_iteration=iteration_of(service),
        start_after_ns=start_after_ns,
        replaces_task_id="" if replaces is None else replaces.id,
        takes_over=takes_over,
        restart_delay_ns=backoff_of(service, replaces),
    )
