"""Limits changed and counters read while a container runs."""

from __future__ import annotations

import pytest

from shoal.errors import FailedPrecondition, InvalidArgument
from tests.integration.runtime.site import Site, until
from tests.support.groups import V1
from worker.runtime.interactive import Resources
from worker.runtime.lean.cgroups import read

pytestmark = pytest.mark.root


def _value(site: Site, controller: str, container: str, name: str) -> str:
    top = f"/sys/fs/cgroup/{controller}" if V1 else "/sys/fs/cgroup"
    return read(f"{top}{site.cgroup_parent}/{container}/{name}").strip()


def _memory(site: Site, container: str) -> tuple[int, int]:
    """Limits of memory, and of memory and swap together."""
    names = ("limit_in_bytes", "memsw.limit_in_bytes") if V1 else ("max", "swap.max")
    first, second = (int(_value(site, "memory", container, f"memory.{name}")) for name in names)
    return first, second if V1 else first + second


def _quota(site: Site, container: str) -> str:
    if V1:
        return _value(site, "cpu", container, "cpu.cfs_quota_us")
    return _value(site, "cpu", container, "cpu.max").split()[0]


async def test_update_of_a_running_container(site: Site):
    container = await site.start("sleep 1000", memory_bytes=64 << 20)
    await site.runtime.update(
        container,
        Resources(
            memory_bytes=256 << 20, memory_swap_bytes=512 << 20, nano_cpus=500_000_000,
            pids_max=40, cpuset_cpus="0",
        ),
    )  # fmt: skip
    assert _memory(site, container) == (256 << 20, 512 << 20)
    assert _quota(site, container) == "50000"
    assert _value(site, "pids", container, "pids.max") == "40"
    assert _value(site, "cpuset", container, "cpuset.cpus") == "0"
    pids = _value(site, "cpuset", container, "cgroup.procs").split()
    assert [int(pid) for pid in pids] == list(await site.runtime.processes(container))
    await site.runtime.update(container, Resources(memory_bytes=32 << 20, memory_swap_bytes=0))
    assert _memory(site, container) == (32 << 20, 64 << 20)
    await site.runtime.update(container, Resources(memory_bytes=48 << 20))
    assert _memory(site, container) == (48 << 20, 64 << 20)
    await site.runtime.stop(container, 0)
    await site.runtime.start(container)  # as it was changed
    assert _memory(site, container) == (48 << 20, 64 << 20)
    assert _value(site, "pids", container, "pids.max") == "40"


async def test_update_is_all_or_nothing(site: Site):
    container = await site.start("sleep 1000", memory_bytes=64 << 20, pids_max=30)
    with pytest.raises(InvalidArgument, match=r"cpuset\.cpus"):
        await site.runtime.update(container, Resources(pids_max=50, cpuset_cpus="4000"))
    with pytest.raises(InvalidArgument, match=r"memory"):  # above memory and swap
        await site.runtime.update(container, Resources(nano_cpus=10**8, memory_bytes=512 << 20))
    assert _value(site, "pids", container, "pids.max") == "30"
    assert _quota(site, container) == ("-1" if V1 else "max")
    assert _memory(site, container) == (64 << 20, 128 << 20)


async def test_detailed_stats(site: Site):
    script = "dd if=/dev/zero of=/file bs=64k count=16 conv=fsync 2>/dev/null; while :; do :; done"
    container = await site.start(script, memory_bytes=64 << 20, pids_max=30, nano_cpus=300_000_000)

    async def throttled() -> bool:
        return (await site.runtime.detailed_stats(container)).throttled_ns > 0

    await until(throttled)
    stats = await site.runtime.detailed_stats(container)
    assert stats.cpu_usage_ns > 0
    assert stats.cpu_usage_ns < stats.system_cpu_ns
    assert stats.periods >= stats.throttled_periods
    assert stats.throttled_periods > 0
    assert 0 < stats.memory_usage_bytes <= stats.memory_limit_bytes == 64 << 20
    assert stats.memory_stat["total_rss" if V1 else "anon"] > 0
    assert (stats.pids, stats.pids_limit) == (1, 30)
    assert stats.online_cpus >= 1
    assert all(operation in ("read", "write") for _, _, operation, _ in stats.block_io)
    await site.runtime.stop(container, 0)
    with pytest.raises(FailedPrecondition, match="not running"):
        await site.runtime.detailed_stats(container)
    with pytest.raises(FailedPrecondition, match="not running"):
        await site.runtime.processes(container)


async def test_processes_are_all_of_them(site: Site):
    container = await site.start("sleep 1000 & sleep 1000 & wait")

    async def three() -> bool:
        return len(await site.runtime.processes(container)) == 3

    await until(three)
    pids = await site.runtime.processes(container)
    assert list(pids) == sorted(pids)
    assert (await site.runtime.status(container)).pid in pids
