"""Containers in user namespaces of their own: started by a process that prepares them.

The supervisor cannot enter a user namespace and come back, so `preparing` does, in a clone that
ends once the container's first process is there. That one is the supervisor's own child: from then
on the container is like any other.
"""

from __future__ import annotations

import os
import time

from worker.runtime.lean import child, linux, preparing, tinyjson
from worker.runtime.lean.launching import Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from worker.runtime.lean.container import Container
    from worker.runtime.lean.supervisor import Supervisor

_DIED = "the process that prepares containers with mapped ids has died"


class RemappedLaunch(Launch):
    """One start by a process that prepares it; used once."""

    helper_pidfd = -1

    def clone_helper(self, seccomp: bytes) -> tuple[int, int]:
        """Make groups and helper; returns where the helper reports, and the child's status."""
        prepare = preparing.Prepare()
        prepare.start, prepare.flags, prepare.group_fd, status_read = self._gather(seccomp)
        prepare.lenders = self._lenders()
        prepare.pids_fd = self._pids_fd
        report_read, prepare.status_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._opened.append(prepare.status_fd)
        prepare.close_fds = [*prepare.start.close_fds, report_read]
        try:
            if prepare.group_fd < 0:
                self._make_group()
            pid, self.helper_pidfd = linux.clone(0)
        except OSError:
            os.close(report_read)
            os.close(status_read)
            raise
        if pid == 0:
            preparing.run(prepare)
        return report_read, status_read

    def _lenders(self) -> list[int]:
        names = [n["container"] for n in self._bundle["linux"]["namespaces"] if "container" in n]
        return [self._others[name].pid for name in names]


class Remapped:
    """Starts such containers for the supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = supervisor.loop

    def start(self, container: Container, bundle: dict[str, Any]) -> None:
        """Begin; the supervisor hears of the end by its child or `_failed`. Raises: OSError."""
        supervisor = self._supervisor
        launch = RemappedLaunch(
            container, bundle, supervisor.driver, supervisor.own_pids, supervisor.containers
        )
        container.failure = None
        supervisor.reset_stdio(container.id)
        supervisor.driver.place(container.id, container.cgroup_parent)
        try:
            seccomp = supervisor.seccomp_program(bundle["annotations"].get("dev.shoal.seccomp", ""))
            report_fd, container.status_fd = launch.clone_helper(seccomp)
        except BaseException:
            launch.undo()
            raise
        finally:
            launch.close()
        self._loop.watch(report_fd, lambda _: self._on_report(container, launch, report_fd))
        self._loop.watch(launch.helper_pidfd, lambda _: self._on_helper_end(launch))

    def _on_helper_end(self, launch: RemappedLaunch) -> None:
        self._loop.forget(launch.helper_pidfd)
        os.waitid(os.P_PIDFD, launch.helper_pidfd, os.WEXITED | os.WNOHANG)
        os.close(launch.helper_pidfd)

    def _on_report(self, container: Container, launch: RemappedLaunch, report_fd: int) -> None:
        try:
            text = os.read(report_fd, 4096)
        except BlockingIOError:
            return
        self._loop.forget(report_fd)
        os.close(report_fd)
        word = tinyjson.loads(text.decode()) if text else {}
        if "pid" in word:
            container.pidfd = os.pidfd_open(word["pid"])
            self._supervisor.follow_start(container, launch, word["pid"])
            return
        launch.give_up()
        if launch.console is not None:
            launch.console.close()
        os.close(container.status_fd)
        container.status_fd = -1
        container.failure = word or {"code": child.SETUP_FAILED, "error": _DIED}
        container.started_at_ns = time.time_ns()
        self._supervisor.finish(container, container.failure["code"])
