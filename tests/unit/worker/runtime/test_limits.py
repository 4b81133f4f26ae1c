"""Which control files get which values, and in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.runtime.interactive import Resources
from worker.runtime.lean.limits import Write, in_order, v1_writes, v2_writes, without_bfq
from worker.runtime.resources import changes_of

EVERYTHING = {
    "cpu": {
        "shares": 512, "quota": 50_000, "period": 100_000, "realtimePeriod": 1_000_000,
        "realtimeRuntime": 1000, "cpus": "0-1", "mems": "0",
    },
    "memory": {
        "limit": 1 << 26, "swap": 1 << 27, "reservation": 1 << 25, "swappiness": 10,
        "disableOOMKiller": True,
    },
    "pids": {"limit": 50},
    "blockIO": {
        "weight": 300, "weightDevice": [{"major": 8, "minor": 0, "weight": 200}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 10}],
    },
}  # fmt: skip


def _files(writes: list[Write]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for write in writes:
        found.setdefault(write.file, []).append(write.value)
    return found


def test_every_limit_of_version_1():
    assert _files(v1_writes(EVERYTHING)) == {
        "cpu.rt_period_us": ["1000000"], "cpu.rt_runtime_us": ["1000"],
        "cpu.cfs_period_us": ["100000"], "cpu.cfs_quota_us": ["50000"], "cpu.shares": ["512"],
        "cpuset.cpus": ["0-1"], "cpuset.mems": ["0"],
        "memory.limit_in_bytes": ["67108864"], "memory.memsw.limit_in_bytes": ["134217728"],
        "memory.soft_limit_in_bytes": ["33554432"], "memory.swappiness": ["10"],
        "memory.oom_control": ["1"], "pids.max": ["50"], "blkio.weight": ["300"],
        "blkio.weight_device": ["8:0 200"], "blkio.throttle.read_bps_device": ["8:0 1000"],
        "blkio.throttle.write_iops_device": ["8:16 10"],
    }  # fmt: skip


def test_every_limit_of_version_2():
    possible = EVERYTHING | {
        "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000, "cpus": "0-1", "mems": "0"},
        "memory": {"limit": 1 << 26, "swap": 1 << 27, "reservation": 1 << 25},
    }
    assert _files(v2_writes(possible)) == {
        "cpu.max": ["50000 100000"], "cpu.weight": ["39"], "cpuset.cpus": ["0-1"],
        "cpuset.mems": ["0"], "memory.max": ["67108864"], "memory.swap.max": ["67108864"],
        "memory.low": ["33554432"], "pids.max": ["50"],
        "io.bfq.weight": ["300", "8:0 200"],
        "io.max": ["8:0 rbps=1000", "8:16 wiops=10"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "resources",
    [
        {"cpu": {"realtimePeriod": 1}}, {"cpu": {"realtimeRuntime": 1}},
        {"memory": {"swappiness": 1}}, {"memory": {"disableOOMKiller": True}},
    ],
)  # fmt: skip
def test_what_version_2_has_not_is_refused_by_name(resources):
    (name,) = next(iter(resources.values()))
    with pytest.raises(ValueError, match=name):
        v2_writes(resources)


@given(st.integers(-(2**40), 2**40))
def test_any_number_of_shares_is_a_weight(shares):
    (weight,) = _files(v2_writes({"cpu": {"shares": shares}}))["cpu.weight"]
    assert 1 <= int(weight) <= 10_000
    assert shares < 262_144 or weight == "10000"


@given(st.integers(10, 1000), st.integers(10, 1000))
def test_weights_without_the_bfq_scheduler(one, another):
    device = {"major": 8, "minor": 0, "weight": another}
    writes = v2_writes({"blockIO": {"weight": one, "weightDevice": [device]}})
    first, second = _files([without_bfq(write) for write in writes])["io.weight"]
    assert first.startswith("default ")
    assert second.startswith("8:0 ")
    weights = [int(text.split()[1]) for text in (first, second)]
    assert all(1 <= weight <= 10_000 for weight in weights)
    assert one >= another or weights[0] < weights[1]


def test_memory_above_memory_and_swap_is_refused():
    """Version 1 leaves that to the kernel; version 2 has files for memory and for swap."""
    with pytest.raises(ValueError, match="above memory and swap together"):
        v2_writes({"memory": {"limit": 2 << 20, "swap": 1 << 20}})


def test_no_limit():
    nothing = {"cpu": {"quota": -1}, "memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}}
    assert _files(v2_writes(nothing)) == {
        "cpu.max": ["max 100000"], "memory.max": ["max"], "memory.swap.max": ["max"],
        "pids.max": ["max"],
    }  # fmt: skip


@given(st.tuples(*[st.integers(1, 100)] * 2), st.tuples(*[st.integers(1, 100)] * 2))
def test_memory_stays_below_memory_and_swap_at_every_moment(now, wished):
    memory, both = min(now), max(now)
    writes = v1_writes({"memory": {"limit": min(wished), "swap": max(wished)}})
    for write in in_order(writes, both):
        if write.file == "memory.limit_in_bytes":
            memory = int(write.value)
        else:
            both = int(write.value)
        assert memory <= both


def test_zero_takes_a_limit_away_and_none_leaves_it():
    assert changes_of(Resources()) == {}
    assert changes_of(Resources(nano_cpus=0, memory_bytes=0, memory_swap_bytes=0, pids_max=0)) == {
        "cpu": {"period": 100_000, "quota": -1}, "memory": {"limit": -1, "swap": -1},
        "pids": {"limit": -1},
    }  # fmt: skip
    assert changes_of(Resources(memory_bytes=1 << 26, memory_swap_bytes=0))["memory"] == {
        "limit": 1 << 26, "swap": 1 << 27,
    }  # fmt: skip
