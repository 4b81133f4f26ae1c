"""All tasks of this node: one runner each, kept in step with what the managers assign.

After a restart the runners are made anew from the agent's records and what the runtime says: a
running container is adopted under the same id, one that ended meanwhile is reported with its exit
code, one that is gone is reported as lost. Nothing is started or stopped for that. A task is
reported whether or not its record could be written: a full disk must not hide what happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import msgspec
import structlog

from shoal.clock import Clock
from shoal.errors import SwarmError
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from shoal.model.types import TaskStatus
from worker.agent.container import TASK_ID_LABEL, container_config, log_driver
from worker.agent.core import failure_state, listened_ports
from worker.agent.devices import ResourcePool
from worker.agent.files import TaskFiles
from worker.agent.health import Checks, check_in
from worker.agent.records import Records
from worker.agent.reporter import Reporter
from worker.agent.runner import Networks, TaskRunner, reported
from worker.agent.templates import NodeFacts
from worker.agent.volumes import TaskVolumes
from worker.agent.writer import RecordWriter
from worker.images.model import Image
from worker.logs.service import check_driver
from worker.network.api import Attachment
from worker.runtime.api import ContainerConfig, ContainerStatus, IdMap, Runtime

STARTS_MAX = 8
"""Containers prepared at once."""
REMOVALS_MAX = 8
"""Containers of nobody removed at once."""
NO_POOL = ResourcePool()
DISPOSAL_PAUSE_S = 1.0
LEAVE_GRACE_MAX_S = 10.0
"""Time a container gets to end when the node leaves its cluster."""

_log = structlog.get_logger()


class Images(Protocol):
    """What the tasks need of the image store."""

    def resolve(self, ref: str) -> Image:
        """The image of a reference. Raises NotFound."""
        ...

    async def fetch(self, ref: str, registry_auth: str = "") -> Image:
        """The image of a reference, pulled when it is not here.

        Raises NotFound with the registry's reason, InvalidArgument, ResourceExhausted.
        """
        ...

    def layers(self, image: Image) -> tuple[str, ...]:
        """Directories of its layers, topmost first."""
        ...


class NodeTasks:
    """Owner of the runners. Implements `worker.agent.runner.Surroundings`."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        images: Images,
        networks: Networks,
        volumes: TaskVolumes,
        files: TaskFiles,
        records: Records,
        reporter: Reporter,
        facts: NodeFacts,
        clock: Clock,
        checks: Checks,
        userns: IdMap | None = None,
        pool: ResourcePool = NO_POOL,
    ) -> None:
        """userns: the ids of the containers; None: the node's. pool: its generic resources."""
        self._pool = pool
        self._userns = userns
        self.runtime = runtime
        self.networks = networks
        self.volumes = volumes
        self.files = files
        self.clock = clock
        self.checks = checks
        self.starts = asyncio.Semaphore(STARTS_MAX)
        self._images = images
        self._records = records
        self._writer = RecordWriter(records)
        self._reporter = reporter
        self._facts = facts
        self._runners: dict[str, TaskRunner] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._disposals: dict[str, asyncio.Task[None]] = {}

    async def restore(self) -> None:
        """Make runners for what was there before this process; once is enough, twice is harmless.

        Cost: O(tasks), a file read each; containers of nobody are removed a few at a time.
        """
        containers = {status.id: status for status in await self.runtime.list()}
        for task in await asyncio.to_thread(self._records.tasks):
            container = containers.pop(task.id, None)
            if task.id in self._runners or task.id in self._disposals:
                continue
            adopted = adopt(task, container, self.clock.now_ns())
            if adopted.status != task.status:
                self._writer.save(adopted)
            self._add(adopted, container)
        gate = asyncio.Semaphore(REMOVALS_MAX)
        ours = self._runners.keys() | self._disposals.keys()
        await self.files.keep_only(ours)
        async with asyncio.TaskGroup() as group:
            for status in containers.values():
                if TASK_ID_LABEL in status.labels and status.id not in ours:
                    group.create_task(self._remove_unknown(status, gate))

    def tasks(self) -> list[Task]:
        """Every task of the node."""
        return [runner.task for runner in self._runners.values()]

    def task(self, task_id: str) -> Task | None:
        """One task."""
        runner = self._runners.get(task_id)
        return None if runner is None else runner.task

    def attached(self) -> dict[str, Task]:
        """Every task that holds an address, by task id."""
        return {
            task.id: task
            for task in self.tasks()
            if TaskState.READY <= task.status.state <= TaskState.RUNNING and task.status.address
        }

    def images_needed(self) -> dict[str, str]:
        """Ids of the images of tasks about to get a container; others say it in their labels.

        An ended task needs its image as little as one that has a container.
        """
        found: dict[str, str] = {}
        for task in self.tasks():
            if task.status.state < TaskState.READY:
                try:
                    found[task.id] = self._images.resolve(task.container.image).id
                except SwarmError:
                    continue
        return found

    def assign(self, task: Task) -> None:
        """The managers assign a task, or want something else of one."""
        runner = self._runners.get(task.id)
        if runner is not None:
            if runner.want(task):
                self._writer.save(runner.task)
            return
        if task.status.state > TaskState.RUNNING:
            return  # history from before this node forgot it: nothing here belongs to it
        known = adopt(task, None, self.clock.now_ns())
        self._writer.save(known)
        self._add(known, None)
        if known.status != task.status:
            self.changed(known)

    def unassign(self, task_id: str, *, grace_max_s: float | None = None) -> None:
        """The task is no longer this node's: stop it and remove every trace."""
        runner = self._runners.pop(task_id, None)
        if runner is None:
            return
        work = asyncio.create_task(self._dispose(runner, grace_max_s), name=f"dispose {task_id}")
        self._disposals[task_id] = work
        work.add_done_callback(lambda done: _forget(self._disposals, task_id, done))

    def keep_only(self, task_ids: set[str]) -> None:
        """The managers' complete list: everything else goes."""
        for task_id in self._runners.keys() - task_ids:
            self.unassign(task_id)

    def lose_networks(self, reasons: Mapping[str, str]) -> None:
        """The links of these tasks are gone: such a task must be replaced."""
        for task_id, reason in reasons.items():
            runner = self._runners.get(task_id)
            if runner is not None:
                _log.warning("task.network_lost", task_id=task_id, reason=reason)
                runner.doom(reason)

    def report_all(self) -> None:
        """Tell the managers everything again: a new session begins."""
        for runner in self._runners.values():
            if runner.task.status.state >= TaskState.ACCEPTED:
                self._reporter.report(runner.task.id, runner.task.status)

    async def follow_runtime(self) -> None:
        """Pass the runtime's events to the runners, for ever."""
        async for status in self.runtime.events():
            runner = self._runners.get(status.id)
            if runner is not None:
                runner.observe(status)

    async def stop(self) -> None:
        """Stop the runners and leave the containers running."""
        works = [*self._running.values(), *self._disposals.values()]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        await self._writer.flush()

    async def remove_all(self) -> None:
        """Stop and remove every task: the node leaves its cluster."""
        for task_id in list(self._runners):
            self.unassign(task_id, grace_max_s=LEAVE_GRACE_MAX_S)
        await asyncio.gather(*self._disposals.values(), return_exceptions=True)
        await self._writer.flush()

    async def recorded(self, task: Task) -> None:
        """Wait until a crash would find this state of the task."""
        self._writer.save(task)
        await self._writer.flush()

    async def fetch_image(self, task: Task) -> None:
        """Have the task's image on this node. Raises as `Images.fetch`."""
        options = task.container.pull_options
        auth = "" if options is None else options.registry_auth
        await self._images.fetch(task.container.image, auth)

    async def container_config(self, task: Task, attachment: Attachment) -> ContainerConfig:
        """The container's configuration; volumes that are missing are made, and its files.

        Raises NotFound when the image is not on this node, or as the `make` of both.
        """
        image = self._images.resolve(task.container.image)
        layers = self._images.layers(image)
        check_driver(log_driver(task))
        volumes, files = await self.volumes.make(task), await self.files.make(task)
        config = container_config(
            task,
            image,
            layers,
            attachment,
            self._facts,
            volumes=volumes,
            file_mounts=files,
            devices=self._pool.devices_of(task.assigned_generic_resources),
        )
        return msgspec.structs.replace(config, userns=self._userns)

    async def fill_volumes(self, task: Task) -> None:
        """Fill and hold the volumes of a container that is made. Raises as `TaskVolumes.fill`."""
        image = self._images.resolve(task.container.image)
        await self.volumes.fill(task, self._images.layers(image))

    def changed(self, task: Task) -> None:
        """Keep and report a task's new status. Never raises."""
        if task.id in self._runners:
            self._writer.save(task)
            self._reporter.report(task.id, task.status)
            _log.info("task.state_changed", task_id=task.id, state=task.status.state.name)

    def _add(self, task: Task, container: ContainerStatus | None) -> None:
        runner = TaskRunner(task, self)
        if container is not None:
            runner.observe(container)
        self._runners[task.id] = runner
        earlier = self._disposals.get(task.id)
        work = asyncio.create_task(self._run(runner, earlier), name=f"task {task.id}")
        self._running[task.id] = work
        work.add_done_callback(lambda done: _forget(self._running, task.id, done))

    async def _run(self, runner: TaskRunner, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:  # the same task was taken away a moment ago: let that end first
            await asyncio.wait({earlier})
            self._writer.save(runner.task)
        try:
            await runner.run()
        except Exception as error:  # noqa: BLE001 - the task stays as it was last reported
            _log.error("task.runner_ended", task_id=runner.task.id, exc_info=error)

    async def _dispose(self, runner: TaskRunner, grace_max_s: float | None) -> None:
        task_id = runner.task.id
        work = self._running.get(task_id)
        if work is not None:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        while True:
            try:
                await runner.dispose(grace_max_s)
                break
            except (SwarmError, OSError) as error:
                _log.error("task.dispose_failed", task_id=task_id, reason=str(error))
                if not getattr(error, "retryable", False):
                    break  # the next start of the worker removes what is left
            await asyncio.sleep(DISPOSAL_PAUSE_S)
        self._writer.forget(task_id)
        if task_id not in self._runners:
            self._reporter.forget(task_id)

    async def _remove_unknown(self, status: ContainerStatus, gate: asyncio.Semaphore) -> None:
        async with gate:
            _log.info("container.unknown", container_id=status.id, state=status.state)
            try:
                await self.runtime.remove(status.id, force=True)
                await self.volumes.remove(status.id)
                await self.files.remove(status.id)
            except SwarmError as error:
                _log.warning("container.not_removed", container_id=status.id, reason=error.message)


def adopt(task: Task, container: ContainerStatus | None, now_ns: int) -> Task:
    """What a task is for a process that has not seen it before, given its container.

    The record may be a little behind. A running container makes the task RUNNING, an ended one was
    at least STARTING, and its runner reports the exit; without a container a task that had one has
    failed, any other begins again.
    """
    state = task.status.state
    if state > TaskState.RUNNING:
        return task
    if container is None or (container.state == "created" and state is TaskState.RUNNING):
        if state <= TaskState.PREPARING:
            return task
        lost = TaskStatus(
            state=failure_state(state),
            timestamp_ns=now_ns,
            message="failed",
            error="the container is gone: the node was restarted",
            container=task.status.container,
            address=task.status.address,
        )
        return task.with_status(lost)
    reached = {
        "created": state,
        "running": _reached_by_running(task, container),
        "exited": max(state, TaskState.STARTING),
    }[container.state]
    if reached is state:
        return task
    status = task.status.replaced(
        state=reached,
        timestamp_ns=now_ns,
        message="started" if reached is TaskState.RUNNING else "starting",
        error="",
        container=reported(container),
    )
    return task.with_status(status)


def _reached_by_running(task: Task, container: ContainerStatus) -> TaskState:
    """Whether the program was seen to be ready is asked anew where nothing says that it was."""
    was_ready = task.status.state is TaskState.RUNNING
    is_sure = was_ready or not (listened_ports(task) or check_in(container.labels))
    return TaskState.RUNNING if is_sure else TaskState.STARTING


def _forget(works: dict[str, asyncio.Task[None]], task_id: str, done: asyncio.Task[None]) -> None:
    if works.get(task_id) is done:
        del works[task_id]
