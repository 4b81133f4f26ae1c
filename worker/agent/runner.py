"""One task on this node: walks it up the ladder, one step at a time.

The runner owns the task's container and network, and holds its volumes. A step that fails before
the start rejects the task, after it fails it; what may pass (a process of the runtime being
restarted) is tried again.
When the manager wants the task gone, whatever is under way is given up and undone. A task that
has ended has no running container: the runner does not finish before that is so.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Protocol, TypeVar

import structlog

from shoal.aio.signal import Signal
from shoal.clock import Clock
from shoal.errors import AlreadyExists, FailedPrecondition, NotFound, SwarmError
from shoal.model.defaults import listen_timeout_ns, stop_grace_period_ns
from shoal.model.enums import TaskState
from shoal.model.files import file_ids, swapped
from shoal.model.objects import Task
from shoal.model.types import ContainerStatus as TaskContainer
from shoal.model.types import PortConfig, PortStatus, TaskStatus
from worker.agent.core import (
    Step,
    exit_state,
    failure_state,
    host_ports,
    is_newer,
    listened_ports,
    next_step,
)
from worker.agent.health import Checks, TaskHealth, spelled
from worker.health.core import STARTING, UNHEALTHY, Health
from worker.network.api import Attachment
from worker.runtime.api import ContainerConfig, ContainerStatus, Runtime
from worker.runtime.client import signal_number

RETRY_PAUSE_S = 1.0
ERROR_LENGTH_MAX = 1_000
_WAITS_FOR_CHECK = "waiting for a health check to succeed"

Result = TypeVar("Result")

_log = structlog.get_logger()


class Networks(Protocol):
    """What the tasks need of the data plane."""

    async def attach(self, task: Task) -> Attachment:
        """Give the task a namespace and its addresses; waits until the data plane is there."""
        ...

    async def detach(self, task_id: str) -> None:
        """Take them away. Idempotent."""
        ...

    async def find_taken(self, ports: Iterable[PortConfig]) -> str:
        """Why one of these ports cannot be published here; "" when all can."""
        ...

    async def await_listeners(
        self, task_id: str, ports: frozenset[tuple[str, int]], timeout_s: float
    ) -> frozenset[tuple[str, int]]:
        """Wait until a task takes traffic on its ports. Result: on which ones it does not by then.

        Raises: SwarmError when nobody can tell.
        """
        ...


class Volumes(Protocol):
    """What the tasks need of the node's volumes."""

    async def hold(self, task: Task) -> None:
        """Have them mounted: the container is about to start. Raises: SwarmError."""
        ...

    async def release(self, task: Task) -> None:
        """The container has ended. Idempotent."""
        ...

    async def remove(self, task_id: str) -> None:
        """The container is gone: so are its volumes without a name. Idempotent."""
        ...


class Files(Protocol):
    """What the tasks need of their secrets and configs."""

    async def swap(self, task: Task) -> bool:
        """Put the contents that the task names in place of others; False: they are there already.

        Raises: SwarmError, OSError.
        """
        ...

    async def settle(self, task: Task) -> None:
        """What is in place is what the task names, and its program has been told. Idempotent."""
        ...

    async def remove(self, task_id: str) -> None:
        """The container has ended. Idempotent; never raises."""
        ...


class Surroundings(Protocol):
    """What a runner needs of the node."""

    @property
    def runtime(self) -> Runtime:
        """What runs the containers."""
        ...

    @property
    def networks(self) -> Networks:
        """The data plane."""
        ...

    @property
    def volumes(self) -> Volumes:
        """The volumes."""
        ...

    @property
    def files(self) -> Files:
        """Secrets and configs of the tasks."""
        ...

    @property
    def checks(self) -> Checks:
        """Health checks."""
        ...

    @property
    def clock(self) -> Clock:
        """Stamps statuses."""
        ...

    @property
    def starts(self) -> asyncio.Semaphore:
        """Bounds how many containers are prepared at once."""
        ...

    async def fetch_image(self, task: Task) -> None:
        """Have the task's image on this node. Raises NotFound with the reason why it is not."""
        ...

    async def container_config(self, task: Task, attachment: Attachment) -> ContainerConfig:
        """The container's configuration. Raises NotFound when the image is not there."""
        ...

    async def fill_volumes(self, task: Task) -> None:
        """Fill and hold the volumes of a container that is made. Raises: SwarmError."""
        ...

    async def recorded(self, task: Task) -> None:
        """Wait until a crash would find this state of the task."""
        ...

    def changed(self, task: Task) -> None:
        """The task has a new status: keep and report it. Never raises."""
        ...


