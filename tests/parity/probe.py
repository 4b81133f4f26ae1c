"""Runs inside a container and prints, as one JSON object, everything it can see and do.

Standard library only: it is copied into an image beside a Python. Nothing it tries can harm: calls
are made with arguments no kernel accepts, each in a child of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import stat
import sys

SYSCALLS = 463
CALL_TIMEOUT_S = 2.0
_NO_RETURN = {"15": "rt_sigreturn", "60": "exit", "231": "exit_group", "34": "pause"}
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/sys", "/proc/sysrq-trigger",
    "/proc/timer_list", "/proc/timer_stats", "/proc/interrupts", "/sys/firmware",
    "/sys/devices/virtual/powercap", "/sys/fs/cgroup", "/sys/kernel/debug", "/sys/kernel/security",
)  # fmt: skip
_WRITTEN = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity",
    "/sys/kernel/profiling", "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/devices/release_agent",
    "/sys/fs/cgroup/devices/devices.allow", "/proc/self/oom_score_adj", "/etc/hostname",
    "/etc/hosts", "/etc/resolv.conf", "/dev/kmsg", "/dev/mem", "/bin/python3", "/new file",
)  # fmt: skip
_DEVICES = (
    ("c", 1, 1), ("c", 1, 3), ("c", 1, 5), ("c", 1, 11), ("c", 5, 1), ("c", 10, 200),
    ("c", 10, 229), ("c", 136, 0), ("b", 7, 0), ("b", 8, 0), ("b", 254, 0),
)  # fmt: skip


def main() -> None:
    facts = {
        "status": status(),
        "identity": identity(),
        "limits": limits(),
        "mounts": mounts(),
        "masked": {path: look(path) for path in _MASKED},
        "writes": {path: open_for_writing(path) for path in _WRITTEN},
        "devices": {
            "there": devices_there(),
            "made": {
                f"{kind} {major}:{minor}": make_device(kind, major, minor)
                for kind, major, minor in _DEVICES
            },
        },
        "control groups": control_groups(),
        "namespaces": {
            name: os.readlink(f"/proc/self/ns/{name}")
            for name in sorted(os.listdir("/proc/self/ns"))
        },
        "proc": sorted(name for name in os.listdir("/proc") if not name.isdigit()),
        "sys": sorted(os.listdir("/sys")),
        "root": {name: kind_of(os.lstat(f"/{name}").st_mode) for name in sorted(os.listdir("/"))},
        "files": open_files(),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "calls": {str(number): call(number) for number in range(SYSCALLS)},
    }
    json.dump(facts, sys.stdout)


def status() -> dict[str, str]:
    wanted = (
        "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid",
        "Groups", "Umask", "Speculation_Store_Bypass", "Cpus_allowed", "Mems_allowed", "SigIgn",
        "SigBlk", "THP_enabled",
    )  # fmt: skip
    with open("/proc/self/status", encoding="ascii") as file:
        found = dict(line.rstrip("\n").partition(":\t")[::2] for line in file)
    return {name: found.get(name, "").strip() for name in wanted}


def identity() -> dict[str, object]:
    def text(path: str) -> str:
        try:
            with open(path, encoding="utf-8") as file:
                return file.read().strip()
        except OSError as error:
            return name_of(error.errno)

    return {
        "pid": os.getpid(), "session leader": os.getsid(0) == os.getpid(),
        "directory": os.getcwd(), "environment": sorted(os.environ),
        "oom_score_adj": text("/proc/self/oom_score_adj"), "label": text("/proc/self/attr/current"),
        "nice": os.nice(0), "personality": text("/proc/self/personality"),
        "loginuid": text("/proc/self/loginuid"), "exe": os.readlink("/proc/self/exe"),
        "securebits": ctypes.CDLL(None).prctl(27, 0, 0, 0, 0),
        "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
        "terminal": os.isatty(0),
    }  # fmt: skip


def limits() -> dict[str, list[int]]:
    return {
        name: list(resource.getrlimit(getattr(resource, name)))
        for name in sorted(dir(resource)) if name.startswith("RLIMIT_")
    }  # fmt: skip


def mounts() -> list[dict[str, str]]:
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            head, _, tail = line.rstrip("\n").partition(" - ")
            fields, (kind, source, options) = head.split(" "), tail.split(" ", 2)
            found.append(
                {"at": fields[4], "options": fields[5], "propagation": " ".join(fields[6:]),
                 "kind": kind, "source": source, "super": options, "root": fields[3]}
            )  # fmt: skip
    return found


def look(path: str) -> str:
    """What a path shows: its kind, and whether there is anything in it."""
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            return f"directory of {'some' if os.listdir(path) else 'nothing'}"
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            ready = select.select([fd], [], [], 0)[0]
            content = os.read(fd, 1) if ready else b"?"
        finally:
            os.close(fd)
        return f"{kind_of(found.st_mode)} with {'content' if content else 'nothing'}"
    except OSError as error:
        return name_of(error.errno)


def open_for_writing(path: str) -> str:
    """Nothing is written: opening is refused where it matters."""
    try:
        existed = os.path.lexists(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o600)
    except OSError as error:
        return name_of(error.errno)
    os.close(fd)
    if not existed:
        os.unlink(path)
    return "opened" if existed else "made"


def devices_there() -> dict[str, str]:
    found = {}
    for directory, _, names in os.walk("/dev"):
        for name in names:
            path = os.path.join(directory, name)
            at = os.lstat(path)
            what = kind_of(at.st_mode)
            if what in ("c", "b"):
                what += f" {os.major(at.st_rdev)}:{os.minor(at.st_rdev)} {at.st_mode & 0o7777:o}"
            elif what == "link":
                what += f" {os.readlink(path)}"
            found[path] = what
    return found


def make_device(kind: str, major: int, minor: int) -> str:
    path = "/tmp/device"
    mode = stat.S_IFCHR if kind == "c" else stat.S_IFBLK
    try:
        os.mknod(path, mode | 0o600, os.makedev(major, minor))
    except OSError as error:
        return f"not made: {name_of(error.errno)}"
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return f"not opened: {name_of(error.errno)}"
    finally:
        os.unlink(path)
    return "opened"


def control_groups() -> dict[str, str]:
    names = (
        "memory/memory.limit_in_bytes", "memory/memory.memsw.limit_in_bytes",
        "memory/memory.swappiness", "memory/memory.oom_control", "cpu/cpu.shares",
        "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us", "cpuset/cpuset.cpus", "cpuset/cpuset.mems",
        "pids/pids.max", "devices/devices.list", "blkio/blkio.weight", "memory.max",
        "memory.swap.max", "cpu.max", "cpu.weight", "pids.max", "cpuset.cpus",
    )  # fmt: skip
    found = {"of this process": ""}
    with open("/proc/self/cgroup", encoding="ascii") as file:
        found["of this process"] = ",".join(
            sorted({line.rstrip().split(":", 2)[2] for line in file})
        )
    for name in names:
        try:
            with open(f"/sys/fs/cgroup/{name}", encoding="ascii") as file:
                found[name] = ";".join(sorted(file.read().split("\n"))).strip(";")
        except OSError as error:
            found[name] = name_of(error.errno)
    return found


def open_files() -> dict[str, str]:
    found = {}
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if not target.startswith("/proc/"):
            found[name] = target.partition(":")[0]
    return found


def call(number: int) -> str:
    """What a system call with impossible arguments ends with."""
    if str(number) in _NO_RETURN:
        return "not tried"
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(number, writing)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], CALL_TIMEOUT_S)
    text = os.read(reading, 100).decode() if ready else "no return"
    os.close(reading)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    try:
        _, ended = os.waitpid(pid, 0)
    except ChildProcessError:
        return text or "gone"
    if not text and os.WIFSIGNALED(ended):
        return f"ended by {signal.Signals(os.WTERMSIG(ended)).name}"
    return "returned" if text.startswith("returned") else text or "ended"


def child(number: int, writing: int) -> None:
    keep = os.dup2(writing, 90)
    os.setpgid(0, 0) if number != 109 else None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    ctypes.set_errno(0)
    impossible = [ctypes.c_long(-1)] * 6
    result = libc.syscall(ctypes.c_long(number), *impossible)
    text = "returned" if result != -1 or not ctypes.get_errno() else name_of(ctypes.get_errno())
    os.write(keep, text.encode())
    os._exit(0)


def kind_of(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "directory"), (stat.S_ISREG, "file"), (stat.S_ISLNK, "link"),
        (stat.S_ISCHR, "c"), (stat.S_ISBLK, "b"), (stat.S_ISFIFO, "pipe"),
        (stat.S_ISSOCK, "socket"),
    ):  # fmt: skip
        if test(mode):
            return name
    return "?"


def name_of(number: int | None) -> str:
    return errno.errorcode.get(number or 0, str(number))


if __name__ == "__main__":
    main()
