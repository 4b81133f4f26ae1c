"""What a service's mode says: where its tasks go, and whether they are to end.

A *job*'s tasks are to complete: their desired state is COMPLETE where that of others is RUNNING.
Each change of a job begins another iteration; tasks of earlier ones count no more. A *global*
service's place is a node, that of others a number.
"""

from __future__ import annotations

from shoal.model.enums import TaskState
from shoal.model.objects import Service, Task
from shoal.model.specs import (
    GlobalJobMode,
    GlobalMode,
    ReplicatedJobMode,
    ServiceMode,
)


def is_global(mode: ServiceMode) -> bool:
    """Whether every node that fits has a task."""
    return isinstance(mode, GlobalMode | GlobalJobMode)


def is_job(mode: ServiceMode) -> bool:
    """Whether the tasks run to completion."""
    return isinstance(mode, ReplicatedJobMode | GlobalJobMode)


def goal_of(mode: ServiceMode) -> TaskState:
    """The desired state of tasks that are not waiting for their turn."""
    return TaskState.COMPLETE if is_job(mode) else TaskState.RUNNING


def iteration_of(service: Service) -> int | None:
    """How often the job was changed; None for services that are no jobs."""
    if not is_job(service.spec.mode):
        return None
    return 0 if service.job_status is None else service.job_status.iteration


def is_of_this_iteration(service: Service, task: Task) -> bool:
    """Whether the task's work still counts."""
    return task.job_iteration == iteration_of(service)


def concurrency(mode: ReplicatedJobMode) -> int:
    """How many tasks of a job run at once; where nothing is said, all of them."""
    return mode.max_concurrent or mode.total_completions
