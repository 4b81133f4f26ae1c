"""One start of a container, from the open descriptors to the running clone.

On cgroup v1 the child is cloned first and the groups are made while it mounts its root: it waits
for the go byte before it joins them. On v2 it is born inside its group. Whatever fails, `close`
and `undo` leave no descriptor, process or group behind.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from worker.runtime.lean import child, files, linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from worker.runtime.lean.cgroups import V1, V2
    from worker.runtime.lean.container import Container

_NAMESPACES = {
    "mount": linux.CLONE_NEWNS,
    "pid": linux.CLONE_NEWPID,
    "ipc": linux.CLONE_NEWIPC,
    "uts": linux.CLONE_NEWUTS,
    "network": linux.CLONE_NEWNET,
}


class Launch:
    """Descriptors and parameters of one start; used once."""

    def __init__(self, container: Container, bundle: dict[str, Any], driver: V1 | V2) -> None:
        self._container = container
        self._bundle = bundle
        self._driver = driver
        self._opened: list[int] = []
        self._go_fd = -1
        self.cloned = False

    def clone(self, seccomp: bytes) -> int:
        """Make the child and its groups; returns its pid. It waits for `go`."""
        start = child.Start()
        start.bundle, start.directory = self._bundle, self._container.directory
        start.layers = self._bundle["annotations"]["dev.shoal.layers"].split("\n")
        start.seccomp = seccomp
        flags, start.netns_fd = self._namespaces()
        streams = [f"{start.directory}/{stream}" for stream in files.STREAMS]
        stdout, stderr = (self._open(path, os.O_RDWR) for path in streams)
        start.stdio_fds = (self._open("/dev/null", os.O_RDONLY), stdout, stderr)
        group_fd = self._enter_group()
        start.cgroup_paths = [] if group_fd >= 0 else self._driver.paths(self._container.id)
        start.cgroup_views = self._driver.views(self._container.id)
        start.go_fd, self._go_fd = os.pipe2(os.O_CLOEXEC)
        status_read, start.status_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._opened += [start.go_fd, self._go_fd, start.status_fd]
        start.close_fds = [self._go_fd, status_read]
        try:
            pid, pidfd = linux.clone(flags, cgroup_fd=group_fd)
        except OSError:
            os.close(status_read)
            raise
        if pid == 0:
            child.run(start)
        self.cloned = True
        self._container.pidfd, self._container.status_fd = pidfd, status_read
        if group_fd < 0:
            self._make_group()
        return pid

    def go(self) -> None:
        """Let the child join its groups and run the program."""
        try:
            os.write(self._go_fd, b"g")
        except BrokenPipeError:
            return  # it has failed already and says why on the status pipe

    def close(self) -> None:
        """Close what only the child needs."""
        for fd in self._opened:
            os.close(fd)
        self._opened = []

    def undo(self) -> None:
        """End and reap a child that must not run; it has not passed its wait for `go`."""
        if self.cloned:
            pidfd = self._container.pidfd
            _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)

    def _namespaces(self) -> tuple[int, int]:
        flags, netns_fd = 0, -1
        for namespace in self._bundle["linux"]["namespaces"]:
            if namespace.get("path"):
                netns_fd = self._open(namespace["path"], os.O_RDONLY)
            else:
                flags |= _NAMESPACES.get(namespace["type"], 0)
        return flags, netns_fd

    def _open(self, path: str, flags: int) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        self._opened.append(fd)
        return fd

    def _enter_group(self) -> int:
        if self._driver.version == 1:
            return -1
        self._make_group()
        return self._open(
            self._driver.clone_target(self._container.id), os.O_RDONLY | os.O_DIRECTORY
        )

    def _make_group(self) -> None:
        self._driver.remove(self._container.id)  # of a start that was cut short
        self._driver.create(self._container.id, self._bundle["linux"]["resources"])
