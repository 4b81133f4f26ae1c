"""The control groups of a lab, in every hierarchy the machine has mounted.

A node's group is made in all of them; its daemons sit in `daemons` below it and the containers in
siblings, so that membership alone tells what a process is. Works on version 1, version 2 and both
at once. Invariant: removal goes bottom-up and never reports success while a group is left.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from shoal.errors import DeadlineExceeded, FailedPrecondition

DAEMONS = "daemons"
_DELEGATED = ("cpu", "cpuset", "io", "memory", "pids")
_POLL_S = 0.02


class Hierarchy(msgspec.Struct, frozen=True):
    """One mounted hierarchy. `controllers` is empty for version 2."""

    mountpoint: str
    version: int
    controllers: tuple[str, ...]


def parse_hierarchies(mountinfo: str) -> tuple[Hierarchy, ...]:
    """Read the hierarchies out of the text of /proc/self/mountinfo; each once."""
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        words = right.split()
        if not words or words[0] not in ("cgroup", "cgroup2"):
            continue
        root, mountpoint = left.split()[3:5]
        if root != "/":
            continue  # a view of one container's group, not the hierarchy
        if words[0] == "cgroup2":
            found.setdefault("2", Hierarchy(mountpoint, 2, ()))
            continue
        options = tuple(o for o in words[2].split(",") if o not in ("rw", "ro"))
        found.setdefault(",".join(options), Hierarchy(mountpoint, 1, options))
    return tuple(found.values())


def hierarchies() -> tuple[Hierarchy, ...]:
    """The machine's. Raises: FailedPrecondition when none is mounted."""
    found = parse_hierarchies(Path("/proc/self/mountinfo").read_text())
    if not found:
        raise FailedPrecondition("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup")
    return found


def create(group: str) -> None:
    """Make `group` with its `daemons` in every hierarchy; existing ones are kept."""
    for hierarchy in hierarchies():
        path = hierarchy.mountpoint
        for part in group.strip("/").split("/"):
            if hierarchy.version == 2:
                _delegate(path)
            path = f"{path}/{part}"
            _make(path, hierarchy)
        if hierarchy.version == 2:
            _delegate(path)
        _make(f"{path}/{DAEMONS}", hierarchy)


def _make(path: str, hierarchy: Hierarchy) -> None:
    os.makedirs(path, exist_ok=True)
    if "cpuset" in hierarchy.controllers:
        # A new cpuset is empty and takes no process until it has what its parent has.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not Path(path, name).read_text().strip():
                Path(path, name).write_text(Path(path, "..", name).read_text())


def _delegate(path: str) -> None:
    """Hand the controllers that containers need down to a version 2 group's children."""
    available = Path(path, "cgroup.controllers").read_text().split()
    for controller in [each for each in available if each in _DELEGATED]:
        try:
            Path(path, "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError as error:
            raise FailedPrecondition(
                f"cgroup {path}: cannot hand down the {controller} controller: {error.strerror}"
            ) from error


def entry_files(group: str) -> list[str]:
    """The files a daemon writes its pid to in order to join `daemons` of `group`."""
    return [f"{h.mountpoint}{group}/{DAEMONS}/cgroup.procs" for h in hierarchies()]


def members(group: str) -> tuple[set[int], set[int]]:
    """Pids in `daemons` of `group` in any hierarchy, and pids anywhere else below it."""
    daemons: set[int] = set()
    others: set[int] = set()
    for hierarchy in hierarchies():
        base = f"{hierarchy.mountpoint}{group}"
        for directory, _, _ in os.walk(base):
            below_daemons = f"{directory}/".startswith(f"{base}/{DAEMONS}/")
            (daemons if below_daemons else others).update(_pids(directory))
    return daemons, others


def _pids(directory: str) -> list[int]:
    try:
        return [int(line) for line in Path(directory, "cgroup.procs").read_text().split()]
    except (FileNotFoundError, OSError):
        return []


def exists(group: str) -> bool:
    """Whether any hierarchy has the group."""
    return any(os.path.isdir(f"{h.mountpoint}{group}") for h in hierarchies())


def remove(group: str, *, timeout_s: float = 10.0) -> None:
    """Remove `group` and all below it everywhere. Nothing may run in it any more.

    Raises: DeadlineExceeded when the kernel keeps one busy.
    """
    deadline_s = time.monotonic() + timeout_s
    for hierarchy in hierarchies():
        base = f"{hierarchy.mountpoint}{group}"
        while os.path.isdir(base):
            busy = _remove_tree(base)
            if busy and time.monotonic() > deadline_s:
                raise DeadlineExceeded(f"cgroup {busy} is still in use after {timeout_s:g} s")
            if busy:
                time.sleep(_POLL_S)


def _remove_tree(base: str) -> str:
    """One pass bottom-up; the path of a group that stayed, or ""."""
    stayed = ""
    for directory, _, _ in os.walk(base, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError:
            stayed = directory
    return stayed


def remove_if_empty(group: str) -> None:
    """Remove a group that other labs may share; kept while it has children."""
    for hierarchy in hierarchies():
        try:
            os.rmdir(f"{hierarchy.mountpoint}{group}")
        except OSError:
            continue
