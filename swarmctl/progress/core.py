"""Whether a service has converged, and what to show meanwhile. Pure.

A service has converged when as many of its up-to-date tasks run as are wanted, and stayed so for
the monitor period of its update. A paused update or rollback, a rollback in place of an update,
and tasks that failed for good end the wait with a failure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum, auto

import msgspec

from shoal.clock import NS_PER_S
from shoal.docker.words import spell
from shoal.model.defaults import UPDATE_WAITS, is_wanted, update_config
from shoal.model.enums import RestartCondition, TaskState, UpdateState
from shoal.model.modes import is_global, is_job
from shoal.model.objects import Service, Task
from shoal.model.specs import ReplicatedMode
from swarmctl.progress.jobs import JobLook, look_at_job
from swarmctl.render.tables import ellipsis, one_line

BARS_MAX = 20
STEPS = 9
ERROR_WIDTH = 75
NO_NODE_WAIT_S = 5.0
"""So long a service on every node is given to have its first task: no node may fit."""

_STEP_BY_STATE = {
    TaskState.NEW: 1,
    TaskState.PENDING: 3,
    TaskState.ASSIGNED: 4,
    TaskState.ACCEPTED: 5,
    TaskState.PREPARING: 6,
    TaskState.READY: 7,
    TaskState.STARTING: 8,
    TaskState.RUNNING: 9,
    TaskState.COMPLETE: 9,
}

_UNDER_WAY = (UpdateState.UPDATING, UpdateState.ROLLBACK_STARTED)


class Look(msgspec.Struct, frozen=True):
    """One look at the cluster: up-to-date tasks only, and the ids of nodes that are not down."""

    service: Service
    tasks: tuple[Task, ...]
    live_nodes: frozenset[str]


class Line(msgspec.Struct, frozen=True):
    """A line of the display; `step` of STEPS draws a bar, None is text alone."""

    key: str
    text: str
    step: int | None = None


class Outcome(Enum):
    """How the wait ended."""

    CONVERGED = auto()
    FAILED = auto()


class Wait(msgspec.Struct, frozen=True):
    """The state of the wait between two looks."""

    converged_at_s: float | None = None
    rolling_back: bool = False
    rolled_back: bool = False
    outcome: Outcome | None = None
    message: str = ""
    lines: tuple[Line, ...] = ()


def step(wait: Wait, look: Look, now_s: float) -> Wait:
    """The wait after one more look. `now_s`: seconds on any clock that never jumps."""
    if is_job(look.service.spec.mode):
        return _job_step(wait, look, now_s)
    status = look.service.update_status
    state = status.state if status else UpdateState.UNKNOWN
    message = status.message.partition(UPDATE_WAITS)[0] if status else ""
    if state in (UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED):
        what = "update" if state is UpdateState.PAUSED else "rollback"
        return _failed(wait, f"service {what} paused: {message}")
    rolling_back = state is UpdateState.ROLLBACK_STARTED
    rolled_back = state is UpdateState.ROLLBACK_COMPLETED
    wait = Wait(
        converged_at_s=wait.converged_at_s,
        rolling_back=rolling_back or rolled_back,
        rolled_back=rolled_back,
        message=(wait.message or message) if rolling_back or rolled_back else "",
    )
    return _judge(wait, look, now_s)


def _job_step(wait: Wait, look: Look, now_s: float) -> Wait:
    """A job is done when all of it is complete; a global one without a node, when it stays so."""
    job = look_at_job(look.service, look.tasks)
    lines = list(_job_lines(job))
    if not job.over and job.total is not None:
        return _with(wait, converged_at_s=None, lines=lines)
    since_s = now_s if wait.converged_at_s is None else wait.converged_at_s
    if job.total is None and now_s - since_s < NO_NODE_WAIT_S:
        return _with(wait, converged_at_s=since_s, lines=lines)
    if job.failed:
        task = job.failed[0]
        reason = task.status.error or task.status.message
        left = f"{job.done} out of {job.total} complete"
        return _failed(wait, f"job failed ({left}): task {task.id}: {reason}", lines)
    lines.append(Line("job", "complete" if job.total is not None else "complete: no node fits"))
    result = _with(wait, converged_at_s=since_s, lines=lines)
    return msgspec.structs.replace(result, outcome=Outcome.CONVERGED)


def _job_lines(job: JobLook) -> Iterable[Line]:
    total = job.total or 0
    yield Line("job progress", f"{job.done} out of {total} complete")
    yield Line("active tasks", f"{job.active} out of {job.at_once} tasks")
    if total <= BARS_MAX:
        for number, task in enumerate(sorted(job.shown, key=_slot_order), start=1):
            yield _task_line(f"{task.slot + 1 if task.slot else number}/{total}", task)


def _judge(wait: Wait, look: Look, now_s: float) -> Wait:
    slots = tasks_by_slot(look.tasks, look.live_nodes)
    ended = [task for task in slots.values() if ended_for_good(task, look.service)]
    failed = [task for task in ended if task.status.state is not TaskState.COMPLETE]
    wanted = wanted_tasks(look.service, slots.values())
    running = sum(is_running(task) for task in slots.values()) + len(ended) - len(failed)
    lines = [*progress_lines(wait, slots.values(), running, wanted)]
    lines += hindrance_lines(look.service)
    if failed:
        task = failed[0]
        reason = task.status.error or task.status.message
        return _failed(wait, f"task {task.id} {spell(task.status.state)}: {reason}", lines)
    if running != wanted:
        if wait.converged_at_s is not None:
            lines.append(Line("verify", "Detected task failure"))
        return _with(wait, converged_at_s=None, lines=lines)
    converged_at_s = now_s if wait.converged_at_s is None else wait.converged_at_s
    status, spec = look.service.update_status, look.service.spec
    config = spec.rollback if wait.rolling_back else spec.update
    monitor_s = (update_config(config).monitor_ns or 0) / NS_PER_S
    if is_global(spec.mode) and not wanted:
        monitor_s = max(monitor_s, NO_NODE_WAIT_S)
    left_s = monitor_s - (now_s - converged_at_s)
    if left_s > 0:
        seconds = int(left_s) + 1
        text = f"Waiting {seconds} seconds to verify that tasks are stable..."
        lines.append(Line("verify", text))
        return _with(wait, converged_at_s=converged_at_s, lines=lines)
    if status is not None and status.state in _UNDER_WAY:
        lines.append(Line("verify", "Waiting for the cluster to end the update..."))
        return _with(wait, converged_at_s=converged_at_s, lines=lines)
    return _finished(wait, look.service, lines, converged_at_s)


def _finished(
    wait: Wait, service: Service, lines: list[Line], converged_at_s: float | None
) -> Wait:
    name = service.spec.annotations.name or service.id
    lines.append(Line("verify", f"Service {name} converged"))
    result = _with(wait, converged_at_s=converged_at_s, lines=lines)
    return msgspec.structs.replace(result, outcome=Outcome.CONVERGED)


def tasks_by_slot(tasks: Iterable[Task], live_nodes: Collection[str]) -> dict[int | str, Task]:
    """The task that stands for each slot: the least wanted-away, then the least advanced."""
    result: dict[int | str, Task] = {}
    for task in tasks:
        stopped = task.status.state in (TaskState.SHUTDOWN, TaskState.ORPHANED)
        lost = task.node_id and task.node_id not in live_nodes
        if stopped or lost or task.desired_state > TaskState.SHUTDOWN:
            continue
        key = task.slot or task.node_id
        if key not in result or _rank(task) < _rank(result[key]):
            result[key] = task
    return result


def _rank(task: Task) -> tuple[int, bool, int, int]:
    """Lower stands for the slot: wanted before unwanted, living before ended, then by state."""
    ended = task.status.state > TaskState.RUNNING
    age = -task.meta.created_at_ns if ended else 0
    return (task.desired_state > TaskState.RUNNING, ended, age, task.status.state)


def is_running(task: Task) -> bool:
    """Whether the task runs and is wanted."""
    wanted = task.desired_state <= TaskState.RUNNING
    return wanted and task.status.state is TaskState.RUNNING


def ended_for_good(task: Task, service: Service) -> bool:
    """Whether the task has ended and its restart policy will not replace it."""
    policy = service.spec.task.restart
    condition = RestartCondition.ANY if policy is None else policy.condition
    match condition:
        case RestartCondition.ANY:
            return False
        case RestartCondition.ON_FAILURE:
            return task.status.state is TaskState.COMPLETE
        case RestartCondition.NONE:
            return task.status.state in (
                TaskState.COMPLETE,
                TaskState.FAILED,
                TaskState.REJECTED,
            )


def wanted_tasks(service: Service, slots: Iterable[Task]) -> int:
    """How many tasks should run; of a global service as many as nodes were given one."""
    mode = service.spec.mode
    if isinstance(mode, ReplicatedMode):
        return mode.replicas
    return sum(is_wanted(task) or ended_for_good(task, service) for task in slots)


def progress_lines(
    wait: Wait, tasks: Collection[Task], running: int, wanted: int
) -> Iterable[Line]:
    """The overall count, and a line per task where there are few."""
    title = "rolling back update" if wait.rolling_back else "overall progress"
    if wait.rolling_back and wait.message:
        yield Line("rollback", one_line(wait.message))
    yield Line(title, f"{running} out of {wanted} tasks")
    if wanted > BARS_MAX or len(tasks) > BARS_MAX:
        return
    for number, task in enumerate(sorted(tasks, key=_slot_order), start=1):
        yield _task_line(f"{task.slot or number}/{wanted}", task)


def _task_line(key: str, task: Task) -> Line:
    state = task.status.state
    if task.status.error and state is not TaskState.RUNNING:
        return Line(key, ellipsis(one_line(task.status.error), ERROR_WIDTH))
    return Line(key, spell(state), _STEP_BY_STATE.get(state))


def hindrance_lines(service: Service) -> Iterable[Line]:
    """What the cluster says that the update waits for."""
    status = service.update_status
    hindrance = status.message.partition(UPDATE_WAITS)[2] if status is not None else ""
    if hindrance:
        yield Line("waiting", one_line(hindrance))


def _slot_order(task: Task) -> tuple[int, str]:
    return task.slot, task.node_id


def _failed(wait: Wait, message: str, lines: Iterable[Line] | None = None) -> Wait:
    shown = wait.lines if lines is None else tuple(lines)
    return Wait(outcome=Outcome.FAILED, message=message, lines=shown)


def _with(wait: Wait, *, converged_at_s: float | None, lines: list[Line]) -> Wait:
    return Wait(
        converged_at_s=converged_at_s,
        rolling_back=wait.rolling_back,
        rolled_back=wait.rolled_back,
        message=wait.message,
        lines=tuple(lines),
    )
