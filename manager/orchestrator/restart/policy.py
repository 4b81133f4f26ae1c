"""Whether an ended task may be replaced, judged by the stored tasks of its slot alone.

Attempts are tasks of one spec version that ended by themselves; being moved off a node is none.
The window counts time in service, not time on the clock: the delay between two attempts is not
part of it, so a window shorter than the delay works. Ends are measured by the manager's clock
(`applied_at_ns`), never by an agent's.
"""

from __future__ import annotations

from collections.abc import Sequence

from manager.orchestrator.slots import Slot, ended_at_ns, ended_by_itself, run_time_ns
from shoal.model.defaults import restart_backoff_max_ns, restart_delay_ns
from shoal.model.enums import RestartCondition, TaskState
from shoal.model.objects import Service, Task
from shoal.model.types import RestartPolicy

START_WAIT_NS = 60_000_000_000
"""Longest wait of a replacement for the end of its predecessor, after its own delay."""


def may_replace(slot: Slot, lost: Task) -> bool:
    """Whether another task may follow `lost`, a task of the slot.

    A task that did not end by itself was displaced: it is always followed, unless it has started
    and its policy says that it must run once at most.
    """
    policy = lost.spec.restart or RestartPolicy()
    if not ended_by_itself(lost):
        started = lost.status.state >= TaskState.STARTING
        return policy.condition is not RestartCondition.NONE or not started
    if policy.condition is RestartCondition.NONE:
        return False
    if policy.condition is RestartCondition.ON_FAILURE and lost.status.state is TaskState.COMPLETE:
        return False
    return policy.max_attempts == 0 or restarts_of(slot, lost, policy) < policy.max_attempts


def turn_after_ns(ended: Task, *, now_ns: int) -> int:
    """When what follows a task that ended by itself may start: its policy's delay after its end."""
    base_ns = min(now_ns, ended_at_ns(ended) or now_ns)
    return max(now_ns, max(base_ns, ended.start_after_ns) + delay_after_ns(ended))


def delay_after_ns(ended: Task) -> int:
    """The delay between the end of a task and the start of what follows it, nanoseconds.

    In a back-off it grows with each task, from the delay that the last one had to wait for, which
    is kept with it: nothing has to be counted, and a new leader goes on from there.
    """
    policy = ended.spec.restart or RestartPolicy()
    delay_ns = restart_delay_ns(policy)
    if not policy.backoff_factor:
        return delay_ns
    longest_ns = restart_backoff_max_ns(policy)
    if not ended.restart_delay_ns or run_time_ns(ended) > longest_ns:
        return delay_ns
    return min(longest_ns, int(ended.restart_delay_ns * policy.backoff_factor))


def backoff_of(service: Service, before: Task | None) -> int:
    """The delay of a back-off that a new task is to remember; 0: none.

    Another spec begins anew. A task that is moved takes it along.
    """
    if before is None or before.spec_version != service.spec_version:
        return 0
    if not (before.spec.restart or RestartPolicy()).backoff_factor:
        return 0
    return delay_after_ns(before) if ended_by_itself(before) else before.restart_delay_ns


def attempts_of(slot: Slot, lost: Task) -> list[Task]:
    """Tasks of the slot, up to `lost`, that tried the same spec version and ended; oldest first."""
    return [task for task in slot.streak(lost) if ended_by_itself(task)]


def restarts_of(slot: Slot, lost: Task, policy: RestartPolicy) -> int:
    """Restarts so far that count against max_attempts."""
    attempts = attempts_of(slot, lost)
    return _within(attempts, policy.window_ns) if policy.window_ns else len(attempts) - 1


def _within(attempts: Sequence[Task], window_ns: int) -> int:
    """Restarts (every attempt but the first) begun less than `window_ns` of service time ago."""
    served_ns = restarts = 0
    for attempt in reversed(attempts[1:]):
        served_ns += service_time_ns(attempt)
        if served_ns > window_ns:
            break
        restarts += 1
    return restarts


def service_time_ns(task: Task) -> int:
    """Time from the moment a task was allowed to start until its end, nanoseconds."""
    return max(0, ended_at_ns(task) - max(task.start_after_ns, task.meta.created_at_ns))
