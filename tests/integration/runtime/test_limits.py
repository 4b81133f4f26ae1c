"""Every limit reaches the kernel, or is refused by the name of what the kernel lacks."""

from __future__ import annotations

import contextlib
import os
import stat

import pytest

from shoal.errors import FailedPrecondition, InvalidArgument
from tests.integration.runtime.site import Site, until
from tests.support.groups import V1, V2
from worker.runtime.interactive import ThrottledDevice
from worker.runtime.lean.cgroups import read

pytestmark = pytest.mark.root


def _block_device() -> str:
    for name in sorted(os.listdir("/sys/block")):
        path = f"/dev/{name}"
        if os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode):
            return path
    pytest.skip("no block device")


@pytest.mark.skipif(not V1, reason="file names of cgroup v1")
async def test_processors_memory_and_swap(site: Site):
    _, output = await site.run(
        "cd /sys/fs/cgroup; cat cpu/cpu.cfs_period_us cpu/cpu.cfs_quota_us cpu/cpu.shares "
        "cpuset/cpuset.cpus cpuset/cpuset.mems memory/memory.limit_in_bytes "
        "memory/memory.memsw.limit_in_bytes memory/memory.soft_limit_in_bytes "
        "memory/memory.swappiness; grep ^oom_kill_disable memory/memory.oom_control; "
        "grep Cpus_allowed_list /proc/self/status",
        cpu_period_us=50_000, cpu_quota_us=25_000, cpu_shares=512, cpuset_cpus="1",
        cpuset_mems="0", memory_bytes=64 << 20, memory_swap_bytes=96 << 20,
        memory_reservation_bytes=32 << 20, memory_swappiness=7, oom_kill_disable=True,
    )  # fmt: skip
    assert output.split() == [
        "50000", "25000", "512", "1", "0", str(64 << 20), str(96 << 20), str(32 << 20), "7",
        "oom_kill_disable", "1", "Cpus_allowed_list:", "1",
    ]  # fmt: skip


@pytest.mark.skipif(not V1, reason="file names of cgroup v1")
async def test_unlimited_swap(site: Site):
    _, output = await site.run(
        "cat /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes",
        memory_bytes=64 << 20, memory_swap_bytes=-1,
    )  # fmt: skip
    assert int(output) > 1 << 60


@pytest.mark.skipif(not V1, reason="file names of cgroup v1")
async def test_block_devices_are_throttled(site: Site):
    path = _block_device()
    number = os.stat(path).st_rdev
    _, output = await site.run(
        "cd /sys/fs/cgroup/blkio; for f in read_bps write_bps read_iops write_iops; do "
        "cat blkio.throttle.${f}_device; done",
        throttled_devices=(
            ThrottledDevice(path, "read_bps", 1000), ThrottledDevice(path, "write_bps", 2000),
            ThrottledDevice(path, "read_iops", 3), ThrottledDevice(path, "write_iops", 4),
        ),
    )  # fmt: skip
    place = f"{os.major(number)}:{os.minor(number)}"
    assert output.splitlines() == [f"{place} {value}" for value in (1000, 2000, 3, 4)]
    for bad, reason in (("/dev/null", "is not a block device"), ("/dev/nosuch", "No such file")):
        wish = ThrottledDevice(bad, "read_bps", 1)
        with pytest.raises(InvalidArgument, match=reason):
            await site.runtime.create(site.config("true", throttled_devices=(wish,)))


V2_CASES = (
    (
        {"cpu_period_us": 50_000, "cpu_quota_us": 25_000, "cpu_shares": 512, "cpuset_cpus": "1",
         "cpuset_mems": "0"},
        {"cpu.max": "25000 50000", "cpu.weight": "20", "cpuset.cpus": "1", "cpuset.mems": "0"},
    ),
    (
        {"memory_bytes": 64 << 20, "memory_swap_bytes": 96 << 20,
         "memory_reservation_bytes": 32 << 20, "pids_max": 33},
        {"memory.max": str(64 << 20), "memory.swap.max": str(32 << 20),
         "memory.low": str(32 << 20), "pids.max": "33"},
    ),
    ({"memory_bytes": 64 << 20}, {"memory.swap.max": str(64 << 20)}),
    ({"memory_bytes": 64 << 20, "memory_swap_bytes": -1}, {"memory.swap.max": "max"}),
    ({"nano_cpus": 500_000_000}, {"cpu.max": "50000 100000"}),
    ({"blkio_weight": 500}, {"io.weight": "default 4950"}),
)  # fmt: skip


