"""What the engine's parts say to each other: frozen values and Protocols, no behaviour.

Each part is handed only what it calls, by `engine.app`. What the worker's packages offer has its
Protocol beside them: `worker.runtime.{api,interactive}`, `worker.volumes.api`,
`worker.network.local.api`, `worker.images.registry.api`, `worker.logs.api`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

from shoal.model.row import Row
from worker.images.model import Image

EventType = Literal[
    "builder", "config", "container", "daemon", "image", "network", "node", "plugin", "secret",
    "service", "task", "volume",
]  # fmt: skip
ContainerState = Literal["created", "running", "paused", "restarting", "removing", "exited", "dead"]


class Event(Row, frozen=True):
    """Something that happened to an object, as `docker events` tells it.

    scope: `swarm` of the cluster's objects, `local` of this node's.

    actor: id (of images: the id or the name it was done to). attributes: `name`, `image`, and the
    object's labels. time_ns is filled in by the bus when it is 0.
    """

    type: EventType
    action: str
    actor: str
    attributes: Mapping[str, str] = {}
    time_ns: int = 0
    scope: Literal["local", "swarm"] = "local"


class Events(Protocol):
    """The node's events: bounded history, bounded queue per reader."""

    def publish(self, event: Event) -> None:
        """Tell everybody. Never blocks: a reader that is too slow loses its stream."""
        ...

    def subscribe(
        self, *, since_ns: int | None = None, until_ns: int | None = None, tasks: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Kept events from `since_ns` on, then what happens until `until_ns`.

        tasks: those of type `task` too, which are many and are not kept. Without `since_ns` only
        what happens. The iterator also ends when its reader was too slow.
        """
        ...


class Census(Row, frozen=True):
    """How many containers there are, for `/info`."""

    running: int
    paused: int
    stopped: int


class ContainerView(Row, frozen=True):
    """What other parts may know of a container. Ids are 64 hexadecimal digits, or a task's."""

    id: str
    name: str
    image_id: str
    image: str
    state: ContainerState
    command: str
    created_at_ns: int
    labels: Mapping[str, str]
    volumes: frozenset[str]
    networks: frozenset[str]
    status: str
    """As `docker ps` words it: `Up 4 minutes (healthy)`."""


class ContainerDirectory(Protocol):
    """Which containers there are: of the engine, of tasks, of running builds."""

    def list(self) -> tuple[ContainerView, ...]:
        """Every container, newest first."""
        ...

    def resolve(self, ref: str) -> ContainerView:
        """By full id, name (with or without `/`), or unique id prefix.

        Raises: NotFound `No such container: x`, InvalidArgument when the prefix is ambiguous.
        """
        ...

    async def sizes(self, container: str) -> tuple[int, int]:
        """Bytes of the writable layer, and of the whole root file system."""
        ...

    async def refresh_networks(self, container: str) -> None:
        """Its networks were changed by `network connect` or `disconnect`: write the record."""
        ...


class BuildStep(Row, frozen=True):
    """One RUN of a build: a container that exists only for it."""

    image: Image | None
    """None: from scratch."""
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    shell_text: str
    """The command as the build's output and errors show it."""
    network_mode: str = "default"
    labels: Mapping[str, str] = {}
    extra_hosts: tuple[str, ...] = ()
    limits: Mapping[str, int | str] = {}
    """Fields of `worker.runtime.interactive.Resources`, and `shm_size_bytes`."""
    cgroup_parent: str = ""
    ulimits: tuple[tuple[str, int, int], ...] = ()
    """Name, soft, hard."""


class StepContainer(Row, frozen=True):
    """A build's container. upper: directory of what it has changed, for a new layer."""

    id: str
    upper: str
    root: str
    """Where its file system can be mounted for COPY and ADD, see `BuildContainers.mounted`."""
    layers: tuple[str, ...] = ()
    """Directories of its image's layers, topmost first; never none."""


class BuildContainers(Protocol):
    """Containers for builds: visible in `docker ps`, removed with their step."""

    async def create(self, step: BuildStep) -> StepContainer:
        """Make the container of a step; nothing runs."""
        ...

    def run(self, container: str) -> AsyncIterator[tuple[int, bytes]]:
        """Run it to its end, giving what it writes (1: stdout, 2: stderr)."""
        ...

    async def exit_code(self, container: str) -> int:
        """How it ended. Raises: FailedPrecondition when it could not be started."""
        ...

    def mounted(self, container: str) -> AbstractAsyncContextManager[str]:
        """Its root file system at a private place, while inside: for COPY without running."""
        ...

    async def remove(self, container: str) -> None:
        """Remove it. Idempotent; runs to its end when the build is cancelled."""
        ...


class Images(Protocol):
    """What containers and builds need of images, beyond `worker.images.store.ImageStore`."""

    def resolve(self, ref: str) -> Image:
        """Raises: NotFound `No such image: web:latest`."""
        ...

    def layers(self, image: Image) -> tuple[str, ...]:
        """Directories of the layers, topmost first."""
        ...

    def lease(self, image_id: str) -> AbstractAsyncContextManager[None]:
        """Keep an image, name or not, from being removed while inside."""
        ...

    async def commit(
        self,
        upper: str,
        base: Image | None,
        config: bytes,
        *,
        comment: str = "",
        author: str = "",
        created_by: str = "",
        name: str = "",
    ) -> Image:
        """One more layer from an overlay's upper directory, as an image on top of `base`.

        upper "": only the configuration changes (an empty layer in the history). config: JSON of
        the new image's `config` object. Raises: ResourceExhausted, InvalidArgument.
        """
        ...


class ImageUsers(Protocol):
    """Who uses an image: containers, tasks about to start, builds. Asked before a removal."""

    async def __call__(self) -> Mapping[str, frozenset[str]]:
        """Container ids by image id."""
        ...
