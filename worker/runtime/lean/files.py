"""Files the small processes share: atomic records, pid files, process identity.

A process is known by (pid, start time in clock ticks), never by its pid alone: pids come back.
A record is replaced by rename, so a reader sees the old or the new one, and a crash leaves one.
"""

from __future__ import annotations

import os

from worker.runtime.lean import tinyjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATE_FILE = "state.json"
BUNDLE_FILE = "config.json"
LOG_END_FILE = "log.end"
HELD_VARIABLE = "SHOAL_HELD_FDS"  # descriptors a supervisor that becomes the keeper leaves it
STREAMS = ("stdout", "stderr")
INPUT = "stdin"  # a FIFO as well, in containers whose standard input is open
INPUT_END_FILE = "stdin.end"  # it is at its end for this run
REFUSAL_FILE = "supervisor.refusal"  # why the last supervisor could not serve, in the run directory
# What the supervisor tells the keeper, one line each: the letter and a container. Two descriptors
# come along with the first and the fourth. A keeper may be older than its supervisor: what it does
# not know it takes for a container that has ended, which changes nothing while it runs.
HOLD, DRAIN, END_INPUT, HOLD_TERMINAL, DROP_TERMINAL = "+-.tx"


def write_atomically(path: str, text: str, mode: int = 0o600) -> None:
    """Replace the file by rename. Not synced: a power cut ends every container anyway."""
    fresh = f"{path}.new"
    write_new(fresh, text, mode)
    os.rename(fresh, path)


def write_new(path: str, text: str, mode: int = 0o600) -> None:
    """Write a file nobody reads yet. Raises: OSError, also when the disk takes only a part."""
    content = text.encode()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        if os.write(fd, content) != len(content):
            raise OSError(28, os.strerror(28), path)
    finally:
        os.close(fd)


def discard(path: str) -> None:
    """Remove a file that may not be there."""
    try:  # noqa: SIM105 - contextlib is too dear for the small processes
        os.unlink(path)
    except FileNotFoundError:
        pass


def read_text(path: str) -> str:
    """The whole of a small file. Raises: OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, 1 << 18):
            pieces.append(piece)
        return b"".join(pieces).decode()
    finally:
        os.close(fd)


def read_record(path: str) -> Any:
    """One JSON record, or None when it is missing or not JSON."""
    try:
        return tinyjson.loads(read_text(path))
    except (OSError, ValueError):
        return None


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 when there is no such process."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else 0


def zombie_status(pid: int, ticks: int) -> int | None:
    """The wait status of that process while it is a zombie, whoever its parent is."""
    fields = _stat_fields(pid)
    if not fields or fields[0] != "Z" or int(fields[19]) != ticks:
        return None
    return int(fields[49])


def is_alive(pid: int, ticks: int) -> bool:
    """True while that process runs; a zombie does not."""
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] != "Z" and int(fields[19]) == ticks


def _stat_fields(pid: int) -> list[str]:
    """Field 3 (state) and on of /proc/<pid>/stat; empty when there is no such process."""
    try:
        return read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (OSError, ValueError):
        return []


def boot_id() -> str:
    """The kernel's name for this boot."""
    return read_text("/proc/sys/kernel/random/boot_id").strip()


def exit_record(state_dir: str, pid: int, ticks: int) -> str:
    """Where the keeper records the exit of a process it inherited."""
    return f"{state_dir}/exits/{pid}.{ticks}"


def code_of(wait_status: int) -> int:
    """A container exit code from a wait status: 128 + signal for a killed process."""
    code = os.waitstatus_to_exitcode(wait_status)
    return 128 - code if code < 0 else code


def complain(message: str) -> None:
    """One line into the runtime's log (standard error of the small processes), if it takes one.

    The log is on the disk of the state: when that is full, those who complain of it must go on.
    """
    try:  # noqa: SIM105 - contextlib is too dear for the small processes
        os.write(2, f"{os.getpid()} {message}\n".encode())
    except OSError:
        pass
