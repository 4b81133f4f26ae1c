"""Limits, as asked for, as OCI `linux.resources`; and changes of them. Pure.

In a configuration 0 is "no limit" and leaves no trace; in a change it takes the limit away, which
OCI says with -1.
"""

from __future__ import annotations

from typing import Any

from shoal.errors import InvalidArgument
from worker.runtime.interactive import Resources

CPU_PERIOD_US = 100_000
CPU_SHARES_DEFAULT = 1024
BLKIO_WEIGHT_DEFAULT = 500
MEMORY_BYTES_MIN = 6 << 20  # Docker's floor: below it nothing starts


def changes_of(asked: Resources) -> dict[str, Any]:
    """What `update` writes. Raises: InvalidArgument."""
    if asked.memory_bytes is not None and 0 < asked.memory_bytes < MEMORY_BYTES_MIN:
        raise InvalidArgument("memory_bytes: the minimum is 6 MiB")
    changes: dict[str, Any] = {
        "cpu": _cpu(asked), "memory": _memory(asked), "pids": _pids(asked), "blockIO": {},
    }  # fmt: skip
    if asked.blkio_weight is not None:
        changes["blockIO"]["weight"] = asked.blkio_weight or BLKIO_WEIGHT_DEFAULT
    return {name: values for name, values in changes.items() if values}


def quota_of(nano_cpus: int, period_us: int) -> int:
    """Microseconds of each period that so many processors are; -1 is no limit."""
    return max(1000, nano_cpus * period_us // 1_000_000_000) if nano_cpus else -1


def _cpu(asked: Resources) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if asked.nano_cpus is not None:
        cpu = {"period": CPU_PERIOD_US, "quota": quota_of(asked.nano_cpus, CPU_PERIOD_US)}
    if asked.cpu_period_us is not None:
        cpu["period"] = asked.cpu_period_us or CPU_PERIOD_US
    if asked.cpu_quota_us is not None:
        cpu["quota"] = asked.cpu_quota_us or -1
    if asked.cpu_shares is not None:
        cpu["shares"] = asked.cpu_shares or CPU_SHARES_DEFAULT
    for name, value in (
        ("realtimePeriod", asked.cpu_rt_period_us), ("realtimeRuntime", asked.cpu_rt_runtime_us),
        ("cpus", asked.cpuset_cpus), ("mems", asked.cpuset_mems),
    ):  # fmt: skip
        if value is not None:
            cpu[name] = value
    return cpu


def _memory(asked: Resources) -> dict[str, int]:
    memory: dict[str, int] = {}
    if asked.memory_bytes is not None:
        memory["limit"] = asked.memory_bytes or -1
    if asked.memory_swap_bytes is not None:
        memory["swap"] = swap_of(asked.memory_bytes or 0, asked.memory_swap_bytes)
    if asked.memory_reservation_bytes is not None:
        memory["reservation"] = asked.memory_reservation_bytes or -1
    return memory


def swap_of(memory_bytes: int, swap_bytes: int) -> int:
    """Memory and swap together: 0 is twice the memory, -1 no limit."""
    return swap_bytes or (2 * memory_bytes if memory_bytes > 0 else -1)


def _pids(asked: Resources) -> dict[str, int]:
    return {} if asked.pids_max is None else {"limit": asked.pids_max or -1}
