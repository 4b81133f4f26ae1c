"""Which services and tasks may be moved, and how many at once.

A move is a hand-over (`manager.orchestrator.handover`), so the service has never fewer tasks. At a
time as many slots are moved as its disruption budget allows, or where it has none as many as its
updates replace (their parallelism, 1 where nothing is said), less those that do not run anyway.
"""

from __future__ import annotations

from manager.orchestrator.handover.linger import stops_first
from manager.orchestrator.slots import service_slots
from manager.orchestrator.update.dirty import is_dirty
from manager.orchestrator.update.plan import is_updating
from manager.scheduler.constraints import company_of
from manager.scheduler.filters import is_ready
from manager.store.view import View
from shoal.model.defaults import is_wanted, packs, update_config
from shoal.model.enums import RestartCondition, TaskState
from shoal.model.objects import Service, Task
from shoal.model.specs import ReplicatedMode
from shoal.model.types import RestartPolicy

BUDGET_MAX = 10
"""Moves of one service at once, also where updates replace all slots together."""


def hindrance_of(view: View, service: Service) -> str:
    """Why no task of the service is ever moved; "" when some may be."""
    if not isinstance(service.spec.mode, ReplicatedMode):
        return "only replicated services are moved"
    if service.pending_delete:
        return "it is being removed"
    if packs(service.spec.task.placement, view.cluster):
        return "it is packed (placement strategy binpack)"
    if stops_first(service):
        return "two of its tasks must not run at once (disconnect action wait)"
    if _follows_others(service):
        return "it is placed by what other services are where (constraints on service.*)"
    policy = service.spec.task.restart or RestartPolicy()
    if policy.condition is RestartCondition.NONE:
        return "its tasks run once only (restart condition none)"
    return ""


def is_movable(view: View, service: Service, task: Task) -> bool:
    """Whether the task runs, is up to date, and is on a node that takes tasks.

    One on PAUSE keeps what it has.
    """
    node = view.nodes.get(task.node_id)
    return (
        node is not None
        and is_ready(node)
        and is_wanted(task)
        and task.status.state is TaskState.RUNNING
        and not is_dirty(view, service, task)
    )


def budget_of(view: View, service: Service) -> int:
    """How many more tasks of the service may be moved now; 0 while it is updated."""
    if is_updating(service):
        return 0
    wished = service.spec.disruption_budget
    parallelism = update_config(service.spec.update).parallelism or BUDGET_MAX
    disturbed = sum(
        bool(slot.handed_over) or not slot.running for slot in service_slots(view, service)
    )
    return max(0, min(parallelism if wished is None else wished, BUDGET_MAX) - disturbed)


def _follows_others(service: Service) -> bool:
    """Whether its tasks want company, or none: two services that follow each other never rest."""
    placement = service.spec.task.placement
    wishes = (one.prefer or one.avoid for one in placement.preferences)
    return bool(company_of((*placement.constraints, *filter(None, wishes))))
