"""Further processes in containers: `docker exec`.

An instance is made, started at most once, and known until EXECS_MAX newer ones have ended or its
container is gone. Instances are memory only: with the worker process they are forgotten, as with
dockerd; what they run goes on. Why a program could not be run is no error of the call but is
written to the client, and the exit code is 127 when it is not there, else 126.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

from engine.containers import detach
from engine.containers.chores import Chores
from engine.containers.container import Container
from engine.containers.parts import ContainerParts
from engine.containers.requests import Docker
from engine.containers.service import Containers
from engine.http.errors import Refused
from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SwarmError,
)
from worker.runtime.interactive import Channel, ExecConfig, ExecStatus, TerminalSize

EXECS_MAX = 4096
STARTED_S = 10.0
COULD_NOT_RUN = (126, 127)
_FAILED = "OCI runtime exec failed: exec failed: unable to start container process: "


class ExecRequest(Docker, frozen=True, kw_only=True):
    """What is asked for at `exec`."""

    user: str = ""
    privileged: bool = False
    tty: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach: bool = False
    detach_keys: str = ""
    env: list[str] | None = None
    working_dir: str = ""
    cmd: list[str] | None = None
    console_size: list[int] | None = None


class Exec:
    """One instance; changed by `Execs` alone."""

    def __init__(self, identifier: str, container: Container, request: ExecRequest) -> None:
        self.id = identifier
        self.container = container
        self.request = request
        self.keys = detach.parse_keys(request.detach_keys)
        self.begun = False
        self.started = asyncio.Event()
        """It runs, or it is known why it cannot."""
        self.ended = asyncio.Event()
        self.pid = 0
        self.exit_code: int | None = None
        self.error = ""

    @property
    def command(self) -> str:
        """Program and arguments, as events tell them."""
        return " ".join(self.request.cmd or ())

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.started.is_set() and not self.ended.is_set()


class Execs:
    """The instances of the node."""

    def __init__(self, parts: ContainerParts) -> None:
        self._containers: Containers = parts.containers
        self._runtime = parts.needs.runtime
        self._chores: Chores = parts.chores
        self._execs: dict[str, Exec] = {}

    def create(self, ref: str, request: ExecRequest) -> Exec:
        """Make an instance; nothing runs. Raises: NotFound, InvalidArgument, FailedPrecondition."""
        container = self._startable(ref)
        if not request.cmd or not request.cmd[0]:
            raise InvalidArgument("No exec command specified")
        self._make_room()
        made = Exec(secrets.token_hex(32), container, request)
        self._execs[made.id] = made
        container.exec_ids = (*container.exec_ids, made.id)
        self._publish(made, f"exec_create: {made.command}")
        return made

    def find(self, identifier: str) -> Exec:
        """Raises: NotFound."""
        found = self._execs.get(identifier)
        if found is None or found.container.removed:
            self._execs.pop(identifier, None)
            raise NotFound(f"No such exec instance: {identifier}")
        return found

    def begin(self, identifier: str) -> Exec:
        """Mark it started, so that nobody else does. Raises: NotFound, Refused 409."""
        one = self.find(identifier)
        if one.ended.is_set():
            raise Refused(409, f"Error: Exec command {one.id} has already run")
        if one.begun:
            raise Refused(409, f"Error: Exec command {one.id} is already running")
        self._startable(one.container.id)
        one.begun = True
        return one

    async def start(self, one: Exec, size: TerminalSize | None, *, attached: bool) -> Channel:
        """Run it, once it is begun. Raises: SwarmError; its exit code is known then."""
        self._publish(one, f"exec_start: {one.command}")
        try:
            channel = await self._runtime.exec_start(
                one.container.id, one.id, _config(one, size, attached=attached)
            )
        except SwarmError as error:
            self._settle(one, ExecStatus(id=one.id, container="", exit_code=126,
                                         error=error.message))  # fmt: skip
            raise
        except BaseException:
            self._settle(one, ExecStatus(id=one.id, container="", exit_code=126))
            raise
        self._chores.start(f"exec {one.id}", self._follow(one))
        return channel

    async def failure(self, one: Exec) -> str:
        """Why its program could not be run, in Docker's words; empty when it runs or has run."""
        await one.started.wait()
        return f"{_FAILED}{one.error}: unknown" if one.error else ""

    def note_detached(self, one: Exec) -> None:
        """Its client has typed the detach keys."""
        self._publish(one, "exec_detach")

    async def resize(self, identifier: str, size: TerminalSize) -> None:
        """Change the size of its terminal. Raises: NotFound, Refused 500."""
        one = self.find(identifier)
        try:
            async with asyncio.timeout(STARTED_S):
                await one.started.wait()
            await self._runtime.exec_resize(one.id, size)
        except (FailedPrecondition, NotFound, TimeoutError):
            raise Refused(500, "cannot resize a stopped container: unknown") from None

    async def _follow(self, one: Exec) -> None:
        """Learn what becomes of it."""
        try:
            now = await self._runtime.exec_status(one.id)
            one.pid = now.pid
            if now.exit_code is None:
                one.started.set()
                now = await self._runtime.exec_wait(one.id)
        except NotFound:  # the container was removed
            now = ExecStatus(id=one.id, container=one.container.id, exit_code=137)
        except SwarmError as error:
            now = ExecStatus(id=one.id, container="", exit_code=255, error=error.message)
        self._settle(one, now)

    def _settle(self, one: Exec, status: ExecStatus) -> None:
        one.exit_code = 255 if status.exit_code is None else status.exit_code
        if not one.started.is_set() and one.exit_code in COULD_NOT_RUN:
            one.error = status.error
            one.exit_code = failure_code(status.error, one.request)
        one.started.set()
        one.ended.set()
        container = one.container
        container.exec_ids = tuple(other for other in container.exec_ids if other != one.id)
        self._publish(one, "exec_die", {"exitCode": str(one.exit_code)})

    def _startable(self, ref: str) -> Container:
        container = self._containers.find_running(ref)
        if container.state == "paused":
            raise FailedPrecondition(
                f"Container {container.id} is paused, unpause the container before exec"
            )
        return container

    def _make_room(self) -> None:
        """Forget who has ended longest ago, then who was made longest ago and never started."""
        if len(self._execs) < EXECS_MAX:
            return
        for useless in (
            lambda one: one.container.removed or one.ended.is_set(),
            lambda one: not one.begun,
        ):
            found = next((one for one in self._execs.values() if useless(one)), None)
            if found is not None:
                del self._execs[found.id]
                return
        raise ResourceExhausted(f"exec: {EXECS_MAX} processes run already: end some of them")

    def _publish(self, one: Exec, action: str, attributes: Mapping[str, str] | None = None) -> None:
        told = {"execID": one.id, **(attributes or {})}
        self._containers.publish(one.container, action, told)


