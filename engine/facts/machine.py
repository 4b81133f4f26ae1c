"""What the machine under this node is: read from /proc, /sys and /etc. Blocks; small files only."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from shoal.model.row import Row

_V1_FILES = {
    "memory_limit": "memory/memory.limit_in_bytes",
    "swap_limit": "memory/memory.memsw.limit_in_bytes",
    "oom_kill_disable": "memory/memory.oom_control",
    "cpu_shares": "cpu/cpu.shares",
    "cpu_cfs_period": "cpu/cpu.cfs_period_us",
    "cpu_cfs_quota": "cpu/cpu.cfs_quota_us",
    "cpu_set": "cpuset/cpuset.cpus",
    "pids_limit": "pids/cgroup.procs",
}
_V2_CONTROLLERS = {
    "memory_limit": "memory",
    "swap_limit": "memory",
    "cpu_shares": "cpu",
    "cpu_cfs_period": "cpu",
    "cpu_cfs_quota": "cpu",
    "cpu_set": "cpuset",
    "pids_limit": "pids",
}


class Cgroups(Row, frozen=True):
    """Which limits the kernel can hold containers to."""

    version: int
    memory_limit: bool = False
    swap_limit: bool = False
    oom_kill_disable: bool = False
    cpu_shares: bool = False
    cpu_cfs_period: bool = False
    cpu_cfs_quota: bool = False
    cpu_set: bool = False
    pids_limit: bool = False


class Machine(Row, frozen=True):
    """What does not change while the node runs. architecture: as `uname -m`."""

    kernel_version: str
    operating_system: str
    os_version: str
    architecture: str
    cpus: int
    memory_bytes: int
    filesystem: str
    cgroups: Cgroups
    seccomp: bool


def read_machine(state_dir: Path, root: Path = Path("/")) -> Machine:
    """Look at the machine. root: where to find proc, sys and etc. Raises: OSError."""
    release = _release(root)
    return Machine(
        kernel_version=platform.release(),
        operating_system=release.get("PRETTY_NAME", "Linux"),
        os_version=release.get("VERSION_ID", ""),
        architecture=platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        filesystem=_filesystem(state_dir),
        cgroups=_cgroups(root / "sys/fs/cgroup"),
        seccomp=(root / "proc/sys/kernel/seccomp/actions_avail").exists(),
    )


def is_set(name: str, root: Path = Path("/")) -> bool:
    """Whether a sysctl, with slashes, is 1."""
    return _text(root / "proc/sys" / name) == "1"


def open_descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def _cgroups(mount: Path) -> Cgroups:
    controllers = _text(mount / "cgroup.controllers").split()
    if (mount / "cgroup.controllers").exists():
        held = {name: one in controllers for name, one in _V2_CONTROLLERS.items()}
        return Cgroups(version=2, **held)
    return Cgroups(version=1, **{name: (mount / file).exists() for name, file in _V1_FILES.items()})


def _release(root: Path) -> Mapping[str, str]:
    lines = (_text(root / "etc/os-release") or _text(root / "usr/lib/os-release")).splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name: value.strip("\"'") for name, value in pairs}


def _filesystem(path: Path) -> str:
    """The type of the file system a path is on, in Docker's words; "" when it cannot be told."""
    mounts = []
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == number:
            mounts.append(rest.split()[0])
    kind = mounts[-1] if mounts else ""
    return "extfs" if kind in {"ext2", "ext3", "ext4"} else kind


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
