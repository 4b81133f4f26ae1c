"""Rules for health checks, the same for services and for containers. Pure.

A test is empty (the image's), `NONE`, `CMD` with a program and its arguments, or `CMD-SHELL` with a
line for the shell. A time of zero is the default's; others are a millisecond at least.
"""

from __future__ import annotations

from shoal.errors import InvalidArgument
from shoal.model.types import HealthCheck

NONE, PROGRAM, SHELL = "NONE", "CMD", "CMD-SHELL"
TIME_NS_MIN = 1_000_000


def check_settings(check: HealthCheck) -> None:
    """Refuse what could not be followed, in Docker's words. Raises: InvalidArgument."""
    kind = check.test[0] if check.test else NONE
    if kind not in {NONE, PROGRAM, SHELL}:
        raise InvalidArgument(f'Unknown healthcheck type "{kind}" in Test: use CMD or CMD-SHELL')
    for name, value_ns in (
        ("Interval", check.interval_ns), ("Timeout", check.timeout_ns),
        ("StartPeriod", check.start_period_ns), ("StartInterval", check.start_interval_ns),
    ):  # fmt: skip
        if 0 != value_ns < TIME_NS_MIN:
            raise InvalidArgument(f"{name} in Healthcheck cannot be less than 1ms")
    if check.retries < 0:
        raise InvalidArgument("Retries in Healthcheck cannot be negative")
