"""What is done to containers: start, stop, kill, pause, rename, update, remove, and their ends.

Each change of more than one step holds the container's lock. An end is settled exactly once: its
ground is taken up, its policy decides, and only then those who wait for it are told, so that what
they do next meets no remains. Containers of tasks may only be killed and stopped: the managers
decide about the rest.
"""

from __future__ import annotations

import asyncio
import signal as signals
from contextlib import suppress

import structlog

from engine.containers import config, names, restart, starts
from engine.containers.checks import NodeFacts, check_resources, check_restart_policy
from engine.containers.chores import Chores
from engine.containers.container import Container
from engine.containers.defaults import STOP_SIGNAL
from engine.containers.filling import Filler
from engine.containers.ground import Grounds
from engine.containers.probing import Prober
from engine.containers.requests import HostConfig, UpdateRequest
from engine.containers.service import Containers
from engine.containers.updates import merged, runtime_resources
from engine.http.errors import Refused
from shoal.clock import NS_PER_S
from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SwarmError,
    Unimplemented,
    violated,
)
from worker.runtime.api import ContainerStatus, Runtime
from worker.runtime.client import signal_number
from worker.volumes.api import Volumes

_log = structlog.get_logger()
FOLLOWERS_S = 1.0
"""Those who follow the log of what is removed have this long to get its last lines."""


