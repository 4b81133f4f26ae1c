"""The process a network namespace with other owners is born in: `python -I -S birth.py [USERNS]`.

A thread of the worker cannot enter a user namespace, and whoever has entered one cannot come back.
So this process enters one, a new one or the one at the path USERNS, says `u`, waits for a line (the
maps are written meanwhile, from outside), enters a new network namespace, says `n`, and ends with
its standard input. Imports nothing that is not needed: it is started for each container.
"""

from __future__ import annotations

import ctypes
import os
import sys

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Exits with 1 and the reason on standard error when the kernel refuses."""
    if len(sys.argv) > 1:
        fd = os.open(sys.argv[1], os.O_RDONLY | os.O_CLOEXEC)
        _check(_libc.setns(fd, _CLONE_NEWUSER), f"enter {sys.argv[1]}")
    else:
        _check(_libc.unshare(_CLONE_NEWUSER), "make a user namespace")
    os.write(1, b"u")
    if not os.read(0, 1):
        return
    _check(_libc.unshare(_CLONE_NEWNET), "make a network namespace")
    os.write(1, b"n")
    os.read(0, 1)


def _check(result: int, what: str) -> None:
    if result != 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
