"""Rules of services' modes: what each one counts, and what it cannot be combined with. Pure."""

from __future__ import annotations

from manager.scheduler.company import spelled
from manager.scheduler.constraints import company_of
from shoal.errors import InvalidArgument
from shoal.model.modes import is_global, is_job
from shoal.model.specs import ReplicatedJobMode, ReplicatedMode, ServiceSpec

REPLICAS_MAX = 100_000
PRIORITY_MAX = 1000
TTL_MAX_NS = 8_760 * 3600 * 1_000_000_000


def service_mode(spec: ServiceSpec) -> None:
    """Refuse numbers out of range, and settings that would mean nothing in the service's mode."""
    _numbers(spec)
    if is_global(spec.mode) and spec.task.placement.max_replicas:
        raise InvalidArgument(
            "replicas-max-per-node can only be used with replicated or replicated-job mode"
        )
    if is_global(spec.mode) and spec.task.placement.strategy:
        raise InvalidArgument(
            "placement strategy: can only be used with replicated or replicated-job mode: a "
            "global service is on every node that fits"
        )
    if is_global(spec.mode) and any(
        one.prefer or one.avoid for one in spec.task.placement.preferences
    ):
        raise InvalidArgument(
            "placement preference: prefer and avoid can only be used with replicated or "
            "replicated-job mode: a global service is on every node that fits its constraints"
        )
    _company(spec)
    if not -PRIORITY_MAX <= spec.priority <= PRIORITY_MAX:
        raise InvalidArgument(
            f"priority: {spec.priority} must be from {-PRIORITY_MAX} to {PRIORITY_MAX}"
        )
    if (spec.disruption_budget or 0) > REPLICAS_MAX:
        raise InvalidArgument(
            f"disruption budget: {spec.disruption_budget} is more than {REPLICAS_MAX}"
        )
    if is_job(spec.mode) and (spec.update is not None or spec.rollback is not None):
        raise InvalidArgument(
            "update and rollback configuration is not supported for jobs: a change of a job runs "
            "it again as a whole"
        )
    if not isinstance(spec.mode, ReplicatedMode) and any(
        wish.addresses for wish in spec.task.networks
    ):
        raise InvalidArgument("network: addresses (ip=) can only be used with replicated mode")
    ttl_ns = spec.ttl_after_finish_ns
    if ttl_ns is not None and not is_job(spec.mode):
        raise InvalidArgument("ttl after finish: only jobs finish: leave it out")
    if ttl_ns is not None and not 0 <= ttl_ns <= TTL_MAX_NS:
        raise InvalidArgument("ttl after finish: must be from 0s to 8760h")


def _company(spec: ServiceSpec) -> None:
    """Constraints on other services: `manager.scheduler.company`. They must have been read."""
    constraints = company_of(spec.task.placement.constraints)
    if constraints and is_global(spec.mode):
        raise InvalidArgument(
            f"constraint {spelled(constraints[0])!r}: can only be used with replicated or "
            "replicated-job mode: a global service is on every node that fits, whoever is there"
        )
    own = spec.annotations.name.lower()
    for constraint in constraints:
        named = {value.lower() for value in constraint.values}
        if constraint.key.lower() == "service.name" and own in named:
            raise InvalidArgument(
                f"constraint {spelled(constraint)!r}: a service is no company of its own: to keep "
                "its tasks apart use replicas-max-per-node"
            )


def _numbers(spec: ServiceSpec) -> None:
    match spec.mode:
        case ReplicatedMode(replicas=replicas):
            numbers = {"replicas": replicas}
        case ReplicatedJobMode(max_concurrent=at_once, total_completions=total):
            numbers = {"replicas": total, "max concurrent": at_once}
        case _:
            numbers = {}
    for name, number in numbers.items():
        if number > REPLICAS_MAX:
            raise InvalidArgument(
                f"{name}: {number} is more than {REPLICAS_MAX}, the most of one service"
            )
