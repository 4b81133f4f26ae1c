"""Health checks: what a container's check says, and what follows. The decisions are pure.

A container is `starting` until a check succeeds, or until `retries` have failed after the start
period; a success at any time makes it healthy.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal.model.health import NONE, PROGRAM
from shoal.model.row import Row
from shoal.model.types import HealthCheck

HEALTHY, UNHEALTHY, STARTING = "healthy", "unhealthy", "starting"
LOG_MAX = 5
OUTPUT_BYTES_MAX = 4096
INTERVAL_NS = TIMEOUT_NS = 30_000_000_000
START_INTERVAL_NS = 5_000_000_000
RETRIES = 3
_SHELL = ("/bin/sh", "-c")


class Check(Row, frozen=True):
    """How a container is checked, with nothing left to a default."""

    args: tuple[str, ...]
    interval_ns: int = INTERVAL_NS
    timeout_ns: int = TIMEOUT_NS
    start_period_ns: int = 0
    start_interval_ns: int = START_INTERVAL_NS
    retries: int = RETRIES

    def in_start_period(self, age_ns: int) -> bool:
        """Whether a container that has run for so long is still given time."""
        return age_ns < self.start_period_ns


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


def over_image(own: HealthCheck | None, image: HealthCheck | None) -> HealthCheck | None:
    """What was asked over what the image says. Source: moby daemon/commit.go, merge."""
    if image is None or (own is not None and own.test and own.test[0] == NONE):
        return own
    own = own or HealthCheck()
    return HealthCheck(
        test=own.test or image.test,
        interval_ns=own.interval_ns or image.interval_ns,
        timeout_ns=own.timeout_ns or image.timeout_ns,
        start_period_ns=own.start_period_ns or image.start_period_ns,
        start_interval_ns=own.start_interval_ns or image.start_interval_ns,
        retries=own.retries or image.retries,
    )


def check_of(wanted: HealthCheck | None, shell: Sequence[str] | None) -> Check | None:
    """The check that is run; None: there is none. shell: the image's, for CMD-SHELL."""
    if wanted is None or not wanted.test or wanted.test[0] == NONE:
        return None
    kind, *words = wanted.test
    return Check(
        args=tuple(words) if kind == PROGRAM else (*(shell or _SHELL), *words),
        interval_ns=wanted.interval_ns or INTERVAL_NS,
        timeout_ns=wanted.timeout_ns or TIMEOUT_NS,
        start_period_ns=wanted.start_period_ns,
        start_interval_ns=wanted.start_interval_ns or START_INTERVAL_NS,
        retries=wanted.retries or RETRIES,
    )


def pause_ns(check: Check, health: Health, age_ns: int) -> int:
    """How long to wait before the next check of a container that has run for `age_ns`."""
    if health.status == STARTING and check.in_start_period(age_ns):
        return min(check.interval_ns, check.start_interval_ns)
    return check.interval_ns


def judged(health: Health, probe: Probe, *, in_start_period: bool, retries: int) -> Health:
    """What a container's health is after one more check. Source: moby daemon/health.go."""
    log = (*health.log, probe)[-LOG_MAX:]
    if probe.exit_code == 0:
        return Health(HEALTHY, 0, log)
    if health.status == STARTING and in_start_period:
        return health.replaced(log=log)
    streak = health.failing_streak + 1
    return Health(UNHEALTHY if streak >= retries else health.status, streak, log)
