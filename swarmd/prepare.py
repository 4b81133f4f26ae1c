"""What must hold before swarmd serves: root, its directories, nobody else on them. Blocks.

Two locks, one on the state directory and one on the run directory: two daemons that share either
would ruin each other. The locks go with the process, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from shoal.errors import FailedPrecondition
from shoal.settings.paths import NodePaths
from shoal.settings.sockets import shoal_group

LOCK_FILE = "swarmd.lock"


def require_root() -> None:
    """Raise FailedPrecondition unless this process is root."""
    if os.geteuid() != 0:
        raise FailedPrecondition(
            f"swarmd must run as root (it is user {os.geteuid()}): it makes namespaces, mounts and "
            "control groups"
        )


def make_directories(paths: NodePaths) -> None:
    """Make the state and the run directory, 0700.

    Where the group `shoal` exists it may pass through the run directory: it may use the socket.
    """
    for path in (paths.state, paths.run):
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.chmod(0o700)
        except OSError as error:
            raise FailedPrecondition(f"{path}: {error.strerror}") from error
    group_id = shoal_group()
    if group_id is not None:
        os.chown(paths.run, 0, group_id)
        paths.run.chmod(0o710)


def lock(directory: Path) -> int:
    """Hold the directory for this process; the result is to be closed at the end.

    Raises: FailedPrecondition when another swarmd holds it.
    """
    path = directory / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise FailedPrecondition(
            f"{directory} is in use by another swarmd (pid {owner}): stop that one, or give "
            "--state-dir and --run-dir of its own to each"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
