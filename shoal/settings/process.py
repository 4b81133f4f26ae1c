"""What the processes of a node owe the swarmd that started them.

None outlives it, and what nobody else may see comes through its standard input: command lines,
environments and files can be read by others, or stay behind.

The kernel sends SIGTERM when the parent ends, however it ends. Between the start of this process
and that request the parent may be gone already; a changed parent tells so, and then it exits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from shoal.security.lock import LockKeys, decode_lock_keys

_PR_SET_PDEATHSIG = 1
_INPUT_BYTES_MAX = 16 << 10


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
