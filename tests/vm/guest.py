"""The first process of the virtual machine: mounts what a system has, runs the job, ends it all.

Standard library only. The job lies in /run/vm/job.json; its exit code is left in /run/vm/exit,
its output goes to the second serial line. Whatever becomes an orphan is reaped here.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import termios
from pathlib import Path

EXCHANGE = Path("/run/vm")
CGROUP = Path("/sys/fs/cgroup")
_MOUNTS = (
    ("proc", "/proc", "proc", "nosuid,nodev,noexec"),
    ("sysfs", "/sys", "sysfs", "nosuid,nodev,noexec"),
    ("devtmpfs", "/dev", "devtmpfs", "nosuid"),
    ("devpts", "/dev/pts", "devpts", "nosuid,noexec,gid=5,mode=620,ptmxmode=000"),
    ("tmpfs", "/dev/shm", "tmpfs", "nosuid,nodev"),
    ("mqueue", "/dev/mqueue", "mqueue", "nosuid,nodev,noexec"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", "nosuid,nodev,noexec,nsdelegate,memory_recursiveprot"),
    ("securityfs", "/sys/kernel/security", "securityfs", "nosuid,nodev,noexec"),
    ("bpf", "/sys/fs/bpf", "bpf", "nosuid,nodev,noexec,mode=700"),
)
_POWER_OFF = 0x4321FEDC


def main() -> None:
    code = 125
    try:
        prepare()
        code = run(json.loads((EXCHANGE / "job.json").read_text()))
    finally:
        (EXCHANGE / "exit").write_text(str(code))
        os.sync()
        ctypes.CDLL(None).reboot(_POWER_OFF)


def prepare() -> None:
    for source, target, kind, options in _MOUNTS:
        os.makedirs(target, exist_ok=True)
        subprocess.run(["mount", "-t", kind, "-o", options, source, target], check=True)
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    for directory in ("/run/netns", "/run/lock", "/run/user"):
        os.makedirs(directory, exist_ok=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["hostname", "vm"], check=True)
    enter_service_group()


def enter_service_group() -> None:
    """Live as a service does under systemd: in a leaf, with every controller handed down to it."""
    controllers = (CGROUP / "cgroup.controllers").read_text().split()
    wanted = " ".join(f"+{name}" for name in controllers)
    group = CGROUP / "system.slice" / "vm.service"
    group.mkdir(parents=True)
    for parent in (CGROUP, group.parent):
        (parent / "cgroup.subtree_control").write_text(wanted)
    (group / "cgroup.procs").write_text("0")


def run(job: dict[str, object]) -> int:
    """The job's exit code, as a shell would tell it."""
    terminal = os.open("/dev/ttyS1", os.O_WRONLY | os.O_NOCTTY)
    attributes = termios.tcgetattr(terminal)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    main = subprocess.Popen(
        job["command"], cwd=job["directory"], env=job["environment"], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    while True:
        pid, status = os.wait()
        if pid == main.pid:
            termios.tcdrain(terminal)
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