def _config(one: Exec, size: TerminalSize | None, *, attached: bool) -> ExecConfig:
    request = one.request
    return ExecConfig(
        args=tuple(request.cmd or ()),
        env=tuple(request.env or ()),
        cwd=request.working_dir,
        user=request.user,
        tty=request.tty,
        stdin=attached and request.attach_stdin,
        stdout=attached and request.attach_stdout,
        stderr=attached and request.attach_stderr,
        privileged=request.privileged,
        size=size or terminal_size(request.console_size),
    )


def failure_code(error: str, request: ExecRequest) -> int:
    """127 when it is the program that is not there, else 126. Source: moby daemon/errors.go."""
    text, program = error.lower(), (request.cmd or [""])[0].lower()
    missing = "executable file not found" in text or "no such file or directory" in text
    return 127 if missing and program in text else 126


def terminal_size(given: list[int] | None) -> TerminalSize | None:
    """Height and width, if both are known. Raises: InvalidArgument."""
    if not given or not any(given):
        return None
    if len(given) != 2 or not all(0 < side < 1 << 16 for side in given):
        raise InvalidArgument("ConsoleSize: height and width must be 1 to 65535")
    return TerminalSize(height=given[0], width=given[1])


def worded(one: Exec) -> dict[str, Any]:
    """`GET /exec/{id}/json`."""
    request = one.request
    program, *arguments = request.cmd or [""]
    process: dict[str, Any] = {
        "tty": request.tty,
        "entrypoint": program,
        "arguments": arguments,
        "privileged": request.privileged,
    }
    return {
        "ID": one.id,
        "Running": one.running,
        "ExitCode": one.exit_code,
        "ProcessConfig": process | ({"user": request.user} if request.user else {}),
        "OpenStdin": request.attach_stdin,
        "OpenStderr": request.attach_stderr,
        "OpenStdout": request.attach_stdout,
        "CanRemove": False,
        "ContainerID": one.container.id,
        "DetachKeys": one.keys if request.detach_keys else "",
        "Pid": one.pid,
    }
