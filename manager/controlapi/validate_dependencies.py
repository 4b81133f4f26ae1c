"""Rules for what services depend on: decided on one view, with the spec in it. Pure."""

from __future__ import annotations

from manager.store.view import View
from shoal.errors import InvalidArgument
from shoal.model.dependencies import in_order
from shoal.model.enums import DependencyCondition, RestartCondition
from shoal.model.modes import is_job
from shoal.model.specs import ServiceSpec
from shoal.model.types import ServiceDependency

DEPENDENCIES_MAX = 32


def dependencies(view: View, spec: ServiceSpec, old: ServiceSpec | None = None) -> None:
    """Refuse dependencies that could not be waited for.

    old: the spec before; what it depends on already may be gone by now. Raises: InvalidArgument.
    """
    given = spec.depends_on
    if not given:
        return
    if len(given) > DEPENDENCIES_MAX:
        raise InvalidArgument(f"depends_on: {len(given)} services, at most {DEPENDENCIES_MAX}")
    names = [one.service.lower() for one in given]
    if len(set(names)) < len(names):
        raise InvalidArgument("depends_on: a service is named twice: give it one condition")
    for one in given:
        if old is None or one not in old.depends_on:
            _check(view, spec, one)
    name = spec.annotations.name.lower()
    graph = {
        service.spec.annotations.name.lower(): [
            one.service.lower() for one in service.spec.depends_on
        ]
        for service in view.services
        if service.spec.depends_on
    }
    in_order({**graph, name: names})


def _check(view: View, spec: ServiceSpec, one: ServiceDependency) -> None:
    if one.service.lower() == spec.annotations.name.lower():
        raise InvalidArgument(f"depends_on: service {one.service} depends on itself")
    service = view.services.by_name(one.service)
    if service is None:
        raise InvalidArgument(f"depends_on: there is no service {one.service}: create it first")
    restart = service.spec.task.restart
    ends = is_job(service.spec.mode) or (
        restart is not None and restart.condition is not RestartCondition.ANY
    )
    if one.condition is DependencyCondition.COMPLETED and not ends:
        raise InvalidArgument(
            f"depends_on: service {one.service} never completes: make it a job, or give it the"
            " restart condition none or on-failure"
        )
