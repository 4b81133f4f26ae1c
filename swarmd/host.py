"""What kind of machine this is, and what a process of it uses. Reads /proc and /etc; blocks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KIB = 1024


class Host(msgspec.Struct, frozen=True):
    """The machine. cgroup_version: "1" (also hybrid) or "2"."""

    kernel: str
    os: str
    architecture: str
    nano_cpus: int
    memory_bytes: int
    cgroup_version: str


class Usage(msgspec.Struct, frozen=True):
    """What one process uses now."""

    resident_bytes: int
    cpu_s: float
    open_fds: int


def read_host() -> Host:
    """Ask the kernel, and /etc/os-release for the system's name."""
    name = os.uname()
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return Host(
        kernel=name.release,
        os=os_name(_lines("/etc/os-release") or _lines("/usr/lib/os-release")) or name.sysname,
        architecture=name.machine,
        nano_cpus=len(os.sched_getaffinity(0)) * 1_000_000_000,
        memory_bytes=memory_bytes(_lines("/proc/meminfo")),
        cgroup_version="2" if unified else "1",
    )


def os_name(os_release: Iterable[str]) -> str:
    """PRETTY_NAME of an os-release file, else NAME, else empty."""
    values: dict[str, str] = {}
    for line in os_release:
        key, separator, value = line.partition("=")
        if separator:
            values[key.strip()] = value.strip().strip("\"'")
    return values.get("PRETTY_NAME") or values.get("NAME", "")


def memory_bytes(meminfo: Iterable[str]) -> int:
    """MemTotal of /proc/meminfo; 0 if it is not there."""
    for line in meminfo:
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * _KIB
    return 0


def usage(pid: int) -> Usage | None:
    """What the process uses, None when there is none with that pid."""
    directory = Path(f"/proc/{pid}")
    try:
        stat = (directory / "stat").read_text(errors="replace").rpartition(")")[2].split()
        pages = int((directory / "statm").read_text().split()[1])
        open_fds = len(os.listdir(directory / "fd"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    cpu_ticks = int(stat[11]) + int(stat[12])
    return Usage(pages * _PAGE_BYTES, cpu_ticks / _TICKS_PER_S, open_fds)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
