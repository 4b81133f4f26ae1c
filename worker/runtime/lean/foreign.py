"""Containers whose runtime is an installed one, `crun` or `runc`, over the same bundle.

A driver process (`oci`) has the container created and started; from then on the supervisor treats
it like one it has inherited: its first process is the keeper's child, watched through a pidfd, its
exit code comes from the keeper's record. Signals, exec, limits, counters and streams are ours. The
runtime's own remains are deleted when the container has ended.
"""

from __future__ import annotations

import os
import time

from worker.runtime.lean import consoles, files, linux, oci, terminals, tinyjson
from worker.runtime.lean.launching import Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from worker.runtime.lean.container import Container
    from worker.runtime.lean.supervisor import Supervisor

RUNTIMES = ("crun", "runc")


class ForeignLaunch(Launch):
    """One start by a driver process; used once."""

    driver_pidfd = -1

    def clone_driver(self, run_dir: str, seccomp: bytes) -> int:
        """Make the driver; returns the descriptor it reports on."""
        drive = oci.Drive()
        name, annotations = self._container.id, self._bundle["annotations"]
        drive.bundle, drive.directory, drive.id = self._bundle, self._container.directory, name
        drive.layers = annotations["dev.shoal.layers"].split("\n")
        drive.state_dir = state_dir(run_dir, annotations["dev.shoal.runtime"])
        drive.console_path = f"{run_dir}/{name[:12]}.console"
        drive.group = self._driver.group(name)
        drive.namespaces = [self._resolved(n) for n in self._bundle["linux"]["namespaces"]]
        drive.seccomp = seccomp if annotations["dev.shoal.runtime"] == "crun" else b""
        drive.stdio_fds, drive.console_fd = self._streams()
        drive.go_fd, self._go_fd = os.pipe2(os.O_CLOEXEC)
        status_read, drive.status_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._opened += [drive.go_fd, drive.status_fd]
        drive.close_fds = [self._go_fd, status_read]
        try:
            pid, self.driver_pidfd = linux.clone(linux.CLONE_NEWNS)
        except OSError:
            os.close(status_read)
            raise
        if pid == 0:
            oci.run(drive)
        return status_read

    def _resolved(self, namespace: dict[str, str]) -> dict[str, str]:
        if "container" not in namespace:
            return namespace
        kind = namespace["type"]
        self._lender(namespace["container"], kind)
        pid = self._others[namespace["container"]].pid
        return {"type": kind, "path": f"/proc/{pid}/ns/{kind}"}


class Foreign:
    """Starts and cleans up such containers for the supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = supervisor.loop

    def start(self, container: Container, bundle: dict[str, Any]) -> None:
        """Begin; the supervisor hears of the end by `started` or `failed`. Raises: OSError."""
        supervisor = self._supervisor
        launch = ForeignLaunch(
            container, bundle, supervisor.driver, supervisor.own_pids, supervisor.containers
        )
        container.is_made, container.failure = False, None
        supervisor.reset_stdio(container.id)
        supervisor.driver.place(container.id, container.cgroup_parent)
        try:
            seccomp = supervisor.seccomp_program(bundle["annotations"].get("dev.shoal.seccomp", ""))
            container.status_fd = launch.clone_driver(supervisor.run_dir, seccomp)
        except BaseException:
            launch.undo()
            raise
        finally:
            launch.close()
        self._loop.watch(container.status_fd, lambda _: self._on_status(container, launch))
        self._loop.watch(launch.driver_pidfd, lambda _: self._on_driver_end(launch))

    def _on_driver_end(self, launch: ForeignLaunch) -> None:
        self._loop.forget(launch.driver_pidfd)
        os.waitid(os.P_PIDFD, launch.driver_pidfd, os.WEXITED | os.WNOHANG)
        os.close(launch.driver_pidfd)

    def _on_status(self, container: Container, launch: ForeignLaunch) -> None:
        try:
            text = os.read(container.status_fd, 4096)
        except BlockingIOError:
            return
        word = tinyjson.loads(text.decode()) if text else {}
        if "pid" in word:
            self._created(container, launch, word["pid"])
            return
        self._supervisor.close_status(container)
        if launch.console is not None:
            launch.console.close()
        launch.give_up()
        if word or not container.is_made:
            died = {"code": 128, "error": "the driver of the runtime died"}
            self._failed(container, word or died)
        else:
            self._supervisor.program_runs(container)

    def _created(self, container: Container, launch: ForeignLaunch, pid: int) -> None:
        """The container is there, and waits: note it, take its terminal, let it run."""
        supervisor = self._supervisor
        container.pidfd = os.pidfd_open(pid)
        supervisor.record_start(container, pid, is_child=False)
        container.is_made = True
        supervisor.watch_exit(container)
        if launch.console is not None:
            master = consoles.receive(launch.console)
            if master >= 0:
                ends = terminals.open_ends(master, container.directory)
                supervisor.terminals.add(container.id, ends)
        supervisor.announce(container.id)
        launch.go()

    def _failed(self, container: Container, failure: dict[str, Any]) -> None:
        container.failure = failure
        if container.is_made:
            self.clean_up(container.id)  # ends its process, which tells the rest
        else:
            container.started_at_ns = time.time_ns()
            self._supervisor.finish(container, failure["code"])

    def clean_up(self, name: str) -> None:
        """Have the runtime delete what it keeps of a container, its process included."""
        for runtime in RUNTIMES:
            place = state_dir(self._supervisor.run_dir, runtime)
            if os.path.exists(f"{place}/{name}"):
                self._delete(runtime, place, name)

    def _delete(self, runtime: str, place: str, name: str) -> None:
        path = f"{self._supervisor.containers_dir}/{name}/{files.BUNDLE_FILE}"
        program = tinyjson.loads(files.read_text(path))["annotations"]["dev.shoal.runtime-path"]
        null = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0)
        arguments = [program, "--root", place, "delete", "--force", name]
        pid = os.posix_spawn(program, arguments, {"PATH": os.defpath}, file_actions=[null])
        pidfd = os.pidfd_open(pid)

        def ended(_: int) -> None:
            self._loop.forget(pidfd)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
            os.close(pidfd)

        self._loop.watch(pidfd, ended)


def state_dir(run_dir: str, runtime: str) -> str:
    """Where a runtime keeps what it knows of our containers."""
    return f"{run_dir}/{runtime}"