class TaskRunner:
    """State machine of one task; `run` ends when the task has ended."""

    def __init__(self, task: Task, node: Surroundings) -> None:
        self.task = task
        self._node = node
        self._signal = Signal()
        self._container: ContainerStatus | None = None
        self._removed = False
        self._doom = ""
        self._doom_message = "failed"
        self._files_due = True  # also when it was adopted: who knows what was cut short
        self._health = TaskHealth(node.checks, self._take_health, self.doom)

    def want(self, task: Task) -> bool:
        """The manager has sent the task again; True if it wants more, or other files."""
        old, new = self.task.container, swapped(self.task.container, task.container)
        if new != old:
            self.task = self.task.replaced(spec=self.task.spec.replaced(runtime=new))
            self._files_due = True
        elif task.desired_state <= self.task.desired_state:
            return False
        if task.desired_state > self.task.desired_state:
            self.task = self.task.with_desired_state(task.desired_state)
        self._signal.set()
        return True

    def observe(self, status: ContainerStatus) -> None:
        """The runtime says something about the task's container."""
        if status.removed:
            self._removed = True
        elif is_newer(status, self._container):
            self._container = status
        self._signal.set()

    def doom(self, reason: str) -> None:
        """The task cannot go on here: it is stopped and fails with the reason."""
        self._doom = reason
        self._signal.set()

    async def run(self) -> None:
        """Advance until the task has ended; its resources but the logs are then free."""
        try:
            while True:
                step = next_step(self.task.status.state, self.task.desired_state)
                if step is Step.DONE:
                    break
                await self._advance(step)
        finally:
            await self._health.end()
        await self._release()

    async def dispose(self, grace_max_s: float | None = None) -> None:
        """The task is no longer this node's: stop its container and remove every trace of it.

        grace_max_s: the container gets no more than this time to end; None: what it asks for.
        Raises: SwarmError, OSError; call again then.
        """
        grace_s = stop_grace_period_ns(self.task.container) / 1e9
        await self._halt(grace_s if grace_max_s is None else min(grace_s, grace_max_s))
        await self._remove_container()
        await self._node.files.remove(self.task.id)
        await self._node.networks.detach(self.task.id)
        await self._node.volumes.release(self.task)
        await self._node.volumes.remove(self.task.id)

    async def _advance(self, step: Step) -> None:
        try:
            await self._take(step)
        except SwarmError as error:
            if not error.retryable:
                self._fail(error.message)
                return
            self._note(error.message)
            await self._signal.wait(RETRY_PAUSE_S)
        except OSError as error:
            self._fail(f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - one task must never take the worker down
            _log.error("task.broken", task_id=self.task.id, exc_info=error)
            self._fail(f"internal error: {type(error).__name__}: {error}")

    async def _take(self, step: Step) -> None:
        if self._doom and step is not Step.STOP:
            await self._give_up()
            return
        match step:
            case Step.ACCEPT:
                self._enter(TaskState.ACCEPTED, "accepted")
            case Step.PREPARE:
                await self._interruptible(self._prepare, lambda: False)
            case Step.START:
                await self._start()
            case Step.WATCH:
                await self._watch()
            case Step.STOP:
                await self._stop()
            case Step.IDLE | Step.DONE:
                await self._signal.wait()

    async def _interruptible(
        self, step: Callable[[], Awaitable[Result]], is_vain: Callable[[], bool]
    ) -> Result | None:
        """Run a step that may take long; give it up when the task is to go, or the step in vain.

        Result: the step's; None when it was given up.
        """
        work = asyncio.ensure_future(step())
        try:
            while not work.done() and self._is_pursued() and not is_vain():
                await _first_of(work, self._signal)
        finally:
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        return None if work.cancelled() else work.result()

    def _is_pursued(self) -> bool:
        return self.task.desired_state <= TaskState.COMPLETE and not self._doom

    async def _prepare(self) -> None:
        self._enter(TaskState.PREPARING, "preparing")
        await self._node.fetch_image(self.task)  # may take long: others are prepared meanwhile
        async with self._node.starts:
            attachment = await self._node.networks.attach(self.task)
            status = self.task.status.replaced(address=attachment.address)
            self.task = self.task.with_status(status)
            await self._node.recorded(self.task)  # before: what is unknown after a crash is removed
            config = await self._node.container_config(self.task, attachment)
            self._container, self._removed = None, False
            self.observe(await self._create(config))
            await self._node.fill_volumes(self.task)
        self._enter(TaskState.READY, "prepared")

    async def _create(self, config: ContainerConfig) -> ContainerStatus:
        try:
            return await self._node.runtime.create(config)
        except AlreadyExists:  # of an attempt that was cut short
            await self._remove_container()
            self._container, self._removed = None, False
            return await self._node.runtime.create(config)

    async def _start(self) -> None:
        runtime = self._node.runtime
        if self.task.status.state is TaskState.READY:
            await self._check_ports()
            self._enter(TaskState.STARTING, "starting")
        else:  # an attempt was cut short: it may have succeeded
            self.observe(await runtime.status(self.task.id))
            if await self._settle():
                return
        try:
            await self._node.volumes.hold(self.task)
            self.observe(await runtime.start(self.task.id))
        except SwarmError as error:
            if error.retryable:
                raise
            self.observe(await runtime.status(self.task.id))
            if not await self._settle():
                raise
        else:
            await self._settle()

    async def _check_ports(self) -> None:
        ports = host_ports(self.task)
        taken = await self._node.networks.find_taken(ports) if ports else ""
        if taken:
            raise FailedPrecondition(taken)

    async def _settle(self) -> bool:
        """Take the state that the started container has; False when it was not started.

        RUNNING brings the task into the load balancers, so its program has to be ready by then.
        """
        if self._container is None or self._container.state == "created":
            return False
        message = await self._await_ready()
        seen = self._container
        if seen.state == "exited":
            self._end(seen)
        elif self._is_pursued():
            self._enter(TaskState.RUNNING, message, container=seen)
        return True

    async def _await_ready(self) -> str:
        """Wait until the program may get traffic. Result: what is to be said."""
        if not self._begin_checks():
            return await self._await_listeners()
        self._enter(TaskState.STARTING, _WAITS_FOR_CHECK)
        await self._interruptible(self._health.settled, self._has_ended)
        return "started"

    def _begin_checks(self) -> bool:
        """Have the running container's health checked; False when it has no check."""
        seen = self._container
        if seen is None or seen.state != "running":
            return False
        was_healthy = self.task.status.state is TaskState.RUNNING
        return self._health.begin(lambda: self._container or seen, was_healthy=was_healthy)

    def _take_health(self, health: Health) -> None:
        if health.status == UNHEALTHY:
            self._doom_message = f"failed its health check: {spelled(health)}"
            self.doom("task: unhealthy container")
        elif health.status == STARTING and self.task.status.state is TaskState.STARTING:
            said = f" ({spelled(health)})" if health.log else ""
            self._enter(TaskState.STARTING, f"{_WAITS_FOR_CHECK}{said}")

    async def _await_listeners(self) -> str:
        """Give the program time to listen on the published ports. Result: what is to be said."""
        ports = listened_ports(self.task)
        timeout_s = listen_timeout_ns(self.task.spec) / 1e9
        if not ports or not timeout_s:
            return "started"
        self._enter(TaskState.STARTING, f"waiting for a listener on {_spell(ports)}")
        try:
            silent = await self._interruptible(
                partial(self._node.networks.await_listeners, self.task.id, ports, timeout_s),
                self._has_ended,
            )
        except SwarmError as error:
            _log.warning("task.listeners_unknown", task_id=self.task.id, reason=error.message)
            return "started"
        return f"started; nothing listens on {_spell(silent)}" if silent else "started"

    def _has_ended(self) -> bool:
        return self._container is not None and self._container.state == "exited"

    async def _watch(self) -> None:
        seen = self._container
        if seen is not None and seen.state == "exited":
            self._end(seen)
            return
        if self._removed:
            self._removed = False
            try:
                self.observe(await self._node.runtime.status(self.task.id))
            except NotFound:
                self._fail("the container was removed by somebody else")
            return
        self._begin_checks()
        if self._files_due and self.task.container.file_rotation is not None:
            await self._swap_files()
            return
        await self._signal.wait()

    async def _swap_files(self) -> None:
        """Have the container see the contents that are wanted now. It runs on when that fails."""
        task, rotation = self.task, self.task.container.file_rotation
        self._files_due = False
        try:
            swapped_now = await self._node.files.swap(task)
            if swapped_now and rotation is not None and rotation.signal:
                number = signal_number(rotation.signal)
                await self._node.runtime.kill(task.id, number)
            await self._node.files.settle(task)
        except NotFound:
            return  # the container has just ended: its end is on its way here
        except (SwarmError, OSError) as error:
            if isinstance(error, SwarmError) and error.retryable:
                self._files_due = True
                raise
            said = error.message if isinstance(error, SwarmError) else str(error)
            self._note(f"secrets and configs stay as they were: {said}")
            return
        ids = file_ids(task.container)
        if self.task.status.file_ids != ids:
            status = self.task.status.replaced(
                file_ids=ids, error="", timestamp_ns=self._node.clock.now_ns()
            )
            self.task = self.task.with_status(status)
            self._node.changed(self.task)

    async def _stop(self) -> None:
        status = await self._halt(stop_grace_period_ns(self.task.container) / 1e9)
        self._enter(TaskState.SHUTDOWN, "shutdown", container=status)

    async def _give_up(self) -> None:
        status = await self._halt(stop_grace_period_ns(self.task.container) / 1e9)
        self._fail(self._doom, self._doom_message, container=status)

    async def _halt(self, grace_s: float) -> ContainerStatus | None:
        """Stop the container, by force if its stop signal cannot be sent; None: there is none."""
        await self._health.end()
        try:
            return await self._node.runtime.stop(self.task.id, grace_s)
        except NotFound:
            return None  # it was never made
        except SwarmError as error:
            if error.retryable:
                raise
            _log.warning("task.stop_refused", task_id=self.task.id, reason=error.message)
        return await self._kill()

    async def _kill(self) -> ContainerStatus | None:
        runtime = self._node.runtime
        try:
            await runtime.kill(self.task.id, signal.SIGKILL)
            return await runtime.wait(self.task.id)
        except NotFound:
            return None
        except FailedPrecondition:  # it does not run any more
            return await runtime.status(self.task.id)

    def _end(self, status: ContainerStatus) -> None:
        """The container ended by itself."""
        state = exit_state(status.exit_code)
        message = "finished" if state is TaskState.COMPLETE else "failed"
        error = ""
        if state is TaskState.FAILED:
            error = status.error or f"task: non-zero exit ({status.exit_code})"
            if status.oom_killed:
                error = f"task: out of memory (exit {status.exit_code})"
        self._enter(state, message, error=error, container=status)

    def _fail(
        self, reason: str, message: str = "failed", *, container: ContainerStatus | None = None
    ) -> None:
        state = failure_state(self.task.status.state)
        _log.warning("task.failed", task_id=self.task.id, state=state.name, reason=reason)
        self._enter(state, message, error=reason, container=container)

    def _note(self, reason: str) -> None:
        """Show why the task does not get further, once."""
        if self.task.status.error != reason[:ERROR_LENGTH_MAX]:
            status = self.task.status.replaced(error=reason[:ERROR_LENGTH_MAX])
            self.task = self.task.with_status(status)
            self._node.changed(self.task)

    def _enter(
        self,
        state: TaskState,
        message: str,
        *,
        error: str = "",
        container: ContainerStatus | None = None,
    ) -> None:
        if state is self.task.status.state and self.task.status.message == message:
            return
        ports = host_ports(self.task) if state is TaskState.RUNNING else ()
        status = TaskStatus(
            state=state,
            timestamp_ns=self._node.clock.now_ns(),
            message=message,
            error=error[:ERROR_LENGTH_MAX],
            container=self.task.status.container if container is None else reported(container),
            port_status=PortStatus(ports=ports),
            address=self.task.status.address,
            file_ids=self.task.status.file_ids,
        )
        self.task = self.task.with_status(status)
        self._node.changed(self.task)

    async def _release(self) -> None:
        """Free what an ended task no longer needs; its container's files hold the logs."""
        while not await self._is_released():
            await self._signal.wait(RETRY_PAUSE_S)
        await self._node.files.remove(self.task.id)
        try:
            await self._node.networks.detach(self.task.id)
        except (SwarmError, OSError) as error:  # tried again when the task is disposed of
            _log.warning("task.detach_failed", task_id=self.task.id, reason=str(error))
        await self._node.volumes.release(self.task)

    async def _is_released(self) -> bool:
        try:
            if (await self._node.runtime.status(self.task.id)).state == "running":
                await self._kill()
        except NotFound:
            return True
        except SwarmError as error:
            _log.warning("task.release_failed", task_id=self.task.id, reason=error.message)
            return not error.retryable
        return True

    async def _remove_container(self) -> None:
        with contextlib.suppress(NotFound):
            await self._node.runtime.remove(self.task.id, force=True)


def reported(status: ContainerStatus) -> TaskContainer:
    """What the managers are told of a container."""
    return TaskContainer(
        container_id=status.id,
        pid=status.pid,
        exit_code=status.exit_code,
        oom_killed=status.oom_killed,
        started_at_ns=status.started_at_ns,
        finished_at_ns=status.finished_at_ns,
    )


def _spell(ports: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{port}/{protocol}" for protocol, port in sorted(ports))


async def _first_of(work: asyncio.Future[Any], news: Signal) -> None:
    """Wait until the work is done or the signal is set."""

    async def listen() -> None:
        await news.wait()

    wake = asyncio.ensure_future(listen())
    try:
        await asyncio.wait({work, wake}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        wake.cancel()
        await asyncio.gather(wake, return_exceptions=True)
