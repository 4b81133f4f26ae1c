"""The volumes of this node's tasks: made and filled with the container, let go when it has ended.

A named volume stays when its tasks go: it is the node's. One without a name says in its labels
whose it is and is removed with the task's container. Who uses a volume is told by the containers'
labels, so this holds without an agent, too. Nothing is unmounted or removed before everybody who
keeps records of containers has been heard of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog

from shoal.errors import NotFound, SwarmError
from shoal.model.enums import MountType
from shoal.model.objects import Task
from shoal.model.types import Driver, Mount
from worker.agent.container import TASK_ID_LABEL, VOLUMES_LABEL
from worker.agent.templates import NodeFacts, expand
from worker.runtime.api import ContainerStatus
from worker.volumes.api import Volume, Volumes

TARGET_LABEL = "dev.shoal.target"
"""Of a volume without a name: where in its task's container it is."""
LOCAL = "local"

_log = structlog.get_logger()


class Contents(Protocol):
    """What images have at a path: `worker.files.layers.Layers`."""

    def content(
        self, container: str, layers: Sequence[str], path: str
    ) -> AbstractAsyncContextManager[str]:
        """A directory of an image, while inside; "" when the image has none there."""
        ...


class TaskVolumes:
    """users_known: set when all who keep records of containers are known to the volumes."""

    def __init__(
        self, volumes: Volumes, contents: Contents, node: NodeFacts, users_known: asyncio.Event
    ) -> None:
        self._volumes = volumes
        self._contents = contents
        self._node = node
        self._users_known = users_known

    async def make(self, task: Task) -> dict[str, Volume]:
        """The task's volumes by their mounts' targets; what is missing is made.

        Raises: InvalidArgument, NotFound (driver), AlreadyExists (with other options), or what the
        disk says.
        """
        return {mount.target: await self._make(task, mount) for mount in _mounts(task)}

    async def fill(self, task: Task, layers: Sequence[str]) -> None:
        """Give what is empty the image's content at its place; the volumes are held from then on.

        The task's container is made and does not run. Raises: NotFound for a volume that somebody
        has removed since it was made; FailedPrecondition, DeadlineExceeded.
        """
        for mount, name in self._named(task):
            if mount.volume_nocopy:
                await self._volumes.mount(name, task.id)
                continue
            target = expand(mount.target, task, self._node)
            async with self._contents.content(task.id, layers, target) as source:
                await self._volumes.mount(name, task.id, copy_from=source)

    async def hold(self, task: Task) -> None:
        """Have the content reachable: the container is about to start. Raises: as `fill`."""
        for _, name in self._named(task):
            await self._volumes.mount(name, task.id)

    async def release(self, task: Task) -> None:
        """The container has ended. Idempotent; what cannot be unmounted is logged."""
        for mount in _mounts(task):
            await self._users_known.wait()
            try:
                await self._volumes.unmount(self._name(task, mount), task.id)
            except NotFound:
                continue
            except SwarmError as error:
                _log.warning("volume.mount_kept", task_id=task.id, reason=error.message)

    async def remove(self, task_id: str) -> None:
        """The container is gone: so are its volumes without a name. Idempotent."""
        if any(_owner(volume) == task_id for volume in self._volumes.list()):
            await self._users_known.wait()
            await remove_of_tasks(self._volumes, task_id)

    async def _make(self, task: Task, mount: Mount) -> Volume:
        driver = mount.volume_driver or Driver()
        labels = dict(mount.volume_labels)
        name = expand(mount.source, task, self._node)
        if not name:
            known = self._unnamed(task, mount)
            if known is not None:
                return known
            labels |= {TASK_ID_LABEL: task.id, TARGET_LABEL: mount.target}
        return await self._volumes.create(
            name, driver=driver.name or LOCAL, options=driver.options, labels=labels
        )

    def _named(self, task: Task) -> Iterator[tuple[Mount, str]]:
        for mount in _mounts(task):
            yield mount, self._name(task, mount)

    def _name(self, task: Task, mount: Mount) -> str:
        name = expand(mount.source, task, self._node)
        if name:
            return name
        volume = self._unnamed(task, mount)
        if volume is None:
            raise NotFound(f"mount {mount.target}: its volume is gone: somebody has removed it")
        return volume.name

    def _unnamed(self, task: Task, mount: Mount) -> Volume | None:
        for volume in self._volumes.list():
            if _owner(volume) == task.id and volume.labels.get(TARGET_LABEL) == mount.target:
                return volume
        return None


async def remove_of_tasks(volumes: Volumes, task_id: str = "") -> None:
    """Remove the volumes without a name of one task, or of all; what is in use is logged."""
    for volume in volumes.list():
        owner = _owner(volume)
        if not owner or task_id not in {"", owner}:
            continue
        try:
            await volumes.remove(volume.name, force=True, user=owner)
        except SwarmError as error:
            _log.warning("volume.not_removed", volume=volume.name, reason=error.message)


def users_of(
    containers: Iterable[ContainerStatus], *, running: bool = False
) -> Mapping[str, frozenset[str]]:
    """The containers of tasks by the volumes they use, all or those that run."""
    users: dict[str, set[str]] = {}
    for status in containers:
        if running and status.state != "running":
            continue
        for name in status.labels.get(VOLUMES_LABEL, "").split():
            users.setdefault(name, set()).add(status.id)
    return {name: frozenset(ids) for name, ids in users.items()}


def _mounts(task: Task) -> tuple[Mount, ...]:
    return tuple(mount for mount in task.container.mounts if mount.type is MountType.VOLUME)


def _owner(volume: Volume) -> str:
    return volume.labels.get(TASK_ID_LABEL, "") if volume.anonymous else ""
