"""Changes to services: what each request writes, decided on one view.

Pure but for the ids and times that come in. Validation of the spec itself is in `validate`.
"""

from __future__ import annotations

from collections.abc import Mapping

from manager.allocator.ports import check_ports
from manager.controlapi import validate
from manager.controlapi.files import with_file_ids
from manager.controlapi.networks import with_network_ids
from manager.controlapi.validate_dependencies import dependencies
from manager.controlapi.versions import check_version
from manager.orchestrator import revisions
from manager.orchestrator.slots import place_of
from manager.store.view import View
from shoal.errors import FailedPrecondition
from shoal.model.defaults import is_terminal, is_wanted, restart_policy, update_config
from shoal.model.enums import RevisionCause, TaskState, UpdateState
from shoal.model.modes import concurrency, is_job, is_of_this_iteration, iteration_of
from shoal.model.objects import Service, Task
from shoal.model.plan import Change, create, remove, update
from shoal.model.row import Row
from shoal.model.specs import GlobalJobMode, ReplicatedJobMode, ReplicatedMode, ServiceSpec
from shoal.model.types import JobStatus, UpdateConfig, UpdateStatus

_PAUSED = {
    UpdateState.UPDATING: (UpdateState.PAUSED, "update paused by request"),
    UpdateState.ROLLBACK_STARTED: (UpdateState.ROLLBACK_PAUSED, "rollback paused by request"),
}
_RESUMED = {
    UpdateState.PAUSED: (UpdateState.UPDATING, "update in progress"),
    UpdateState.ROLLBACK_PAUSED: (UpdateState.ROLLBACK_STARTED, "rollback in progress"),
}


class ServiceStatus(Row, frozen=True):
    """Numbers of `service ls`."""

    running_tasks: int
    desired_tasks: int
    completed_tasks: int


def create_service(view: View, spec: ServiceSpec, *, service_id: str, now_ns: int) -> list[Change]:
    """A new service. Raises InvalidArgument, Unimplemented, FailedPrecondition (port taken)."""
    validate.service_spec(spec)
    dependencies(view, spec)
    spec = with_file_ids(view, with_network_ids(view, spec))
    check_ports(view, spec, service_id=service_id)
    job = JobStatus(last_execution_at_ns=now_ns) if is_job(spec.mode) else None
    recorded = revisions.first(Service(id=service_id, spec=spec, job_status=job))
    return [create(recorded.service), *map(create, recorded.made)]


def update_service(
    view: View, reference: str, spec: ServiceSpec, *, version: int, now_ns: int
) -> list[Change]:
    """Another spec for a service; the spec it had becomes the previous one. A job begins again.

    version: what the caller read. Raises as `create_service`, and SequenceConflict.
    """
    service = _at_version(view, reference, version)
    validate.service_spec(spec)
    validate.service_change(service.spec, spec)
    dependencies(view, spec, service.spec)
    spec = with_file_ids(view, with_network_ids(view, spec, service_id=service.id))
    check_ports(view, spec, service_id=service.id)
    changed = service.replaced(
        spec=spec,
        previous_spec=service.spec,
        previous_spec_version=service.spec_version,
        update_status=None,
        job_status=_next_iteration(service, now_ns),
    )
    return _recorded(view, service, changed, RevisionCause.UPDATED)


def roll_back_service(
    view: View, reference: str, *, version: int, now_ns: int, to: int = 0
) -> list[Change]:
    """Back to the previous spec, or to that of a revision; what was in force is the previous one.

    to: number of the revision; 0: the previous spec. Raises FailedPrecondition where there is
    nothing to go back to; NotFound for a revision that is not kept, and, as InvalidArgument, for
    networks, secrets and configs of the spec that are gone by now.
    """
    service = _at_version(view, reference, version)
    spec = _spec_to_go_back_to(view, service, to)
    with_file_ids(view, with_network_ids(view, spec, service_id=service.id))
    check_ports(view, spec, service_id=service.id)
    status = UpdateStatus(
        state=UpdateState.ROLLBACK_STARTED,
        started_at_ns=now_ns,
        message="manually requested rollback",
    )
    changed = service.replaced(
        spec=spec,
        previous_spec=service.spec,
        previous_spec_version=service.spec_version,
        update_status=None if is_job(service.spec.mode) else status,
        job_status=_next_iteration(service, now_ns),
    )
    return _recorded(view, service, changed, RevisionCause.ROLLED_BACK)


