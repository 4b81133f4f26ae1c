"""`docker update`: what a container's limits are afterwards. Pure."""

from __future__ import annotations

from engine.containers import requests
from engine.containers.requests import HostConfig, UpdateRequest
from shoal.errors import InvalidArgument, Unimplemented
from worker.runtime.interactive import Resources

CHANGEABLE = {
    "cpu_shares": "cpu_shares", "nano_cpus": "nano_cpus", "cpu_period": "cpu_period_us",
    "cpu_quota": "cpu_quota_us", "cpu_realtime_period": "cpu_rt_period_us",
    "cpu_realtime_runtime": "cpu_rt_runtime_us", "cpuset_cpus": "cpuset_cpus",
    "cpuset_mems": "cpuset_mems", "memory": "memory_bytes",
    "memory_reservation": "memory_reservation_bytes", "memory_swap": "memory_swap_bytes",
    "blkio_weight": "blkio_weight",
}  # fmt: skip
_IGNORED_WHEN_EMPTY = frozenset(requests.Resources.__struct_fields__) - {*CHANGEABLE, "pids_limit"}


def merged(host: HostConfig, asked: UpdateRequest) -> HostConfig:
    """The limits with what was asked; zero leaves a limit as it is.

    Raises: InvalidArgument in Docker's words, Unimplemented for a field that cannot be changed.
    """
    for field in _IGNORED_WHEN_EMPTY:
        wish = getattr(asked, field)
        if wish and not (field == "memory_swappiness" and wish == -1):
            raise Unimplemented(f"{requests.spelling(field)}: cannot be changed by update")
    changes = {field: getattr(asked, field) for field in CHANGEABLE if getattr(asked, field)}
    if asked.pids_limit:
        changes["pids_limit"] = asked.pids_limit if asked.pids_limit > 0 else None
    if asked.restart_policy.name:
        changes["restart_policy"] = asked.restart_policy
    if asked.nano_cpus:
        _check_cpus(host)
    memory, swap = asked.memory, asked.memory_swap
    if memory and not swap and 0 < host.memory_swap < memory:
        raise InvalidArgument(
            "Memory limit should be smaller than already set memoryswap limit, update the"
            " memoryswap at the same time"
        )
    if memory and not swap and host.memory == 0:
        changes["memory_swap"] = 2 * memory
    result: HostConfig = host.replaced(**changes)
    return result


def runtime_resources(asked: UpdateRequest, host: HostConfig) -> Resources | None:
    """What the runtime is to change of a running container; None: nothing. host: afterwards."""
    changes = {
        name: getattr(asked, field) for field, name in CHANGEABLE.items() if getattr(asked, field)
    }
    if "memory_bytes" in changes:
        changes["memory_swap_bytes"] = host.memory_swap
    if asked.pids_limit:
        changes["pids_max"] = max(0, asked.pids_limit)
    return Resources(**changes) if changes else None


def _check_cpus(host: HostConfig) -> None:
    if host.cpu_period or host.cpu_quota:
        which = "Period" if host.cpu_period else "Quota"
        raise InvalidArgument(
            f"Conflicting options: Nano CPUs cannot be updated as CPU {which} has already been set"
        )
