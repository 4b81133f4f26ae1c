"""Whether a container that has ended is started again, and after which pause. Pure.

Pauses double from 100 ms to a minute; a run of ten seconds makes the next one short again. What
was stopped or killed by somebody stays down until it is started, or until the node starts anew.
Source: moby restartmanager.
"""

from __future__ import annotations

from engine.containers.requests import RestartPolicy

PAUSE_MIN_S = 0.1
PAUSE_MAX_S = 60.0
LONG_RUN_S = 10.0


def wanted(policy: RestartPolicy, *, exit_code: int, restarts: int, manually_stopped: bool) -> bool:
    """Whether an end is followed by a start. restarts: in a row, since somebody started it."""
    if manually_stopped:
        return False
    if policy.name == "on-failure":
        allowed = policy.maximum_retry_count
        return exit_code != 0 and (allowed == 0 or restarts < allowed)
    return policy.name in {"always", "unless-stopped"}


def wanted_at_node_start(policy: RestartPolicy, *, exit_code: int, manually_stopped: bool) -> bool:
    """Whether the node's start is followed by this container's."""
    stopped = manually_stopped and policy.name != "always"
    return wanted(policy, exit_code=exit_code, restarts=0, manually_stopped=stopped)


def next_pause_s(last_s: float, ran_s: float) -> float:
    """The pause before the next start. last_s: the one before the run; 0 for the first."""
    if last_s == 0 or ran_s >= LONG_RUN_S:
        return PAUSE_MIN_S
    return min(last_s * 2, PAUSE_MAX_S)