def pause_update(
    view: View, reference: str, *, version: int, now_ns: int, resume: bool
) -> list[Change]:
    """Halt an update or rollback, or let a paused one go on; what failed before counts no more.

    Raises FailedPrecondition where none is under way, or paused.
    """
    service = _at_version(view, reference, version)
    status = service.update_status or UpdateStatus()
    turned = (_RESUMED if resume else _PAUSED).get(status.state)
    if turned is None:
        what = "paused" if resume else "under way"
        raise FailedPrecondition(f"service {service.spec.annotations.name}: no update is {what}")
    state, message = turned
    status = status.replaced(state=state, message=message)
    if resume:
        status = status.replaced(started_at_ns=now_ns)
    return [update(service.replaced(update_status=status))]


def remove_service(view: View, reference: str, *, version: int = 0) -> list[Change]:
    """Remove a service; the orchestrator then stops and removes its tasks and revisions.

    version: what the caller read, 0: any. Raises SequenceConflict when there is another one by now.
    """
    return [remove(_at_version(view, reference, version))]


def status_of(service: Service, tasks: Mapping[str, Task], down_nodes: set[str]) -> ServiceStatus:
    """Count a service's tasks as Swarm does: those on nodes that are down do not run.

    Of a job those of its present iteration; a place that completed counts once.
    """
    tasks = {key: task for key, task in tasks.items() if is_of_this_iteration(service, task)}
    running = sum(
        task.status.state is TaskState.RUNNING
        and is_wanted(task)
        and task.node_id not in down_nodes
        for task in tasks.values()
    )
    completed = [task for task in tasks.values() if task.status.state is TaskState.COMPLETE]
    if is_job(service.spec.mode):
        completed_count = len({place_of(service, task) for task in completed})
    else:
        completed_count = len(completed)
    return ServiceStatus(
        running_tasks=running,
        desired_tasks=_desired(service, tasks),
        completed_tasks=completed_count,
    )


def _desired(service: Service, tasks: Mapping[str, Task]) -> int:
    match service.spec.mode:
        case ReplicatedMode(replicas=replicas):
            return replicas
        case ReplicatedJobMode() as mode:
            return concurrency(mode)
        case GlobalJobMode():
            wanted = (task for task in tasks.values() if is_wanted(task))
            return len({place_of(service, task) for task in wanted})
        case _:
            return sum(is_wanted(task) and not is_terminal(task) for task in tasks.values())


def _next_iteration(service: Service, now_ns: int) -> JobStatus | None:
    """Where the job stands when its work begins again; None for other services."""
    iteration = iteration_of(service)
    if iteration is None:
        return None
    return JobStatus(iteration=iteration + 1, last_execution_at_ns=now_ns)


def with_defaults(service: Service) -> Service:
    """The service with every unset field of its spec at the value in force."""
    spec = service.spec
    task = spec.task.replaced(restart=restart_policy(spec.task.restart))
    filled = spec.replaced(task=task)
    if not is_job(spec.mode):
        filled = filled.replaced(update=_filled(spec.update), rollback=_filled(spec.rollback))
    return service.replaced(spec=filled)


def _filled(config: UpdateConfig | None) -> UpdateConfig:
    """With Swarm's defaults alone: what it does not know is shown where it was asked for."""
    asked = None if config is None else config.progress_deadline_ns
    return update_config(config).replaced(progress_deadline_ns=asked)


def _spec_to_go_back_to(view: View, service: Service, to: int) -> ServiceSpec:
    name = service.spec.annotations.name
    if to:
        spec = revisions.revision(view, service, to).spec
        if spec == service.spec:
            raise FailedPrecondition(f"service {name} has the spec of revision {to} already")
        validate.service_spec(spec)
        validate.service_change(service.spec, spec)
        return spec
    if service.previous_spec is None:
        raise FailedPrecondition(f"service {name} does not have a previous spec")
    return service.previous_spec


def _recorded(view: View, before: Service, after: Service, cause: RevisionCause) -> list[Change]:
    recorded = revisions.record(view, before, after, cause)
    return [update(recorded.service), *map(create, recorded.made)]


def _at_version(view: View, reference: str, version: int) -> Service:
    service = view.services.resolve(reference)
    check_version(service.meta.version, version, "service")
    return service