class Lifecycle:
    """Changes containers; `Containers` shows them."""

    def __init__(
        self,
        *,
        containers: Containers,
        runtime: Runtime,
        grounds: Grounds,
        volumes: Volumes | None,
        filler: Filler,
        prober: Prober,
        facts: NodeFacts,
        chores: Chores,
    ) -> None:
        self._containers = containers
        self._runtime = runtime
        self._grounds = grounds
        self._volumes = volumes
        self._filler = filler
        self._prober = prober
        self._facts = facts
        self._chores = chores
        self._restarts: dict[str, asyncio.Task[None]] = {}
        containers.on_end(self._on_end)

    # Start ------------------------------------------------------------------------------------

    async def start(self, ref: str) -> None:
        """Run it. Raises: Refused 304 when it runs, 409; whatever keeps it from running."""
        container = self._own(ref)
        try:
            async with container.lock:
                _check_startable(container)
                container.restarts_in_a_row, container.pause_s = 0, 0.0
                await self._run(container)
        except SwarmError:
            if container.record.failure and container.record.host.auto_remove:
                self._chores.start(f"removal of {ref}", self._remove_itself(container))
            raise

    async def _run(self, container: Container) -> None:
        """Start it; the lock is held. Raises: SwarmError; the reason is in its record then."""
        before = container.record
        try:
            status = await self._launch(container)
        except SwarmError as error:
            failure = starts.explain(error, container.record)
            await self._note_failure(container, failure, started=before.started)
            raise failure from None
        container.take(status)
        container.restarting = False
        self._containers.publish(container, "start")
        self._prober.begin(container)
        self._containers.look_for_end(container)
        container.wake()

    async def _launch(self, container: Container) -> ContainerStatus:
        await self._finish_making(container)
        laid = await self._grounds.lay(container)
        try:
            wanted = config.container_config(container.record, laid.ground)
            await self._containers.save(
                container, durable=False, started=True, failure="", failure_code=0,
                manually_stopped=False, sandbox=laid.sandbox,
            )  # fmt: skip
            await self._runtime.configure(wanted)
            return await self._runtime.start(container.id)
        except BaseException:
            await self._grounds.take_up(container)
            raise

    async def _finish_making(self, container: Container) -> None:
        """Make what is missing when its making was cut short."""
        record = container.record
        if container.status is None:
            supposed = config.container_config(record, self._grounds.supposed(record))
            made = await self._runtime.create(supposed)
            container.take(made)
        await self._filler.fill(container)

    async def _note_failure(
        self, container: Container, failure: SwarmError, *, started: bool
    ) -> None:
        """A container that has never run stays `created`, however often it was tried."""
        status = await self._runtime_status(container)
        if status is not None:
            container.take(status)
        await self._containers.note(
            container, started=started, failure=failure.message,
            failure_code=starts.exit_code(failure), sandbox=None,
            settled_ns=0 if status is None else status.started_at_ns,
        )  # fmt: skip

    async def _runtime_status(self, container: Container) -> ContainerStatus | None:
        try:
            return await self._runtime.status(container.id)
        except NotFound:
            return None

    # Stop, kill, pause ------------------------------------------------------------------------

    async def stop(self, ref: str, *, signal: str = "", timeout_s: int | None = None) -> None:
        """Stop signal, then SIGKILL. Raises: Refused 304 when it does not run.

        timeout_s: None: the container's own; negative: for ever.
        """
        container = await self._found(ref)
        if not container.running:
            raise Refused(304)
        number = _signal(signal or container.record.config.stop_signal or STOP_SIGNAL)
        await self._note_stopped(container)
        if await self._give_up_restart(container):
            self._containers.publish(container, "stop")
            return
        wait_s = config.stop_timeout_s(container.record) if timeout_s is None else timeout_s
        await self._end(container, number, None if wait_s < 0 else wait_s)
        self._containers.publish(container, "stop")

    async def restart(self, ref: str, *, signal: str = "", timeout_s: int | None = None) -> None:
        """Stop it if it runs, and start it. Raises: as `start`."""
        container = self._own(ref)
        try:
            await self.stop(container.id, signal=signal, timeout_s=timeout_s)
        except Refused as refused:
            if refused.status != 304:
                raise
        if container.removed:
            raise NotFound(f"No such container: {ref}")
        await self.start(container.id)
        self._containers.publish(container, "restart")

    async def kill(self, ref: str, signal: str = "") -> None:
        """Send a signal; SIGKILL is waited for. Raises: Refused 409 when it does not run."""
        container = await self._found(ref)
        number = _signal(signal or "SIGKILL")
        if not container.has_process:
            if await self._give_up_restart(container):
                return
            raise Refused(
                409,
                f"Cannot kill container: {ref}: Container {container.id} is not running",
            )
        await self._note_stopped(container)
        if number == signals.SIGKILL:
            await self._end(container, number, None)
            return
        await self._send(container, number)

    async def _found(self, ref: str) -> Container:
        """The container; a start under way has ended: its program may have spoken already."""
        container = self._containers.find(ref)
        if not container.running:
            async with container.lock:
                pass
        return container

    async def pause(self, ref: str) -> None:
        """Freeze it. Raises: Refused 409."""
        container = self._own(ref)
        async with container.lock:
            if not container.has_process:
                raise FailedPrecondition(f"Container {container.id} is not running")
            if container.state == "paused":
                raise FailedPrecondition(f"Container {container.id} is already paused")
            await self._runtime.pause(container.id)
            await self._refresh(container)
            self._containers.publish(container, "pause")

    async def unpause(self, ref: str) -> None:
        """Thaw it. Raises: Refused."""
        container = self._own(ref)
        async with container.lock:
            if container.state != "paused":
                raise Refused(500, f"Container {container.id} is not paused")
            await self._runtime.unpause(container.id)
            await self._refresh(container)
            self._containers.publish(container, "unpause")

    async def _send(self, container: Container, number: int) -> None:
        try:
            await self._runtime.kill(container.id, number)
        except FailedPrecondition:
            return  # it has ended by itself
        self._containers.publish(container, "kill", {"signal": str(number)})

    async def _end(self, container: Container, number: int, wait_s: float | None) -> None:
        """Signal it, wait, kill it; return when its end is settled."""
        ends = container.ends

        def over() -> bool:
            return container.ends > ends or container.removed

        await self._send(container, number)
        try:
            async with asyncio.timeout(wait_s):
                await container.until(over)
        except TimeoutError:
            await self._send(container, signals.SIGKILL)
            await container.until(over)

    async def _note_stopped(self, container: Container) -> None:
        if not container.task and not container.record.manually_stopped:
            await self._containers.mark(container, manually_stopped=True)

    async def _give_up_restart(self, container: Container) -> bool:
        """End a container that waits to be started again. Result: whether it did."""
        waiting = self._restarts.pop(container.id, None)
        if waiting is None or not container.restarting:
            return False
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        if container.has_process:
            return False
        self._settle(container)
        return True

    async def _refresh(self, container: Container) -> None:
        container.take(await self._runtime.status(container.id))
        container.wake()

    # The end of a run -------------------------------------------------------------------------

    def _on_end(self, container: Container) -> None:
        container.ending = True
        self._chores.start(f"end of {container.id}", self._after_end(container))

    async def _after_end(self, container: Container) -> None:
        async with container.lock:
            await self.settle_end(container)
        if container.record.host.auto_remove and not container.running and not container.removed:
            await self._remove_itself(container)

    async def settle_end(self, container: Container) -> None:
        """Take the ground up and decide what follows; the lock is held. Once per run."""
        if container.removed or not container.is_unsettled:
            container.ending = False
            container.wake()
            return
        status = container.status
        if status is None:
            violated("an end without a status", container=container.id)
        await self._prober.end(container)
        if status.oom_killed:
            self._containers.publish(container, "oom")
        self._containers.publish(container, "die", {"exitCode": str(container.exit_code)})
        await self._grounds.take_up(container)
        again = self._is_wanted_again(container)
        await self._containers.note(
            container,
            sandbox=None,
            settled_ns=status.started_at_ns,
            restart_count=container.record.restart_count + int(again),
        )
        if again:
            ran_s = (status.finished_at_ns - status.started_at_ns) / NS_PER_S
            self.start_later(container, restart.next_pause_s(container.pause_s, ran_s))
        else:
            self._settle(container)

    def _is_wanted_again(self, container: Container) -> bool:
        record = container.record
        return restart.wanted(
            record.host.restart_policy,
            exit_code=container.exit_code,
            restarts=container.restarts_in_a_row,
            manually_stopped=record.manually_stopped or record.removing,
        )

    def start_later(self, container: Container, pause_s: float) -> None:
        """Start it after a pause, unless somebody stops it before."""
        container.pause_s = pause_s
        container.restarts_in_a_row += 1
        container.restarting, container.ending = True, False
        container.wake()
        self._restarts[container.id] = self._chores.begin(
            f"restart of {container.id}", self._start_again(container)
        )

    async def _start_again(self, container: Container) -> None:
        await asyncio.sleep(container.pause_s)
        async with container.lock:
            if not container.restarting or container.removed:
                return
            try:
                await self._run(container)
            except SwarmError as error:
                _log.warning("container.restart_failed", id=container.id, reason=str(error))
                self._settle(container)
            finally:
                self._restarts.pop(container.id, None)

    def _settle(self, container: Container) -> None:
        container.restarting = container.ending = False
        container.ends += 1
        container.wake()

    async def _remove_itself(self, container: Container) -> None:
        try:
            await self.remove(container.id, volumes=True)
        except (NotFound, Refused):
            return  # somebody else was faster, or has started it

    # Change, remove ---------------------------------------------------------------------------

    async def rename(self, ref: str, name: str) -> None:
        """Give it another name. Raises: Refused 409 when somebody has it, InvalidArgument."""
        container = self._own(ref)
        if not name:
            raise InvalidArgument("Neither old nor new names may be empty")
        async with container.lock:
            old, new = container.name, names.check_name(name)
            if old == new:
                raise InvalidArgument("Renaming a container with the same name as its current name")
            try:
                self._containers.reserve(new, container.id)
            except Refused as refused:
                raise Refused(409, f"Error when allocating new name: {refused}") from None
            try:
                await self._containers.save(container, name=new)
            except BaseException:
                self._containers.release(new, container.id)
                raise
            self._containers.release(old, container.id)
            await self._grounds.rename(container)
            self._containers.publish(container, "rename", {"oldName": f"/{old}"})

    async def update(self, ref: str, asked: UpdateRequest) -> list[str]:
        """Change limits and restart policy. Result: warnings. Raises: InvalidArgument."""
        container = self._own(ref)
        async with container.lock:
            record = container.record
            if record.removing:
                raise Refused(409, 'Container is marked for removal and cannot be "update".')
            check_restart_policy(asked.restart_policy)
            host = merged(record.host, asked)
            check_resources(host, self._facts)
            if record.host.auto_remove and asked.restart_policy.name not in {"", "no"}:
                raise InvalidArgument(
                    "Restart policy cannot be updated because AutoRemove is enabled for the"
                    " container"
                )
            if container.has_process:
                await self._update_running(container, asked, host)
            await self._containers.save(container, host=host)
            self._containers.publish(container, "update")
        return []

    async def _update_running(
        self, container: Container, asked: UpdateRequest, host: HostConfig
    ) -> None:
        resources = runtime_resources(asked, host)
        if resources is None:
            return
        update = getattr(self._runtime, "update", None)
        if update is None:
            raise Unimplemented("update: this version's runtime changes no limits while it runs")
        await update(container.id, resources)

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it and what it has written. Raises: NotFound, Refused 409."""
        container = self._own(ref)
        if container.record.removing and container.lock.locked():
            raise Refused(409, f"removal of container {container.id} is already in progress")
        if not force:
            _check_removable(container)
        elif container.restarting:
            await self._give_up_restart(container)
        async with container.lock:
            if container.removed:
                raise NotFound(f"No such container: {ref}")
            if not force:
                _check_removable(container)
            await self.remove_locked(container, volumes=volumes)

    async def remove_locked(self, container: Container, *, volumes: bool) -> None:
        """Remove it, whatever it does; the lock is held. Begun again after a crash."""
        await self._containers.mark(container, removing=True, removing_volumes=volumes)
        if container.has_process:
            await self._send(container, signals.SIGKILL)
            await container.until(lambda: not container.has_process)
        await self.settle_end(container)
        with suppress(TimeoutError):  # of who does not read
            async with asyncio.timeout(FOLLOWERS_S):
                await container.until(lambda: not container.followers)
        with suppress(NotFound):  # never made, lost, or removed before a crash
            await self._runtime.remove(container.id, force=True)
        await self._grounds.take_up(container)
        if volumes:  # while the record is there: a crash must not leave them behind
            await self._remove_volumes(container)
        await self._containers.erase(container)
        self._containers.forget(container)
        self._containers.publish(container, "destroy")

    async def _remove_volumes(self, container: Container) -> None:
        for point in container.record.mounts:
            if self._volumes is None or not (point.anonymous and point.name):
                continue
            try:
                await self._volumes.remove(point.name, force=True, user=container.id)
            except SwarmError as error:  # another container uses it by now
                _log.info("container.volume_kept", volume=point.name, reason=str(error))

    def _own(self, ref: str) -> Container:
        """One of the engine's. Raises: NotFound, Refused 409 for a task's."""
        container = self._containers.find(ref)
        if container.task:
            raise Refused(
                409,
                f"container {container.name} is a task of a service: change the service instead",
            )
        return container


def _signal(name: str) -> int:
    try:
        return signal_number(name)
    except InvalidArgument:
        raise InvalidArgument(f"Invalid signal: {name}") from None


def _check_startable(container: Container) -> None:
    record = container.record
    if container.removed:
        raise NotFound(f"No such container: {container.id}")
    if record.removing:
        raise Refused(409, "container is marked for removal and cannot be started")
    if record.dead:
        raise Refused(409, f"container {container.id} has lost its files: remove it")
    if container.state == "paused":
        raise Refused(409, "cannot start a paused container, try unpause instead")
    if container.running:
        raise Refused(304)


def _check_removable(container: Container) -> None:
    if not container.running or (container.ending and not container.has_process):
        return
    word, remedy = "running", "Stop the container"
    if container.state == "paused":
        word, remedy = "paused", "Unpause and then stop the container"
    elif container.restarting:
        word = "restarting"
    raise Refused(
        409,
        f"You cannot remove a {word} container {container.id}. {remedy} before attempting removal"
        " or force remove",
    )
