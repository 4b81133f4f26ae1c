"""What the processes of a node owe the swarmd that started them.

None outlives it, and what nobody else may see comes through its standard input: command lines,
environments and files can be read by others, or stay behind.

The kernel sends SIGTERM when the parent ends, however it ends. Between the start of this process
and that request the parent may be gone already; a changed parent tells so, and then it exits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

from shoal.security.lock import LockKeys, decode_lock_keys

_PR_SET_PDEATHSIG = 1
_INPUT_BYTES_MAX = 16 << 10
_REASON_CHARS_MAX = 2000


def die_with_parent(parent_pid: int) -> None:
    """Be sent SIGTERM when the parent ends; exits with 1 if it is gone. Call it first in main.

    parent_pid: the process that started this one, as that process knows itself.
    Raises: OSError if the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent_pid:
        sys.exit(1)


def read_lock_keys() -> LockKeys:
    """The lock keys that swarmd wrote to this process's standard input. Raises: InvalidArgument."""
    return decode_lock_keys(sys.stdin.buffer.read(_INPUT_BYTES_MAX))


def leave_reason(run_dir: Path, name: str, reason: str) -> None:
    """Tell swarmd why this process ends by itself. name: as swarmd calls the process."""
    with contextlib.suppress(OSError):  # it has been logged, which may be all that is possible
        _reason_file(run_dir, name).write_text(reason, encoding="utf-8")


def take_reason(run_dir: Path, name: str) -> str:
    """What the process that has just ended left; "" for nothing. It is told once."""
    path = _reason_file(run_dir, name)
    try:
        reason = path.read_text(encoding="utf-8", errors="replace")
        path.unlink()
    except OSError:
        return ""
    return reason[:_REASON_CHARS_MAX]


def _reason_file(run_dir: Path, name: str) -> Path:
    return run_dir / f"{name}.reason"
