"""The node's processes, kept running: started when wanted, started again when they die.

A child is level-triggered: `start` and `stop` say what is wanted, one supervised loop makes it so.
Pauses between restarts double from 0.1 s to 5 s and begin anew after 5 s of running.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from shoal.aio.backoff import Backoff
from shoal.aio.signal import Signal
from shoal.settings.process import take_reason
from swarmd.process import ChildProcess, describe_exit, end_leftover, write_pid_file
from swarmd.settings import DaemonSettings

MANAGER = "manager"
WORKER = "worker"
RESTART_PAUSE_MAX_S = 5.0
STEADY_AFTER_S = 5.0
_MODULES = {MANAGER: "manager", WORKER: "engine"}  # the worker, with the Docker API in it

CommandFor = Callable[[DaemonSettings, str], Sequence[str]]

_log = structlog.get_logger()


def daemon_command(settings: DaemonSettings, name: str) -> list[str]:
    """The command line of a process of the node. name: MANAGER or WORKER."""
    command = [
        sys.executable, "-P", "-m", _MODULES[name],
        "--state-dir", str(settings.paths.state),
        "--run-dir", str(settings.paths.run),
        "--log-level", settings.log_level,
        "--parent-pid", str(os.getpid()),
        "--lock-keys-stdin",
    ]  # fmt: skip
    if name == WORKER:
        command += ["--hostname", settings.hostname, "--cgroup-parent", settings.cgroup_parent]
        if settings.docker_address:
            command += ["--docker-addr", settings.docker_address]
            command += ["--docker-tls", str(settings.docker_tls)]
        high, low = settings.image_water
        command += ["--image-high-water", str(high), "--image-low-water", str(low)]
        if settings.userns_remap:
            command += [f"--userns-remap={settings.userns_remap}"]
        if settings.selinux_enabled:
            command.append("--selinux-enabled")
        if not settings.ingress_ipv6:
            command.append("--no-ingress-ipv6")
        command += [f"--insecure-registry={one}" for one in settings.insecure_registries]
        command += [f"--registry-mirror={one}" for one in settings.registry_mirrors]
        command += [f"--generic-resource={one}" for one in settings.generic_resources]
        command += [f"--generic-device={one}" for one in settings.generic_devices]
    return command


class Child:
    """One process of the node. Give `run` to a supervisor; `start` and `stop` at will."""

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        pid_file: Path,
        *,
        stdin: Callable[[], bytes] = bytes,
    ) -> None:
        """stdin: what each process reads from its standard input; what no argument may show."""
        self.name = name
        self.restarts = 0
        self.last_exit = ""
        self._command = command
        self._stdin = stdin
        self._pid_file = pid_file
        self._wanted = False
        self._wake = Signal()
        self._process: ChildProcess | None = None
        self._backoff = Backoff(max_s=RESTART_PAUSE_MAX_S)

    @property
    def wanted(self) -> bool:
        """Whether it should run."""
        return self._wanted

    @property
    def pid(self) -> int | None:
        """Its process id, None while it does not run."""
        return self._process.pid if self._process and self._process.running else None

    def why_not(self) -> str:
        """Why nobody may answer at its socket, for people."""
        if not self._wanted:
            return f"the {self.name} process is not meant to run on this node"
        if self.pid is not None:
            before = f"; the one before {self.last_exit}" if self.last_exit else ""
            return f"the {self.name} process (pid {self.pid}) does not answer yet{before}"
        if self.last_exit:
            return f"the {self.name} process is being started again, as it {self.last_exit}"
        return f"the {self.name} process is being started"

    def start(self) -> None:
        """Want it to run; at once, whatever pause was left."""
        self._wanted = True
        self.last_exit = ""
        self._backoff.reset()
        self._wake.set()

    async def stop(self) -> None:
        """Want it not to run, and wait until it does not: SIGTERM, 8 s, SIGKILL."""
        self._wanted = False
        self._wake.set()
        if self._process is not None:
            await self._process.end()

    async def restart(self) -> None:
        """End the process and let a new one start. Nothing if it is not wanted."""
        if self._wanted and self._process is not None:
            await self._process.end()

    async def run(self) -> None:
        """Keep the process as it is wanted, until cancelled; the process ends with the loop."""
        leftover = await end_leftover(self._pid_file)
        if leftover is not None:
            _log.warning("process.leftover_ended", child=self.name, child_pid=leftover)
        while True:
            while not self._wanted:
                await self._wake.wait()
            await self._live()
            if self._wanted:
                self.restarts += 1
                pause_s = self._backoff.next_s(spread=0)
                _log.warning(
                    "process.restarting", child=self.name, pause_s=pause_s, restarts=self.restarts
                )
                await self._wake.wait(pause_s)

    async def _live(self) -> None:
        """One process from start to end."""
        self._wake = Signal()  # a wake-up of before this start must not shorten the next pause
        self._reason()  # of one that no swarmd was there to hear
        process = ChildProcess(self._command(), self._stdin())
        self._process = process
        try:
            write_pid_file(self._pid_file, process.pid)
            _log.info("process.started", child=self.name, child_pid=process.pid)
            status = await process.wait()
        finally:
            await process.end()
            self._pid_file.unlink(missing_ok=True)
            self._process = None
        reason = self._reason()  # not awaited: whoever stops us cancels us as soon as it has ended
        self.last_exit = describe_exit(status) + (f": {reason}" if reason else "")
        lived_s = asyncio.get_running_loop().time() - process.started_s
        if lived_s > STEADY_AFTER_S:
            self._backoff.reset()
        _log.info(
            "process.ended",
            child=self.name,
            child_pid=process.pid,
            how=self.last_exit,
            lived_s=round(lived_s, 3),
        )

    def _reason(self) -> str:
        return take_reason(self._pid_file.parent, self.name)
