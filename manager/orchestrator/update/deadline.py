"""The progress deadline of updates: which new task is held up, and in which stage.

A task that an update made may stay in one state for the deadline at most before it runs: without a
node, with its image on the way, or starting, where a health check's start period comes on top.
Time counts from when a manager learnt of the state, from the task's creation while it has no node,
and never from before the update began or was resumed. What waits for its turn is not held up: the
restart planner bounds that wait. Updates of Swarm wait for ever here.
"""

from __future__ import annotations

from manager.orchestrator.slots import ended_at_ns
from manager.orchestrator.update.progress import SlotProgress
from shoal.model.defaults import UPDATE_PROGRESS_DEADLINE_NS
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from shoal.model.types import HealthCheck, UpdateConfig

_MINUTE_NS = 60_000_000_000
_SECOND_NS = 1_000_000_000


def held_up_at_ns(slot: SlotProgress, config: UpdateConfig, *, since_ns: int) -> int | None:
    """From when on the new task of a slot counts as held up; None: never, as it stands."""
    limit_ns = _deadline_ns(config)
    if not limit_ns or not slot.is_on_the_way:
        return None
    task = slot.current[-1]
    state = task.status.state
    if state is TaskState.READY and task.desired_state is TaskState.READY:
        return None
    if state is TaskState.STARTING:
        limit_ns += (task.container.health_check or HealthCheck()).start_period_ns
    begun_at_ns = task.meta.created_at_ns if state < TaskState.ASSIGNED else ended_at_ns(task)
    return max(begun_at_ns, task.start_after_ns, since_ns) + limit_ns


def why_held_up(task: Task, config: UpdateConfig) -> str:
    """What a held-up task says in the message of its update."""
    said = task.status.error or task.status.message
    stage = f"{task.status.state.name} ({said})" if said else task.status.state.name
    return f"for lack of progress: task {task.id} still {stage} after {_span(_deadline_ns(config))}"


def _deadline_ns(config: UpdateConfig) -> int:
    deadline_ns = config.progress_deadline_ns
    return UPDATE_PROGRESS_DEADLINE_NS if deadline_ns is None else deadline_ns


def _span(duration_ns: int) -> str:
    if duration_ns % _MINUTE_NS == 0:
        return f"{duration_ns // _MINUTE_NS}m"
    return f"{duration_ns / _SECOND_NS:g}s"
