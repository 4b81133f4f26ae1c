"""The health check of a service's tasks."""

from __future__ import annotations

from shoal.errors import InvalidArgument
from shoal.model.health import NONE, SHELL
from shoal.model.types import HealthCheck
from swarmctl.edit.lists import Flags

_FIELDS = {
    "health_interval": "interval_ns",
    "health_timeout": "timeout_ns",
    "health_retries": "retries",
    "health_start_period": "start_period_ns",
    "health_start_interval": "start_interval_ns",
}


def edit_health(check: HealthCheck | None, flags: Flags) -> HealthCheck | None:
    """The check with every given flag applied; a command of "" is the image's.

    Raises: InvalidArgument where it is to be switched off and described at once.
    """
    changes = {field: flags[flag] for flag, field in _FIELDS.items() if flag in flags}
    if "health_cmd" in flags:
        command = flags["health_cmd"]
        changes["test"] = (SHELL, command) if command else ()
    if flags.get("no_healthcheck"):
        if changes:
            raise InvalidArgument("--no-healthcheck conflicts with --health-* options")
        return HealthCheck(test=(NONE,))
    if not changes:
        return check
    check = check or HealthCheck()
    if check.test[:1] == (NONE,):
        check = check.replaced(test=())
    return check.replaced(**changes)
