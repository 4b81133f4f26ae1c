"""Both drivers against trees of plain files: which files get which values."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.runtime.api import ContainerConfig
from worker.runtime.bundle import resources_of
from worker.runtime.lean import cgroups

V1_LINE = "30 23 0:26 / {path} rw - cgroup cgroup rw,{options}"


def _resources(**fields):
    config = ContainerConfig(id="c", layers=("/l",), args=("a",), **fields)
    return {k: v for k, v in resources_of(config, ()).items() if k != "devices"}


def test_driver_choice():
    with pytest.raises(OSError, match="no cgroup hierarchy"):
        cgroups.find_driver("/x", "22 1 0:21 / /proc rw - proc proc rw")
    memory_only = V1_LINE.format(path="/nowhere/memory", options="memory")
    with pytest.raises(OSError, match="not mounted: cpu, cpuacct, devices, freezer, pids"):
        cgroups.find_driver("/x", memory_only)


def test_v1_with_comounted_controllers(tmp_path):
    lines = []
    for options in ("cpu,cpuacct", "memory", "devices", "freezer", "pids"):
        (tmp_path / options).mkdir()
        lines.append(V1_LINE.format(path=tmp_path / options, options=options))
    driver = cgroups.find_driver("/node", "\n".join(lines))
    assert driver.version == 1
    assert len(driver.paths("c")) == 5
    assert driver.remove("c")
    with pytest.raises(OSError, match=r"cpu\.cfs_period_us"):
        driver.create("c", _resources(nano_cpus=10**9))  # no kernel behind these files
    assert not any(os.path.exists(path) for path in driver.paths("c"))


@pytest.fixture
def unified(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids io\n")
    for path in (tmp_path, tmp_path / "shoal", tmp_path / "shoal/n1"):
        path.mkdir(exist_ok=True)
        (path / "cgroup.subtree_control").write_text("")
    line = f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw"
    return cgroups.find_driver("/shoal/n1", line), tmp_path


def test_v2_delegates_down_to_the_parent(unified):
    driver, root = unified
    assert driver.version == 2
    for path in (root, root / "shoal", root / "shoal/n1"):
        assert (path / "cgroup.subtree_control").read_text() == "+cpu +memory +pids +io"
    assert driver.clone_target("c") == f"{root}/shoal/n1/c"


def test_v2_limits_and_counters(unified):
    driver, root = unified
    group = root / "shoal/n1/c"
    group.mkdir()
    for name in ("cpu.max", "cpu.weight", "memory.max", "memory.swap.max", "pids.max"):
        (group / name).write_text("")
    resources = _resources(memory_bytes=8 << 20, nano_cpus=10**9, pids_max=3, cpu_shares=1024)
    driver.update("c", {}, resources)
    assert (group / "cpu.max").read_text() == "100000 100000"
    assert (group / "cpu.weight").read_text() == "39"
    assert (group / "memory.max").read_text() == str(8 << 20)
    assert (group / "memory.swap.max").read_text() == str(8 << 20)
    assert (group / "pids.max").read_text() == "3"
    _fill(group, {
        "memory.events": "oom 2\noom_kill 1\n", "memory.current": "5000\n",
        "memory.stat": "anon 1\ninactive_file 1000\n", "cpu.stat": "usage_usec 7\n",
        "pids.current": "2\n", "cgroup.events": "populated 1\nfrozen 1\n", "cgroup.freeze": "",
    })  # fmt: skip
    usage = driver.usage("c")
    assert (usage.cpu_usage_ns, usage.memory_usage_bytes, usage.pids) == (7000, 4000, 2)
    assert usage.memory_limit_bytes == 8 << 20
    assert driver.oom_kills("c") == 1
    driver.freeze("c", frozen=True)
    assert (group / "cgroup.freeze").read_text() == "1"
    assert driver.is_frozen("c")


def test_v2_keeps_memory_and_swap_together_when_memory_changes(unified):
    driver, root = unified
    (root / "shoal/n1/c").mkdir()
    _fill(root / "shoal/n1/c", {"memory.max": "8388608", "memory.swap.max": "8388608"})
    changes = {"memory": {"limit": 12 << 20}}
    driver.update("c", changes, {"memory": {"limit": 12 << 20, "swap": 16 << 20}})
    assert (root / "shoal/n1/c/memory.max").read_text() == str(12 << 20)
    assert (root / "shoal/n1/c/memory.swap.max").read_text() == str(4 << 20)


def test_v2_without_controllers_is_refused(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    line = f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw"
    with pytest.raises(OSError, match="not available: cpu, memory, pids"):
        cgroups.find_driver("/x", line)


def test_remove_says_when_a_group_is_busy(unified):
    driver, root = unified
    (root / "shoal/n1/c").mkdir()
    (root / "shoal/n1/c/busy").touch()
    assert not driver.remove("c")


def test_device_rule_text():
    rule = {"type": "c", "major": 1, "minor": None, "access": "rw"}
    assert cgroups.device_rule(rule) == "c 1:* rw"
    assert cgroups.device_rule({"access": "rwm"}) == "a"


def _fill(directory: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (directory / name).write_text(text)
