"""The containers of the node: found by id or name, followed through the runtime, waited for.

The one owner of the table of containers; `lifecycle` changes them through it. Containers of the
agent's tasks are in it, too, so that they can be seen, executed in, killed and read; the engine
keeps no record of those. Waiting is for events, nothing polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Literal, Protocol

import structlog

from engine.containers import names, tasks
from engine.containers.container import Container
from engine.containers.records import RecordFiles
from engine.ports import Event, Events
from shoal.errors import FailedPrecondition, ResourceExhausted
from shoal.model.row import Row
from worker.health.core import Health
from worker.runtime.api import ContainerStatus, Runtime
from worker.runtime.interactive import InteractiveRuntime

_log = structlog.get_logger()

WaitCondition = Literal["not-running", "next-exit", "removed"]


class NodeRuntime(Runtime, InteractiveRuntime, Protocol):
    """All a runtime offers."""


class Exit(Row, frozen=True):
    """How a container ended."""

    code: int
    error: str = ""


class Watch:
    """Sees the end of a container that comes after this was made."""

    def __init__(self, container: Container, condition: WaitCondition) -> None:
        self._container = container
        self._condition = condition
        self._ends = container.ends

    async def end(self) -> Exit:
        """Return when it has come."""
        await self._container.until(self._is_over)
        return Exit(self._container.exit_code)

    def _is_over(self) -> bool:
        one = self._container
        if one.removed or self._condition == "removed":
            return one.removed
        if self._condition == "next-exit":
            return one.ends > self._ends
        return not one.running


class Containers:
    """Every container of the node by id and name."""

    def __init__(
        self,
        files: RecordFiles,
        runtime: Runtime,
        container_dir: Callable[[str], str],
        events: Events,
    ) -> None:
        self._files = files
        self._runtime = runtime
        self._container_dir = container_dir
        self._events = events
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, str] = {}
        self._ended: Callable[[Container], None] = _nothing
        self.unreadable: Mapping[str, frozenset[str]] = {}
        """Containers whose record cannot be read, with the names that stand in it."""

    # For everybody ----------------------------------------------------------------------------

    def find(self, ref: str) -> Container:
        """By full id, name (with or without `/`), or unique id prefix.

        Raises: NotFound `No such container: x`, InvalidArgument when the prefix is ambiguous.
        """
        return self._by_id[names.find(ref, self._by_id, self._by_name)]

    def find_running(self, ref: str) -> Container:
        """One whose process lives. Raises: NotFound, FailedPrecondition in Docker's words."""
        container = self.find(ref)
        if not container.has_process:
            state = "restarting, wait until the container is" if container.restarting else "not"
            raise FailedPrecondition(f"Container {container.id} is {state} running")
        return container

    def all(self) -> list[Container]:
        """Every container, newest first."""
        return sorted(
            self._by_id.values(), key=lambda one: (one.record.created_at_ns, one.id), reverse=True
        )

    async def refresh_health(self, *chosen: Container) -> None:
        """Look up what the agent knows of the health of tasks among these containers."""

        def read() -> list[Health | None]:
            return [
                None if one.status is None
                else tasks.health_of(one.status, self._container_dir(one.id))
                for one in theirs
            ]  # fmt: skip

        theirs = [one for one in chosen if one.task]
        if theirs:
            for one, health in zip(theirs, await asyncio.to_thread(read), strict=True):
                one.health = health

    async def started(self, container: str) -> None:
        """Return when the container runs or has ended after running, or is gone."""
        one = self.find(container)
        await one.until(lambda: one.has_process or one.has_run or one.removed)

    async def wait(self, container: str, condition: WaitCondition = "not-running") -> Exit:
        """Return when it has ended (and is gone), with how. Raises: NotFound."""
        return await self.watch(container, condition).end()

    def watch(self, container: str, condition: WaitCondition = "not-running") -> Watch:
        """As `wait`, but from this moment on, however late its end is asked for."""
        return Watch(self.find(container), condition)

    def publish(
        self, container: Container, action: str, attributes: Mapping[str, str] | None = None
    ) -> None:
        """Tell the readers of events what happened to a container."""
        record = container.record
        about = {**(record.config.labels or {}), "image": record.image, "name": record.name}
        self._events.publish(
            Event("container", action, container.id, {**about, **(attributes or {})})
        )

    def tell_of_task(self, task: str, action: str, attributes: Mapping[str, str]) -> None:
        """What the agent's checks do to a task's container."""
        container = self._by_id.get(task)
        if container is not None:
            self.publish(container, action, attributes)

    # For lifecycle ----------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Something that happened to what a container uses."""
        self._events.publish(event)

    @property
    def names(self) -> Mapping[str, str]:
        """Ids by name."""
        return self._by_name

    def on_end(self, ended: Callable[[Container], None]) -> None:
        """Call `ended` whenever a container of ours has ended."""
        self._ended = ended

    def reserve(self, name: str, container: str) -> None:
        """Take a name before its container is there. Raises: Refused 409."""
        owner = self._by_name.get(name)
        if owner is not None and owner != container:
            raise names.conflict(name, owner)
        self._by_name[name] = container

    def release(self, name: str, container: str) -> None:
        """Give a name back, if it is still the container's."""
        if self._by_name.get(name) == container:
            del self._by_name[name]

    def add(self, container: Container) -> None:
        """Show a container; its name is reserved."""
        self._by_id[container.id] = container
        self._by_name[container.name] = container.id

    def forget(self, container: Container) -> None:
        """The container is gone: whoever waits for that is told."""
        self._by_id.pop(container.id, None)
        self.release(container.name, container.id)
        container.removed = True
        container.wake()

    async def save(self, container: Container, *, durable: bool = True, **changes: object) -> None:
        """Change its record: written first, shown then. Raises: ResourceExhausted, OSError.

        durable: what somebody asked for outlives a power cut; what a start notes need not.
        """
        async with container.writing:
            record = container.record.replaced(**changes)
            await asyncio.to_thread(self._files.save, record, durable=durable)
            container.record = record
        container.wake()

    async def note(self, container: Container, **changes: object) -> None:
        """Change its record by what has happened: shown at once, written if that can be done.

        After a crash the runtime tells the same again.
        """
        container.record = container.record.replaced(**changes)
        container.wake()
        try:
            async with container.writing:
                container.record = container.record.replaced(**changes)
                await asyncio.to_thread(self._files.save, container.record, durable=False)
        except (OSError, ResourceExhausted) as error:
            _log.error("container.record_not_written", id=container.id, reason=str(error))

    async def mark(self, container: Container, **changes: object) -> None:
        """Change its record by what takes from it: on a full disk as `note`, to give space back."""
        try:
            await self.save(container, durable=True, **changes)
        except ResourceExhausted:
            await self.note(container, **changes)

    async def erase(self, container: Container) -> None:
        """Remove the record's file. Raises: OSError."""
        async with container.writing:
            await asyncio.to_thread(self._files.remove, container.id)

    # What the runtime tells -------------------------------------------------------------------

    async def follow(self) -> None:
        """Take in every change of every container, for ever."""
        async with aclosing(self._runtime.events()) as statuses:  # type: ignore[type-var]
            async for status in statuses:
                await self.take(status)

    async def take(self, status: ContainerStatus) -> None:
        """Take in one status."""
        container = self._by_id.get(status.id)
        if container is None:
            await self._meet_task(status)
            return
        if status.removed:
            if container.task:
                self.publish(container, "destroy")
                self.forget(container)
            return
        lived = container.has_process
        container.take(status)
        if container.task and container.has_process and not lived:
            self.publish(container, "start")
        if container.task and lived and not container.has_process:
            container.ends += 1
            self.publish(container, "die", {"exitCode": str(container.exit_code)})
        self.look_for_end(container)
        container.wake()

    def look_for_end(self, container: Container) -> None:
        """See that the end of a container of ours is dealt with."""
        if not container.task and not container.ending and container.is_unsettled:
            self._ended(container)

    async def _meet_task(self, status: ContainerStatus) -> None:
        if status.removed or not tasks.is_task(status):
            return
        record = await tasks.record_of(status, self._container_dir(status.id))
        container = Container(record, status, task=True)
        if status.id not in self._by_id:
            self.add(container)
            if not record.started:  # else it was there before the worker
                self.publish(container, "create")


def _nothing(container: Container) -> None:
    del container
