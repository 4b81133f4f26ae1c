"""Builders and a node without a kernel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from shoal.ids import base36
from shoal.model.enums import PublishMode, TaskState
from shoal.model.objects import Task
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import Annotations, Endpoint, PortConfig, TaskStatus
from tests.support.fakes import DEADLINE_S, FakeClock, FakeImages, FakeNetworks, FakeRuntime
from worker.agent.files import TaskFiles
from worker.agent.health import HealthChecks
from worker.agent.records import Records
from worker.agent.reporter import Reporter
from worker.agent.tasks import NodeTasks
from worker.agent.templates import NodeFacts
from worker.agent.volumes import TaskVolumes, users_of
from worker.volumes.local import LocalVolumes
from worker.volumes.records import VolumeFiles
from worker.volumes.ways import Ways

FACTS = NodeFacts(id="node1", hostname="alpha", os="linux", architecture="amd64")


def task_id(number: int = 1) -> str:
    return base36(number, 25)


def a_task(
    number: int = 1,
    *,
    state: TaskState = TaskState.ASSIGNED,
    desired: TaskState = TaskState.RUNNING,
    address: str = "",
    host_port: int = 0,
    published: Sequence[PortConfig] = (),
    listen_timeout_ns: int | None = None,
    **spec: object,
) -> Task:
    spec.setdefault("image", "web")
    endpoint = Endpoint(ports=tuple(published)) if published else None
    if host_port:
        port = PortConfig(target_port=80, published_port=host_port, publish_mode=PublishMode.HOST)
        endpoint = Endpoint(ports=(port,))
    return Task(
        id=task_id(number),
        spec=TaskSpec(runtime=ContainerSpec(**spec), listen_timeout_ns=listen_timeout_ns),
        service_id="service1",
        service_annotations=Annotations(name="front", labels={"tier": "edge"}),
        slot=number,
        node_id="node1",
        status=TaskStatus(state=state, address=address),
        desired_state=desired,
        endpoint=endpoint,
    )


async def until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Poll until true."""
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.001)


class NoteReporter(Reporter):
    """Keeps every report besides what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[tuple[str, TaskStatus]] = []

    def report(self, task_id: str, status: TaskStatus) -> None:
        self.reports.append((task_id, status))
        super().report(task_id, status)


class FakeContents:
    """Directories of an image by their paths."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}

    @asynccontextmanager
    async def content(self, container: str, layers: Sequence[str], path: str) -> AsyncIterator[str]:
        yield self.places.get(path, "")


class FakeNode:
    """NodeTasks over fakes, with its events followed."""

    def __init__(self, directory: Path, runtime: FakeRuntime | None = None) -> None:
        self.directory = directory
        self.runtime = runtime or FakeRuntime()
        self.networks = FakeNetworks()
        self.images = FakeImages()
        self.clock = FakeClock()
        self.reporter = NoteReporter()
        self.records = Records(directory)
        self.contents = FakeContents()
        files = VolumeFiles(directory / "volumes")
        known, _ = files.open()
        self.volumes = LocalVolumes(files, Ways(directory / "ways"), self.clock)
        self.volumes._volumes = known
        self.volumes.add_users(self._volume_users, self._volume_users)
        self.users_known = asyncio.Event()
        self.users_known.set()
        self.tasks = NodeTasks(
            runtime=self.runtime,
            images=self.images,
            networks=self.networks,
            volumes=TaskVolumes(self.volumes, self.contents, FACTS, self.users_known),
            files=TaskFiles(directory / "files", FACTS),
            records=self.records,
            reporter=self.reporter,
            facts=FACTS,
            clock=self.clock,
            checks=HealthChecks(self.runtime, self.clock, self.container_dir),
        )
        self._events: asyncio.Task[None] | None = None

    def container_dir(self, container: str) -> str:
        place = self.directory / "containers" / container
        place.mkdir(parents=True, exist_ok=True)
        return str(place)

    async def __aenter__(self) -> FakeNode:
        await self.tasks.restore()
        self._events = asyncio.create_task(self.tasks.follow_runtime())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._events is not None
        self._events.cancel()
        await asyncio.gather(self._events, return_exceptions=True)
        await self.tasks.stop()
        self.volumes.close()

    async def _volume_users(self) -> Mapping[str, frozenset[str]]:
        return users_of(await self.runtime.list())

    def states(self, number: int = 1) -> list[str]:
        """States reported of a task, in order, without repetition."""
        names = [s.state.name for t, s in self.reporter.reports if t == task_id(number)]
        return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]

    def status(self, number: int = 1) -> TaskStatus:
        task = self.tasks.task(task_id(number))
        assert task is not None
        return task.status

    def state(self, number: int = 1) -> TaskState:
        return self.status(number).state

    async def reach(self, state: TaskState, number: int = 1) -> TaskStatus:
        await until(lambda: self.tasks.task(task_id(number)) and self.state(number) is state)
        return self.status(number)

    def want(self, desired: TaskState, number: int = 1) -> None:
        task = self.tasks.task(task_id(number))
        assert task is not None
        self.tasks.assign(task.replaced(desired_state=desired))
