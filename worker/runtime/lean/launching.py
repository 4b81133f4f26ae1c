"""One start of a container, from the open descriptors to the running clone.

On cgroup v1 the child is cloned first and the groups are made while it mounts its root: it waits
for the go byte before it joins them. On v2 it is born inside its group. Whatever fails, `close`
and `undo` leave no descriptor, process or group behind.
"""

from __future__ import annotations

import os

from worker.runtime.lean import child, consoles, files, linux, tinyjson
from worker.runtime.lean.container import RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Mapping
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

    def __init__(
        self,
        container: Container,
        bundle: dict[str, Any],
        driver: V1 | V2,
        own_pids: int,
        others: Mapping[str, Container],
    ) -> None:
        """own_pids: our pid namespace. others: those that may lend a namespace."""
        self._own_pids = own_pids
        self._others = others
        self._pids_fd = -1
        self._container = container
        self._bundle = bundle
        self._driver = driver
        self._opened: list[int] = []
        self._go_fd = -1
        self.console: _socket.socket | None = None  # where the terminal's master will arrive
        self.cloned = False

    def clone(self, seccomp: bytes) -> int:
        """Make the child and its groups; returns its pid. It waits for `go`."""
        start, flags, group_fd, status_read = self._gather(seccomp)
        try:
            pid, pidfd = self._clone(flags, group_fd)
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

    def _gather(self, seccomp: bytes) -> tuple[child.Start, int, int, int]:
        """What the child needs, its namespaces, its cgroup on v2 or -1, our end of its status."""
        start = child.Start()
        start.bundle, start.directory = self._bundle, self._container.directory
        start.layers = self._bundle["annotations"]["dev.shoal.layers"].split("\n")
        start.seccomp, start.root_fd, start.group_fds = seccomp, -1, []
        flags = self._namespaces(start)
        start.stdio_fds, start.console_fd = self._streams()
        group_fd = self._enter_group()
        resources = self._bundle["linux"]["resources"]
        start.cgroup_paths = self._driver.to_join(self._container.id, resources)
        start.cgroup_views = self._driver.views(self._container.id, resources)
        start.go_fd, self._go_fd = os.pipe2(os.O_CLOEXEC)
        status_read, start.status_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._opened += [start.go_fd, start.status_fd]
        start.close_fds = [self._go_fd, status_read]
        return start, flags, group_fd, status_read

    def go(self) -> None:
        """Let the child join its groups and run the program."""
        try:
            os.write(self._go_fd, b"g")
        except BrokenPipeError:
            pass  # it has failed already and says why on the status pipe
        finally:
            self._close_go()

    def give_up(self) -> None:
        """Nobody waits for `go` any more."""
        self._close_go()

    def _close_go(self) -> None:
        if self._go_fd >= 0:
            os.close(self._go_fd)
            self._go_fd = -1

    def close(self) -> None:
        """Close what only the child needs."""
        for fd in self._opened:
            os.close(fd)
        self._opened = []

    def undo(self) -> None:
        """End and reap a child that must not run; it has not passed its wait for `go`."""
        self._close_go()
        if self.console is not None:
            self.console.close()
        if self.cloned:
            linux.kill_and_reap(self._container.pidfd)

    def _streams(self) -> tuple[tuple[int, int, int], int]:
        """The child's standard streams (-1: its own /dev/null), or where it sends its terminal."""
        if self._bundle["process"].get("terminal"):
            self.console, link = consoles.pair()
            self._opened.append(link.detach())
            return (-1, -1, -1), self._opened[-1]
        directory = self._container.directory
        stdout, stderr = (self._open(f"{directory}/{s}", os.O_RDWR) for s in files.STREAMS)
        stdin = -1
        if self._bundle["annotations"].get("dev.shoal.stdin"):
            # What never ends is open for writing on its own side: it needs nobody to hold it.
            once = self._bundle["annotations"]["dev.shoal.stdin"] == "once"
            access = os.O_RDONLY if once else os.O_RDWR
            stdin = self._open(f"{directory}/{files.INPUT}", access | os.O_NONBLOCK)
            os.set_blocking(stdin, True)
        return (stdin, stdout, stderr), -1

    def _namespaces(self, start: child.Start) -> int:
        """Note those that are joined; returns the flags of those that are made."""
        flags, start.netns_fd, start.donor_fd = 0, -1, -1
        for namespace in self._bundle["linux"]["namespaces"]:
            if namespace.get("container"):
                pidfd = self._lender(namespace["container"], namespace["type"])
                if namespace["type"] == "pid":
                    self._pids_fd = pidfd
                else:
                    start.donor_fd = pidfd
            elif namespace.get("path"):
                start.netns_fd = self._open(namespace["path"], os.O_RDONLY)
            else:
                flags |= _NAMESPACES.get(namespace["type"], 0)
        return flags

    def _lender(self, name: str, kind: str) -> int:
        """The first process of a container that lends a namespace. Raises: ValueError."""
        other = self._others.get(name)
        if other is None or other.state != RUNNING:
            raise ValueError(f"cannot join {kind.upper()} of a non running container: {name}")
        if kind == "ipc":
            text = files.read_text(f"{other.directory}/{files.BUNDLE_FILE}")
            if "dev.shoal.ipc" not in tinyjson.loads(text)["annotations"]:
                raise ValueError(
                    f"cannot join IPC of {name}: non-shareable IPC (hint: use IpcMode:shareable "
                    "for the donor container)"
                )
        return other.pidfd

    def _clone(self, flags: int, group_fd: int) -> tuple[int, int]:
        if self._pids_fd < 0:
            return linux.clone(flags, cgroup_fd=group_fd)
        return linux.clone_beside(self._pids_fd, self._own_pids, flags, cgroup_fd=group_fd)

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
