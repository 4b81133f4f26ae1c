"""The mode of a service: what `--mode`, `--replicas` and `--max-concurrent` make of it."""

from __future__ import annotations

from shoal.errors import InvalidArgument
from shoal.model.enums import RestartCondition
from shoal.model.modes import is_job
from shoal.model.specs import (
    GlobalJobMode,
    GlobalMode,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceMode,
)
from swarmctl.edit.lists import Flags

MODES: dict[str, ServiceMode] = {
    "replicated": ReplicatedMode(replicas=1),
    "global": GlobalMode(),
    "replicated-job": ReplicatedJobMode(max_concurrent=1, total_completions=1),
    "global-job": GlobalJobMode(),
}
"""Words of `--mode`, and what a new service has by each."""

_COUNTED = "can only be used with replicated or replicated-job mode"


def edit_mode(mode: ServiceMode, flags: Flags) -> ServiceMode:
    """The mode with every given flag applied. Raises InvalidArgument for those it has no use for.

    A new job runs all its tasks at once, unless it is told otherwise.
    """
    mode = MODES[flags["mode"]] if "mode" in flags else mode
    if "replicas" in flags:
        mode = with_count(mode, flags["replicas"], f"replicas {_COUNTED}")
        if "mode" in flags and isinstance(mode, ReplicatedJobMode):
            mode = mode.replaced(max_concurrent=flags["replicas"])
    if "max_concurrent" in flags:
        if not isinstance(mode, ReplicatedJobMode):
            raise InvalidArgument("max-concurrent can only be used with replicated-job mode")
        mode = mode.replaced(max_concurrent=flags["max_concurrent"])
    if is_job(mode) and flags.get("restart_condition", RestartCondition.NONE) is (
        RestartCondition.ANY
    ):
        raise InvalidArgument(
            "restart-condition any cannot be used with jobs, whose tasks are done when they "
            "complete: use on-failure or none"
        )
    return mode


def with_count(mode: ServiceMode, count: int, refusal: str) -> ServiceMode:
    """The mode with another number of tasks, or of completions."""
    match mode:
        case ReplicatedMode():
            return mode.replaced(replicas=count)
        case ReplicatedJobMode():
            return mode.replaced(total_completions=count)
        case _:
            raise InvalidArgument(refusal)


def scaled(mode: ServiceMode, count: int, name: str) -> ServiceMode:
    """The mode as `service scale` makes it."""
    return with_count(mode, count, f"{name}: scale {_COUNTED}")
