"""Which version of control groups limits containers on this machine, for what differs by it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

VERSION = 1 if os.path.isdir("/sys/fs/cgroup/memory") else 2
V1, V2 = VERSION == 1, VERSION == 2


def end_all(parent: str, deadline_s: float = 40.0) -> None:
    """Kill every process in and below a control group of our own, and remove the groups.

    In every hierarchy. parent: below the mount points, as in `/shoal-1`.
    """
    ends_s = time.monotonic() + deadline_s
    while groups := _groups(parent):
        for group in groups:
            _kill_members(group)
            with contextlib.suppress(OSError):  # not empty yet
                group.rmdir()
        assert time.monotonic() < ends_s, f"{groups[0]} is not empty"
        time.sleep(0.02)


def _groups(parent: str) -> list[Path]:
    """Innermost first."""
    mounts = [Path("/sys/fs/cgroup"), *filter(Path.is_dir, Path("/sys/fs/cgroup").iterdir())]
    found: list[Path] = []
    for top in (mount / parent.strip("/") for mount in mounts):
        if top.is_dir():
            found += [top, *filter(Path.is_dir, top.rglob("*"))]
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def _kill_members(group: Path) -> None:
    with contextlib.suppress(OSError):  # it is being removed
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
