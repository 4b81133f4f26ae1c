"""Processes as /proc shows them, told apart from later ones that got the same pid.

Invariant: a signal is sent through a pidfd after the start time was compared, so it never hits a
stranger. `classify` is pure: it sorts a node's processes into daemons, helpers and containers.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from shoal.errors import DeadlineExceeded

_HELPERS = ("keeper", "supervisor", "logger")
_POLL_S = 0.02


class Process(msgspec.Struct, frozen=True):
    """One process. `state` is the letter of /proc; `start_ticks` counts since boot."""

    pid: int
    parent: int
    state: str
    start_ticks: int
    argv: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether it can still run: neither zombie nor dead."""
        return self.state not in "ZX"


class Family(msgspec.Struct, frozen=True):
    """A node's processes by what they are for, each sorted by pid."""

    daemons: tuple[Process, ...]
    helpers: tuple[Process, ...]
    containers: tuple[Process, ...]

    @property
    def everyone(self) -> tuple[Process, ...]:
        """All of them, daemons first so that nothing is restarted while the rest is killed."""
        return self.daemons + self.helpers + self.containers


def read(pid: int) -> Process | None:
    """The process with that pid, or None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        argv = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    words = tuple(word.decode(errors="replace") for word in argv.rstrip(b"\0").split(b"\0") if word)
    return Process(pid, int(fields[1]), fields[0], int(fields[19]), words)


def read_all(pids: Iterable[int]) -> dict[int, Process]:
    """Those of `pids` that are alive."""
    found = (read(pid) for pid in pids)
    return {process.pid: process for process in found if process and process.alive}


def still(process: Process) -> Process | None:
    """`process` as it is now, or None when it is gone or its pid is someone else's."""
    now = read(process.pid)
    if now and now.alive and now.start_ticks == process.start_ticks:
        return now
    return None


def in_namespaces(inodes: Mapping[str, int]) -> set[int]:
    """Pids of all processes in one of the namespaces; kind ("net", "mnt") -> inode."""
    pids = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        for kind, inode in inodes.items():
            try:
                if os.stat(f"/proc/{entry}/ns/{kind}").st_ino == inode:
                    pids.add(int(entry))
            except OSError:
                break
    return pids


def classify(in_daemons: Mapping[int, Process], in_containers: Mapping[int, Process]) -> Family:
    """Sort by control group first, then by what the command line says.

    in_daemons: members of the daemons' group in any hierarchy; in_containers: of any other group
    of the node. A process in both is a container's: not every hierarchy has groups for those.
    Helpers are the keeper, the supervisor, the logger and whatever descends from them.
    """
    ours = {pid: p for pid, p in in_daemons.items() if pid not in in_containers}
    helpers = {pid for pid, process in ours.items() if is_helper(process.argv)}
    grown = True
    while grown:
        more = {pid for pid, p in ours.items() if p.parent in helpers} - helpers
        helpers |= more
        grown = bool(more)
    return Family(
        daemons=tuple(ours[pid] for pid in sorted(ours) if pid not in helpers),
        helpers=tuple(ours[pid] for pid in sorted(helpers)),
        containers=tuple(in_containers[pid] for pid in sorted(in_containers)),
    )


def is_helper(argv: tuple[str, ...]) -> bool:
    """Whether a command line is that of a process which outlives the daemons.

    The worker names the part as the last word; a module or script of that name counts as well.
    """
    if not argv:
        return False
    program: list[str] = []
    words = iter(argv[1:])
    for word in words:
        if word == "-m":
            program = next(words, "").split(".")
            break
        if not word.startswith("-"):
            program = [word.rpartition("/")[2].removesuffix(".py")]
            break
    return argv[-1] in _HELPERS or any(part in _HELPERS for part in program)


def send(process: Process, signal_number: signal.Signals) -> bool:
    """Signal exactly that process. False when it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not still(process):
            return False
        signal.pidfd_send_signal(descriptor, signal_number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def kill_all(find: Callable[[], Iterable[Process]], *, what: str, timeout_s: float = 10.0) -> int:
    """SIGKILL what `find` finds until it finds nothing. Returns how many were killed.

    All are stopped before the first is killed: none may see another one's end and take its leave.
    Raises: DeadlineExceeded, naming those left (usually stuck in the kernel).
    """
    deadline_s = time.monotonic() + timeout_s
    killed: set[tuple[int, int]] = set()
    while True:
        left = [process for process in find() if process.pid != os.getpid()]
        if not left:
            return len(killed)
        for process in left:
            send(process, signal.SIGSTOP)
        for process in left:
            if send(process, signal.SIGKILL):
                killed.add((process.pid, process.start_ticks))
        if time.monotonic() > deadline_s:
            names = ", ".join(f"{p.pid} ({' '.join(p.argv[:4])})" for p in left)
            raise DeadlineExceeded(f"{what}: still alive {timeout_s:g} s after SIGKILL: {names}")
        time.sleep(_POLL_S)
