"""New tasks for a slot of a service."""

from __future__ import annotations

from manager.store.view import View
from shoal.model.enums import TaskState
from shoal.model.objects import Service, Task
from shoal.model.types import Annotations, TaskStatus


def new_task(
    view: View,
    service: Service,
    *,
    slot: int,
    task_id: str,
    now_ns: int,
    desired: TaskState = TaskState.RUNNING,
    start_after_ns: int = 0,
    replaces: Task | None = None,
) -> Task:
    """A task in state NEW, made from the service's current spec."""
    cluster = view.cluster
    spec = service.spec.task
    default_driver = None if cluster is None else cluster.spec.task_defaults.log_driver
    return Task(
        id=task_id,
        spec=spec,
        spec_version=service.spec_version,
        service_id=service.id,
        slot=slot,
        annotations=Annotations(name=f"{service.spec.annotations.name}.{slot}.{task_id}"),
        service_annotations=service.spec.annotations,
        status=TaskStatus(state=TaskState.NEW, timestamp_ns=now_ns, message="created"),
        desired_state=desired,
        log_driver=spec.log_driver or default_driver,
        start_after_ns=start_after_ns,
        replaces_task_id="" if replaces is None else replaces.id,
    )
