"""The life of a further process in a running container, from clone to execve.

Runs in a clone of the supervisor that was born in the container's pid namespace (and, on cgroup v2,
in its group). It makes itself unreadable for its new neighbours before they can see more of it than
its number, joins everything else, and ends as `child` does: same privileges, same filter, no
descriptor of the host. Refuses to import anything, as `child` does.
"""

from __future__ import annotations

import os

from worker.runtime.lean import child, consoles, linux, preparing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


class Join:
    """All such a child needs, gathered by the supervisor before the clone."""

    __slots__ = (
        "bundle",
        "cgroup_paths",
        "close_fds",
        "console_fd",
        "namespaces",
        "pidfd",
        "seccomp",
        "size",
        "status_fd",
        "stdio_fds",
    )

    bundle: dict[str, Any]
    cgroup_paths: list[str]
    close_fds: list[int]
    console_fd: int
    namespaces: int
    pidfd: int
    seccomp: bytes
    size: tuple[int, int] | None
    status_fd: int
    stdio_fds: tuple[int, int, int]


def run(join: Join) -> NoReturn:
    """Become a process of the container. Never returns, whatever happens."""
    child.guarded(join, _become)


def _become(join: Join) -> NoReturn:
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    process = join.bundle["process"]
    child.join_groups(join.cgroup_paths)
    if join.namespaces & linux.CLONE_NEWUSER:
        preparing.raise_limits(process)
        preparing.own_streams(join.stdio_fds, join.bundle["linux"])
    linux.setns(join.pidfd, join.namespaces)
    if join.namespaces & linux.CLONE_NEWUSER:
        child.become_root()
    os.setsid()
    child.label_keys(process)
    linux.join_session_keyring()
    child.reset_signals()
    os.umask(process["user"].get("umask", 0o022))
    if join.console_fd >= 0:
        _open_terminal(join)
    child.take_stdio(join.stdio_fds)
    join.status_fd = child.close_all_but(join.status_fd)
    child.drop_privileges(join.bundle, join.seccomp, make_cwd=False)
    child.execute(process["args"], process["env"])


def _open_terminal(join: Join) -> None:
    root = os.open("/", linux.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    slave = consoles.open_pair(root, join.console_fd)
    os.close(root)
    if join.size is not None:
        consoles.set_size(slave, *join.size)
    join.stdio_fds = (slave, slave, slave)
