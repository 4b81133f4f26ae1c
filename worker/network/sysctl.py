"""Kernel settings of the calling thread's network namespace (/proc/sys/net follows the thread).

Invariant: `reserve_ports` only ever changes ports it is told about; the administrator's own
reservations stay.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

_ROOT = Path("/proc/sys/net")
_RESERVED = "ipv4/ip_local_reserved_ports"


def read(name: str) -> str:
    """The value of `net/<name>` without the newline."""
    return (_ROOT / name).read_text().strip()


def exists(name: str) -> bool:
    """Whether this namespace has the setting."""
    return (_ROOT / name).exists()


def write(name: str, value: str) -> None:
    """Set `net/<name>`. Raises: OSError."""
    with open(_ROOT / name, "w") as setting:
        setting.write(value)


def ensure(name: str, value: str) -> None:
    """Set `net/<name>` unless it has that value already."""
    if read(name) != value:
        write(name, value)


def try_write(name: str, value: str) -> bool:
    """Set `net/<name>`; False where this namespace has no such setting or may not change it."""
    try:
        ensure(name, value)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EINVAL):
            raise
        return False
    return True


def reserved_ports() -> set[int]:
    """Ports the kernel does not give to outgoing connections."""
    ports: set[int] = set()
    for part in filter(None, read(_RESERVED).split(",")):
        first, _, last = part.partition("-")
        ports.update(range(int(first), int(last or first) + 1))
    return ports


def reserve_ports(*, add: Iterable[int] = (), remove: Iterable[int] = ()) -> None:
    """Add ports to and remove ports from the kernel's reservations."""
    before = reserved_ports()
    after = (before - set(remove)) | set(add)
    if after != before:
        # A bare newline clears the list; an empty write would change nothing.
        write(_RESERVED, ",".join(str(port) for port in sorted(after)) + "\n")