@pytest.mark.skipif(not V2, reason="file names of cgroup v2")
@pytest.mark.parametrize(("wishes", "files"), V2_CASES)
async def test_each_file_of_version_2(site: Site, wishes, files):
    for name, value in files.items():
        _, output = await site.run(f"cat /sys/fs/cgroup/{name}", **wishes)
        assert output.strip() == value, name


@pytest.mark.skipif(not V2, reason="file names of cgroup v2")
async def test_block_devices_are_throttled_on_version_2(site: Site):
    path = _block_device()
    number = os.stat(path).st_rdev
    _, output = await site.run(
        "cat /sys/fs/cgroup/io.max",
        throttled_devices=(
            ThrottledDevice(path, "read_bps", 1000), ThrottledDevice(path, "write_bps", 2000),
            ThrottledDevice(path, "read_iops", 3), ThrottledDevice(path, "write_iops", 4),
        ),
    )  # fmt: skip
    place = f"{os.major(number)}:{os.minor(number)}"
    assert output.split() == [place, "rbps=1000", "wbps=2000", "riops=3", "wiops=4"]


@pytest.mark.skipif(not V2, reason="what cgroup v2 has no files for")
@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"memory_swappiness": 7, "memory_bytes": 64 << 20}, "swappiness"),
        ({"oom_kill_disable": True, "memory_bytes": 64 << 20}, "disableOOMKiller"),
        ({"cpu_rt_runtime_us": 1000}, "realtimeRuntime"),
    ],
)
async def test_what_version_2_has_not_is_refused_by_name(site: Site, wish, reason):
    config = site.config("true", **wish)
    await site.runtime.create(config)
    with pytest.raises(FailedPrecondition, match=reason):
        await site.runtime.start(config.id)
    await until(lambda: not site.cgroups_left())


@pytest.mark.skipif(not V1, reason="file names of cgroup v1")
async def test_what_a_kernel_may_lack_is_honoured_or_refused(site: Site):
    for fields, file, value in (
        ({"blkio_weight": 300}, "blkio/blkio.weight", "300"),
        ({"cpu_rt_runtime_us": 1000}, "cpu/cpu.rt_runtime_us", "1000"),
        ({"cpu_rt_period_us": 500_000}, "cpu/cpu.rt_period_us", "500000"),
    ):
        config = site.config("cat", f"/sys/fs/cgroup/{file}", **fields)
        await site.runtime.create(config)
        reason = ""
        try:
            await site.runtime.start(config.id)
        except FailedPrecondition as error:
            reason = str(error)
        if not reason:
            await site.runtime.wait(config.id)
        assert file.split("/")[1] in reason or await site.output(config.id) == f"{value}\n"
    await until(lambda: not site.cgroups_left())


async def test_a_group_elsewhere(site: Site):
    parent = f"{site.cgroup_parent}-elsewhere/below"
    try:
        container = await site.start("sleep 1000", cgroup_parent=parent, memory_bytes=64 << 20)
        pid = (await site.runtime.status(container)).pid
        groups = read(f"/proc/{pid}/cgroup").splitlines()
        tree = "memory:" if V1 else "0::"
        assert any(line.endswith(f"{tree}{parent}/{container}") for line in groups)
        assert (await site.runtime.stats(container)).memory_limit_bytes == 64 << 20
        site.kill_hard("supervisor")  # the next one finds it there
        assert (await site.runtime.stats(container)).pids == 1
        await site.runtime.pause(container)
        await site.runtime.stop(container, 0)
        await until(lambda: not _groups(f"{parent}/{container}"))
    finally:
        for status in await site.runtime.list():
            await site.runtime.remove(status.id, force=True)
        await until(lambda: not _groups(f"{parent}/c1"))
        for path in (parent, os.path.dirname(parent)):
            for group in _groups(path):
                with contextlib.suppress(OSError):
                    os.rmdir(group)
    assert not _groups(os.path.dirname(parent))


def _groups(path: str) -> list[str]:
    tops = ["/sys/fs/cgroup", *(entry.path for entry in os.scandir("/sys/fs/cgroup"))]
    return [top + path for top in tops if os.path.isdir(top + path)]
