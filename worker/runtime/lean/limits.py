"""Which control files get which values: OCI `linux.resources` for cgroup v1 and v2. Pure.

One list of writes per version, in the order the kernel needs. -1 is "no limit" everywhere, as in
OCI. What version 2 has no file for is refused by name before anything is written.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Resources = dict[str, Any]

CPU_PERIOD_US = 100_000
BFQ_WEIGHT = "io.bfq.weight"
"""There only where the scheduler of that name is built in or loaded; 1 to 1000."""
_THROTTLES = (
    ("throttleReadBpsDevice", "read_bps", "rbps"), ("throttleWriteBpsDevice", "write_bps", "wbps"),
    ("throttleReadIOPSDevice", "read_iops", "riops"),
    ("throttleWriteIOPSDevice", "write_iops", "wiops"),
)  # fmt: skip


class Write:
    """One value for one file; controller: the version 1 hierarchy, "" on version 2."""

    __slots__ = ("controller", "file", "value")

    def __init__(self, controller: str, file: str, value: object) -> None:
        self.controller = controller
        self.file = file
        self.value = str(value)


def v1_writes(resources: Resources) -> list[Write]:
    """For version 1. Memory stands before memory and swap: see `widening`."""
    return [
        *_v1_cpu(resources.get("cpu", {})),
        *_v1_memory(resources.get("memory", {})),
        *_pids(resources.get("pids", {}), "pids"),
        *_v1_block(resources.get("blockIO", {})),
    ]


def v2_writes(resources: Resources) -> list[Write]:
    """For version 2. Raises: ValueError for what it cannot do."""
    return [
        *_v2_cpu(resources.get("cpu", {})),
        *_v2_memory(resources.get("memory", {})),
        *_pids(resources.get("pids", {}), ""),
        *_v2_block(resources.get("blockIO", {})),
    ]


def _v1_cpu(cpu: Resources) -> list[Write]:
    files = (
        ("cpu", "cpu.rt_period_us", "realtimePeriod"),
        ("cpu", "cpu.rt_runtime_us", "realtimeRuntime"),
        ("cpu", "cpu.cfs_period_us", "period"), ("cpu", "cpu.cfs_quota_us", "quota"),
        ("cpu", "cpu.shares", "shares"), ("cpuset", "cpuset.cpus", "cpus"),
        ("cpuset", "cpuset.mems", "mems"),
    )  # fmt: skip
    return [Write(group, file, cpu[key]) for group, file, key in files if key in cpu]


def _v1_memory(memory: Resources) -> list[Write]:
    files = (
        ("memory.limit_in_bytes", "limit"), ("memory.memsw.limit_in_bytes", "swap"),
        ("memory.soft_limit_in_bytes", "reservation"), ("memory.swappiness", "swappiness"),
    )  # fmt: skip
    writes = [Write("memory", file, memory[key]) for file, key in files if key in memory]
    if "disableOOMKiller" in memory:
        writes.append(Write("memory", "memory.oom_control", int(memory["disableOOMKiller"])))
    return writes


def _pids(pids: Resources, controller: str) -> list[Write]:
    if "limit" not in pids:
        return []
    return [Write(controller, "pids.max", pids["limit"] if pids["limit"] > 0 else "max")]


def _v1_block(block: Resources) -> list[Write]:
    files = [("blkio.weight", block["weight"])] if "weight" in block else []
    files += [
        ("blkio.weight_device", f"{_number(device)} {device['weight']}")
        for device in block.get("weightDevice", ())
    ]
    files += [
        (f"blkio.throttle.{name}_device", f"{_number(device)} {device['rate']}")
        for key, name, _ in _THROTTLES
        for device in block.get(key, ())
    ]
    return [Write("blkio", file, value) for file, value in files]


def _v2_cpu(cpu: Resources) -> list[Write]:
    for key in ("realtimePeriod", "realtimeRuntime"):
        if key in cpu:
            raise ValueError(f"cpu {key}: cgroup v2 has no real-time limits")
    writes = []
    if "quota" in cpu or "period" in cpu:
        quota = cpu.get("quota", -1)
        value = "max" if quota <= 0 else quota
        writes.append(Write("", "cpu.max", f"{value} {cpu.get('period', CPU_PERIOD_US)}"))
    if "shares" in cpu:
        shares = min(max(cpu["shares"], 2), 262_144)  # version 1 takes any number, within these
        writes.append(Write("", "cpu.weight", 1 + (shares - 2) * 9999 // 262_142))
    for file, key in (("cpuset.cpus", "cpus"), ("cpuset.mems", "mems")):
        if key in cpu:
            writes.append(Write("", file, cpu[key]))
    return writes


def _v2_memory(memory: Resources) -> list[Write]:
    for key in ("swappiness", "disableOOMKiller"):
        if key in memory:
            raise ValueError(f"memory {key}: cgroup v2 has no such control")
    writes = []
    if "limit" in memory:
        writes.append(Write("", "memory.max", _or_max(memory["limit"])))
    if "swap" in memory:
        swap, limit = memory["swap"], max(0, memory.get("limit", 0))
        if 0 <= swap < limit:
            raise ValueError(
                f"memory limit {limit}: above memory and swap together ({swap}); change both"
            )
        writes.append(Write("", "memory.swap.max", "max" if swap < 0 else max(0, swap - limit)))
    if "reservation" in memory:
        writes.append(Write("", "memory.low", max(0, memory["reservation"])))
    return writes


def _v2_block(block: Resources) -> list[Write]:
    files = [(BFQ_WEIGHT, block["weight"])] if "weight" in block else []
    files += [
        (BFQ_WEIGHT, f"{_number(device)} {device['weight']}")
        for device in block.get("weightDevice", ())
    ]
    files += [
        ("io.max", f"{_number(device)} {name}={device['rate']}")
        for key, _, name in _THROTTLES
        for device in block.get(key, ())
    ]
    return [Write("", file, value) for file, value in files]


def without_bfq(write: Write) -> Write:
    """The same weight for `io.weight`, whose range is 1 to 10000, as runc and crun convert it."""
    if write.file != BFQ_WEIGHT:
        return write
    device, _, weight = write.value.rpartition(" ")
    return Write("", "io.weight", f"{device or 'default'} {1 + (int(weight) - 10) * 9999 // 990}")


def _number(device: Resources) -> str:
    return f"{device['major']}:{device['minor']}"


def _or_max(value: int) -> object:
    return "max" if value < 0 else value


def in_order(writes: list[Write], memory_and_swap: int) -> list[Write]:
    """Version 1 keeps memory below memory and swap at every moment: widen the outer one first.

    memory_and_swap: what is in force now.
    """
    order = {"memory.limit_in_bytes": 0, "memory.memsw.limit_in_bytes": 1}
    pair = sorted((w for w in writes if w.file in order), key=lambda w: order[w.file])
    if len(pair) == 2 and (int(pair[1].value) < 0 or int(pair[1].value) > memory_and_swap):
        pair.reverse()
    rest = [write for write in writes if write.file not in order]
    return [*rest, *pair]
