"""Affinity: constraints on the other services of which a node has tasks.

    service.name == db        next to a task of it     service.name != db        away from all of it
    service.labels.tier ...   the same by label        ==, !=, ~=, in, notin, exists

They are looked at when a task is placed, and move nothing afterwards: the company of a task comes
and goes, and two services that follow each other would never rest. To be near somebody, a task
that is wanted there must be there; to be away, none that has not ended. Who keeps away from others
has them kept away as well. A task's own service is no company: `replicas-max-per-node` spreads
that. Which text means what is `manager.scheduler.constraints`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from manager.scheduler.constraints import (
    NEGATED,
    SERVICE_LABELS,
    Constraint,
    Operator,
    company_of,
)
from manager.scheduler.usage import Usage
from manager.store.view import View
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from shoal.model.types import Annotations


class Company:
    """What one kind of task wants of its neighbours, and they of it."""

    def __init__(self, view: View, task: Task) -> None:
        self._view = view
        self._service_id = task.service_id
        self._own = _annotations(view, task)
        self._wants = company_of(task.spec.placement.constraints)

    def fits(self, usage: Usage) -> bool:
        """Whether nobody has anything against the task's being on the node."""
        if self._wants and not self.meets(usage, self._wants):
            return False
        return not usage.choosy or next(self._averse(usage), None) is None

    def meets(self, usage: Usage, constraints: Iterable[Constraint]) -> bool:
        """Whether the node's other services are as these constraints want them."""
        there = list(self._neighbours(usage))
        return all(_holds(constraint, there) for constraint in constraints)

    def objections(self, usage: Usage) -> Iterator[str]:
        """Everything that is wrong with the node, in words."""
        there = list(self._neighbours(usage))
        for constraint in self._wants:
            if _holds(constraint, there):
                continue
            found = [one for _, one in there if _is_meant(one, constraint)]
            if constraint.operator in NEGATED and found:
                yield f"{spelled(constraint)}: the node has a task of service {found[0].name}"
            else:
                yield f"{spelled(constraint)}: the node has no task of such a service"
        for task, constraint in self._averse(usage):
            name = task.service_annotations.name or task.service_id
            yield f"service {name} keeps away from this one: {spelled(constraint)}"

    def _neighbours(self, usage: Usage) -> Iterator[tuple[Task, Annotations]]:
        for _, task in sorted(self._view.tasks_of_node(usage.node.id).items()):
            if task.service_id != self._service_id and _is_there(task):
                yield task, _annotations(self._view, task)

    def _averse(self, usage: Usage) -> Iterator[tuple[Task, Constraint]]:
        """Tasks on the node that keep away from this one, and by which of their constraints."""
        for task in usage.choosy:
            if task.service_id == self._service_id:
                continue
            for constraint in company_of(task.spec.placement.constraints):
                if constraint.operator in NEGATED and _is_meant(self._own, constraint):
                    yield task, constraint


def awaits(task: Task, services: Iterable[Annotations]) -> bool:
    """Whether a waiting task may fit somewhere now that these services have changed."""
    wants = company_of(task.spec.placement.constraints)
    return bool(wants) and any(_is_meant(one, want) for one in services for want in wants)


def spelled(constraint: Constraint) -> str:
    """A constraint as it is written."""
    if constraint.operator is Operator.EXISTS:
        return f"{constraint.key} exists"
    if constraint.operator in (Operator.IN, Operator.NOT_IN):
        return f"{constraint.key} {constraint.operator} ({', '.join(constraint.values)})"
    return f"{constraint.key}{constraint.operator}{constraint.values[0]}"


def _holds(constraint: Constraint, there: list[tuple[Task, Annotations]]) -> bool:
    meant = (task for task, one in there if _is_meant(one, constraint))
    if constraint.operator in NEGATED:
        return next(meant, None) is None
    return any(is_wanted(task) for task in meant)


def _is_meant(service: Annotations, constraint: Constraint) -> bool:
    """Whether the service has a value that the constraint names, be it to seek or to avoid."""
    if constraint.key.lower().startswith(SERVICE_LABELS):
        value = service.labels.get(constraint.key[len(SERVICE_LABELS) :])
    else:
        value = service.name
    if value is None:
        return False
    if constraint.operator is Operator.EXISTS:
        return True
    if constraint.operator is Operator.LIKE:
        return fnmatchcase(value.lower(), constraint.values[0].lower())
    return value.lower() in {one.lower() for one in constraint.values}


def _is_there(task: Task) -> bool:
    return task.status.state >= TaskState.ASSIGNED and not is_terminal(task)


def _annotations(view: View, task: Task) -> Annotations:
    service = view.services.get(task.service_id)
    return task.service_annotations if service is None else service.spec.annotations
