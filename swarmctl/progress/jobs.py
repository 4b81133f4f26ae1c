"""Whether a job is done, and what to show meanwhile. Pure.

A job is done when each of its places completed. It failed when all work is over and a place is left
whose attempts are used up, as far as can be told from here: attempts that a window limits are
waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import RestartCondition, TaskState
from shoal.model.modes import concurrency, is_global
from shoal.model.objects import Service, Task
from shoal.model.row import Row
from shoal.model.specs import ReplicatedJobMode
from shoal.model.types import RestartPolicy

_ENDED = (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)


class JobLook(Row, frozen=True):
    """Where a job stands. `shown`: one task for each place, the one that matters now.

    total: None while nobody knows how many nodes a global job has.
    """

    done: int
    active: int
    at_once: int
    total: int | None
    failed: tuple[Task, ...]
    shown: tuple[Task, ...]

    @property
    def over(self) -> bool:
        """Whether nothing is left to be done."""
        return self.total is not None and self.done + len(self.failed) >= self.total


def look_at_job(service: Service, tasks: Iterable[Task]) -> JobLook:
    """Count; `tasks`: those of the present iteration."""
    mode = service.spec.mode
    places: dict[object, list[Task]] = {}
    for task in sorted(tasks, key=lambda one: (one.meta.created_at_ns, one.id)):
        if task.desired_state < TaskState.REMOVE:
            place = task.node_id if is_global(mode) else task.slot
            places.setdefault(place, []).append(task)
    done = [place for place, members in places.items() if _is_complete(members)]
    failed = [
        members[-1] for place, members in places.items() if place not in done and _gave_up(members)
    ]
    active = sum(any(map(_is_under_way, members)) for members in places.values())
    if isinstance(mode, ReplicatedJobMode):
        total: int | None = mode.total_completions
        left = mode.total_completions - len(done) - len(failed)
        at_once = min(concurrency(mode), left)
    else:
        total, at_once = len(places) or None, len(places) - len(done) - len(failed)
    return JobLook(
        done=len(done),
        active=active,
        at_once=at_once,
        total=total,
        failed=tuple(failed),
        shown=tuple(_shown(members) for members in places.values()),
    )


def _is_complete(members: Sequence[Task]) -> bool:
    return any(task.status.state is TaskState.COMPLETE for task in members)


def _is_under_way(task: Task) -> bool:
    return is_wanted(task) and not is_terminal(task)


def _shown(members: Sequence[Task]) -> Task:
    complete = [task for task in members if task.status.state is TaskState.COMPLETE]
    return (complete or members)[-1]


def _gave_up(members: Sequence[Task]) -> bool:
    newest = members[-1]
    if _is_under_way(newest) or newest.status.state not in _ENDED:
        return False
    policy = newest.spec.restart or RestartPolicy()
    if policy.condition is RestartCondition.NONE:
        return True
    attempts = sum(task.status.state in _ENDED for task in members)
    return bool(policy.max_attempts) and not policy.window_ns and attempts > policy.max_attempts
