"""The node's volumes as the engine uses them: with events told, and errors in Docker's statuses."""

from __future__ import annotations

from collections.abc import Mapping

from engine.containers.records import MountPoint, Record
from engine.http.errors import Refused
from engine.ports import Event, Events
from shoal.errors import DeadlineExceeded, FailedPrecondition
from worker.volumes.api import Volume, VolumeMount, Volumes


class ToldVolumes:
    """Implements `worker.volumes.api.Volumes` by another one."""

    def __init__(self, volumes: Volumes, events: Events) -> None:
        self._volumes = volumes
        self._events = events

    async def create(
        self,
        name: str = "",
        *,
        driver: str = "local",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume:
        """Raises: as the volumes do."""
        known = {volume.name for volume in self._volumes.list()}
        volume = await self._volumes.create(name, driver=driver, options=options, labels=labels)
        if volume.name not in known:
            self._tell(volume.name, "create", volume.driver)
        return volume

    def list(self) -> tuple[Volume, ...]:
        """Every volume, by name."""
        return self._volumes.list()

    def get(self, name: str) -> Volume:
        """Raises: NotFound."""
        return self._volumes.get(name)

    async def remove(self, name: str, *, force: bool = False, user: str = "") -> None:
        """Raises: as the volumes do."""
        known = {volume.name: volume.driver for volume in self._volumes.list()}
        await self._volumes.remove(name, force=force, user=user)
        if name in known:
            self._tell(name, "destroy", known[name])

    async def mount(
        self, name: str, container: str, *, subpath: str = "", copy_from: str = ""
    ) -> VolumeMount:
        """Raises: Refused 500 when it cannot be mounted; else as the volumes do."""
        try:
            return await self._volumes.mount(name, container, subpath=subpath, copy_from=copy_from)
        except (FailedPrecondition, DeadlineExceeded) as error:
            raise Refused(500, error.message) from None

    async def unmount(self, name: str, container: str) -> bool:
        """Raises: as the volumes do."""
        return await self._volumes.unmount(name, container)

    async def users(self) -> Mapping[str, frozenset[str]]:
        """Containers and tasks by the volumes they use."""
        return await self._volumes.users()

    async def size_bytes(self, name: str) -> int:
        """Raises: NotFound."""
        return await self._volumes.size_bytes(name)

    def _tell(self, name: str, action: str, driver: str) -> None:
        self._events.publish(Event("volume", action, name, {"driver": driver}))


def mount_event(point: MountPoint, record: Record) -> Event:
    """A container begins to use a volume."""
    return Event(
        "volume", "mount", point.name,
        {"container": record.id, "destination": point.target, "driver": point.driver or "local",
         "propagation": "", "read/write": "false" if point.read_only else "true"},
    )  # fmt: skip


def unmount_event(point: MountPoint, record: Record) -> Event:
    """A container uses a volume no longer."""
    attributes = {"container": record.id, "driver": point.driver or "local"}
    return Event("volume", "unmount", point.name, attributes)
