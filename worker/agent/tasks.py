"""All tasks of this node: one runner each, kept in step with what the managers assign.

After a restart the runners are made anew from the agent's records and what the runtime says: a
running container is adopted under the same id, one that ended meanwhile is reported with its exit
code, one that is gone is reported as lost. Nothing is started or stopped for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from shoal.clock import Clock
from shoal.errors import SwarmError
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from shoal.model.types import TaskStatus
from worker.agent.container import container_config
from worker.agent.dataplane import DataPlane
from worker.agent.records import Records
from worker.agent.reporter import Reporter
from worker.agent.runner import TaskRunner
from worker.agent.templates import NodeFacts
from worker.images.store import ImageStore
from worker.network.api import Attachment
from worker.runtime.api import ContainerConfig, ContainerStatus, Runtime

STARTS_MAX = 8
"""Containers prepared at once."""

_log = structlog.get_logger()


class NodeTasks:
    """Owner of the runners. Implements `worker.agent.runner.Surroundings`."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        images: ImageStore,
        networks: DataPlane,
        records: Records,
        reporter: Reporter,
        facts: NodeFacts,
        clock: Clock,
    ) -> None:
        self.runtime = runtime
        self.networks = networks
        self.clock = clock
        self.starts = asyncio.Semaphore(STARTS_MAX)
        self._images = images
        self._records = records
        self._reporter = reporter
        self._facts = facts
        self._runners: dict[str, TaskRunner] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._disposals: set[asyncio.Task[None]] = set()

    async def restore(self) -> None:
        """Make runners for what was there before this process; call once, first."""
        containers = {status.id: status for status in await self.runtime.list()}
        for task in self._records.tasks():
            adopted = adopt(task, containers.pop(task.id, None), self.clock.now_ns())
            if adopted.status.state <= TaskState.RUNNING and adopted.status.address:
                await self.networks.adopt(task.id, adopted.status.address)
            if adopted.status != task.status:
                self._records.save_task(adopted)
            self._add(adopted)
        for container_id, status in containers.items():
            _log.info("container.unknown", container_id=container_id, state=status.state)
            await self._remove_unknown(container_id)
        await self.networks.sweep()

    def tasks(self) -> list[Task]:
        """Every task of the node."""
        return [runner.task for runner in self._runners.values()]

    def task(self, task_id: str) -> Task | None:
        """One task."""
        runner = self._runners.get(task_id)
        return None if runner is None else runner.task

    def assign(self, task: Task) -> None:
        """The managers assign a task, or want something else of one."""
        runner = self._runners.get(task.id)
        if runner is not None:
            runner.want(task)
            self._records.save_task(runner.task)
            return
        if task.status.state > TaskState.RUNNING:
            return  # history from before this node forgot it: nothing here belongs to it
        self._records.save_task(task)
        self._add(task)

    def unassign(self, task_id: str) -> None:
        """The task is no longer this node's: stop it and remove every trace."""
        runner = self._runners.pop(task_id, None)
        if runner is None:
            return
        work = asyncio.create_task(self._dispose(runner), name=f"dispose {task_id}")
        self._disposals.add(work)
        work.add_done_callback(self._disposals.discard)

    def keep_only(self, task_ids: set[str]) -> None:
        """The managers' complete list: everything else goes."""
        for task_id in self._runners.keys() - task_ids:
            self.unassign(task_id)

    def report_all(self) -> None:
        """Tell the managers everything again: a new session begins."""
        for runner in self._runners.values():
            if runner.task.status.state >= TaskState.ACCEPTED:
                self._reporter.report(runner.task.id, runner.task.status)

    async def follow_runtime(self) -> None:
        """Pass the runtime's events to the runners, for ever."""
        async for status in self.runtime.events():
            runner = self._runners.get(status.id)
            if runner is not None and not status.removed:
                runner.observe(status)

    async def stop(self) -> None:
        """Stop the runners and leave the containers running."""
        for work in self._running.values():
            work.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await asyncio.gather(*self._disposals, return_exceptions=True)

    async def remove_all(self) -> None:
        """Stop and remove every task: the node leaves its cluster."""
        for task_id in list(self._runners):
            self.unassign(task_id)
        await asyncio.gather(*self._disposals, return_exceptions=True)

    async def container_config(self, task: Task, attachment: Attachment) -> ContainerConfig:
        """The container's configuration. Raises NotFound when the image is not on this node."""
        image = self._images.resolve(task.container.image)
        layers = self._images.layers(image)
        config = self._images.image_config(image)
        return container_config(task, config, layers, attachment, self._facts)

    def changed(self, task: Task) -> None:
        """Keep and report a task's new status."""
        if task.id in self._runners:
            self._records.save_task(task)
            self._reporter.report(task.id, task.status)
            _log.info("task.state_changed", task_id=task.id, state=task.status.state.name)

    def _add(self, task: Task) -> None:
        runner = TaskRunner(task, self)
        self._runners[task.id] = runner
        work = asyncio.create_task(runner.run(), name=f"task {task.id}")
        self._running[task.id] = work
        work.add_done_callback(self._forget_run(task.id))

    def _forget_run(self, task_id: str) -> Callable[[asyncio.Task[None]], None]:
        def forget(work: asyncio.Task[None]) -> None:
            if self._running.get(task_id) is work:
                del self._running[task_id]

        return forget

    async def _dispose(self, runner: TaskRunner) -> None:
        work = self._running.get(runner.task.id)
        if work is not None:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        try:
            await runner.dispose()
        except SwarmError as error:
            _log.error("task.dispose_failed", task_id=runner.task.id, reason=error.message)
        self._records.forget_task(runner.task.id)
        self._reporter.forget(runner.task.id)

    async def _remove_unknown(self, container_id: str) -> None:
        try:
            await self.runtime.remove(container_id, force=True)
        except SwarmError as error:
            _log.warning("container.not_removed", container_id=container_id, reason=error.message)


def adopt(task: Task, container: ContainerStatus | None, now_ns: int) -> Task:
    """What a remembered task is after a restart, given its container.

    A running container makes it RUNNING, an ended one is left to the runner, which reports the
    exit; without a container a task that had one is FAILED, any other begins again.
    """
    state = task.status.state
    if state > TaskState.RUNNING:
        return task
    if container is None:
        if state <= TaskState.PREPARING:
            return task
        lost = TaskStatus(
            state=TaskState.FAILED,
            timestamp_ns=now_ns,
            message="failed",
            error="the container is gone: the node was restarted",
            address=task.status.address,
        )
        return task.with_status(lost)
    if container.state == "created" or state >= TaskState.RUNNING:
        return task
    status = task.status.replaced(
        state=TaskState.RUNNING, timestamp_ns=now_ns, message="started", error=""
    )
    return task.with_status(status)
