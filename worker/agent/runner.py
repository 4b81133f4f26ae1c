"""One task on this node: walks it up the ladder, one step at a time.

The runner owns the task's container and network. A step that fails before the start rejects the
task, after it fails it; what may pass (a process of the runtime being restarted) is tried again.
When the manager wants the task gone, whatever is under way is given up and undone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from shoal.aio.signal import Signal
from shoal.clock import Clock
from shoal.errors import NotFound, SwarmError, Unavailable
from shoal.model.defaults import stop_grace_period_ns
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from shoal.model.types import ContainerStatus as TaskContainer
from shoal.model.types import TaskStatus
from worker.agent.core import Step, exit_state, failure_state, next_step
from worker.network.api import Attachment
from worker.runtime.api import ContainerConfig, ContainerStatus, Runtime

RETRY_PAUSE_S = 1.0
ERROR_LENGTH_MAX = 1_000

_log = structlog.get_logger()


class Networks(Protocol):
    """What a runner needs of the data plane."""

    async def attach(self, task_id: str) -> Attachment:
        """Give the task a namespace and an address; waits until the data plane is there."""
        ...

    async def detach(self, task_id: str) -> None:
        """Take them away. Idempotent."""
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
    def clock(self) -> Clock:
        """Stamps statuses."""
        ...

    @property
    def starts(self) -> asyncio.Semaphore:
        """Bounds how many containers are prepared at once."""
        ...

    async def container_config(self, task: Task, attachment: Attachment) -> ContainerConfig:
        """The container's configuration. Raises NotFound when the image is not there."""
        ...

    def changed(self, task: Task) -> None:
        """The task has a new status: keep and report it."""
        ...


class TaskRunner:
    """State machine of one task; `run` ends when the task has ended."""

    def __init__(self, task: Task, node: Surroundings) -> None:
        self.task = task
        self._node = node
        self._signal = Signal()
        self._container: ContainerStatus | None = None

    def want(self, task: Task) -> None:
        """The manager has sent the task again, with another wish."""
        if task.desired_state != self.task.desired_state:
            self.task = self.task.replaced(desired_state=task.desired_state)
            self._signal.set()

    def observe(self, status: ContainerStatus) -> None:
        """The runtime says something about the task's container."""
        self._container = status
        self._signal.set()

    async def run(self) -> None:
        """Advance until the task has ended; its resources but the logs are then free."""
        while True:
            step = next_step(self.task.status.state, self.task.desired_state)
            if step is Step.DONE:
                break
            await self._advance(step)
        await self._release()

    async def _advance(self, step: Step) -> None:
        try:
            match step:
                case Step.ACCEPT:
                    self._enter(TaskState.ACCEPTED, "accepted")
                case Step.PREPARE:
                    await self._interruptible(self._prepare)
                case Step.START:
                    await self._start()
                case Step.WATCH:
                    await self._watch()
                case Step.STOP:
                    await self._stop()
                case Step.IDLE | Step.DONE:
                    await self._signal.wait()
        except Unavailable as error:
            self._note(error.message)
            await self._signal.wait(RETRY_PAUSE_S)
        except SwarmError as error:
            self._fail(error.message)
        except OSError as error:
            self._fail(f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - one task must never take the worker down
            _log.error("task.broken", task_id=self.task.id, exc_info=error)
            self._fail(f"internal error: {type(error).__name__}: {error}")

    async def _interruptible(self, step: Callable[[], Awaitable[None]]) -> None:
        """Run a step that may take long; give it up when the manager wants the task gone."""
        work = asyncio.ensure_future(step())
        try:
            while not work.done() and self.task.desired_state <= TaskState.COMPLETE:
                wake = asyncio.ensure_future(self._signal.wait())
                await asyncio.wait({work, wake}, return_when=asyncio.FIRST_COMPLETED)
                wake.cancel()
                await asyncio.gather(wake, return_exceptions=True)
        finally:
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        if not work.cancelled():
            work.result()

    async def _prepare(self) -> None:
        self._enter(TaskState.PREPARING, "preparing")
        async with self._node.starts:
            attachment = await self._node.networks.attach(self.task.id)
            config = await self._node.container_config(self.task, attachment)
            self._container = None
            await self._remove_container()  # of an attempt that was cut short
            await self._node.runtime.create(config)
        status = self.task.status.replaced(address=attachment.address)
        self.task = self.task.with_status(status)
        self._enter(TaskState.READY, "prepared")

    async def _start(self) -> None:
        self._enter(TaskState.STARTING, "starting")
        status = await self._node.runtime.start(self.task.id)
        self._container = status
        if status.state == "exited":
            self._end(status)
            return
        self._enter(TaskState.RUNNING, "started", container=status)

    async def _watch(self) -> None:
        seen = self._container
        if seen is not None and seen.state == "exited":
            self._end(seen)
            return
        await self._signal.wait()

    async def _stop(self) -> None:
        grace_s = stop_grace_period_ns(self.task.container) / 1e9
        try:
            status: ContainerStatus | None = await self._node.runtime.stop(self.task.id, grace_s)
        except NotFound:
            status = None  # it was never made
        self._enter(TaskState.SHUTDOWN, "shutdown", container=status)

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

    def _fail(self, reason: str) -> None:
        state = failure_state(self.task.status.state)
        _log.warning("task.failed", task_id=self.task.id, state=state.name, reason=reason)
        self._enter(state, "failed", error=reason)

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
        status = TaskStatus(
            state=state,
            timestamp_ns=self._node.clock.now_ns(),
            message=message,
            error=error[:ERROR_LENGTH_MAX],
            container=self.task.status.container if container is None else _reported(container),
            address=self.task.status.address,
        )
        self.task = self.task.with_status(status)
        self._node.changed(self.task)

    async def _release(self) -> None:
        """Free what an ended task no longer needs; its container's files hold the logs."""
        try:
            status = await self._node.runtime.status(self.task.id)
            if status.state == "running":
                await self._node.runtime.stop(self.task.id, 0)
        except NotFound:
            pass
        except SwarmError as error:
            _log.warning("task.release_failed", task_id=self.task.id, reason=error.message)
        await self._detach()

    async def dispose(self) -> None:
        """The task is no longer this node's: remove every trace of it."""
        await self._remove_container()
        await self._detach()

    async def _remove_container(self) -> None:
        with contextlib.suppress(NotFound):
            await self._node.runtime.remove(self.task.id, force=True)

    async def _detach(self) -> None:
        try:
            await self._node.networks.detach(self.task.id)
        except SwarmError as error:
            _log.warning("task.detach_failed", task_id=self.task.id, reason=error.message)


def _reported(status: ContainerStatus) -> TaskContainer:
    return TaskContainer(
        container_id=status.id,
        pid=status.pid,
        exit_code=status.exit_code,
        oom_killed=status.oom_killed,
        finished_at_ns=status.finished_at_ns,
    )
