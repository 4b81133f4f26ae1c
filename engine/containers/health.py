"""Health checks: what a container's check says, and what follows. The decisions are pure.

A container is `starting` until a check succeeds, or until `retries` have failed after the start
period; a success at any time makes it healthy.
"""

from __future__ import annotations

from shoal.model.row import Row

HEALTHY, UNHEALTHY, STARTING = "healthy", "unhealthy", "starting"
LOG_MAX = 5
OUTPUT_BYTES_MAX = 4096


class Probe(Row, frozen=True):
    """One run of a check."""

    started_at_ns: int
    ended_at_ns: int
    exit_code: int
    output: str


class Health(Row, frozen=True):
    """What the checks of this run have said."""

    status: str = STARTING
    failing_streak: int = 0
    log: tuple[Probe, ...] = ()


def judged(health: Health, probe: Probe, *, in_start_period: bool, retries: int) -> Health:
    """What a container's health is after one more check. Source: moby daemon/health.go."""
    log = (*health.log, probe)[-LOG_MAX:]
    if probe.exit_code == 0:
        return Health(HEALTHY, 0, log)
    if health.status == STARTING and in_start_period:
        return health.replaced(log=log)
    streak = health.failing_streak + 1
    return Health(UNHEALTHY if streak >= retries else health.status, streak, log)
