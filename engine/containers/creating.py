"""Making a container: everything is checked first, its record is written, then the runtime's part.

All or nothing: what fails leaves no record, no name taken, no volume made. Nothing runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from engine.containers import checks, config, defaults, mounts, names, networking, platforms
from engine.containers.container import Container
from engine.containers.filling import Filler
from engine.containers.ground import Grounds, ImageSource, check_sources
from engine.containers.records import MountPoint, Record
from engine.containers.requests import Config, CreateRequest, HostConfig
from engine.containers.service import Containers
from engine.http.errors import Refused
from shoal.clock import Clock
from shoal.errors import NotFound, SwarmError, Unimplemented
from worker.images.model import Image, ImageConfig
from worker.logs.api import LogDriver, Logs
from worker.network.local.api import HOST
from worker.runtime.api import ContainerConfig, Runtime
from worker.volumes.api import Volumes


class Creator:
    """Makes containers. logs, volumes: None when this node has none."""

    def __init__(
        self,
        *,
        containers: Containers,
        runtime: Runtime,
        images: ImageSource,
        grounds: Grounds,
        filler: Filler,
        volumes: Volumes | None,
        logs: Logs | None,
        facts: checks.NodeFacts,
        hostname: str,
        clock: Clock,
    ) -> None:
        self._containers = containers
        self._runtime = runtime
        self._images = images
        self._grounds = grounds
        self._filler = filler
        self._volumes = volumes
        self._logs = logs
        self._facts = facts
        self._hostname = hostname
        self._clock = clock

    async def create(
        self, request: CreateRequest, name: str = "", platform: str = ""
    ) -> tuple[str, list[str]]:
        """Make it. Result: its id, and warnings. platform: what the image must be for; "": any.

        Raises: NotFound `No such image: x`, Refused 409 (the name), InvalidArgument, Unimplemented.
        """
        image = self._images.resolve(request.image)
        platforms.check(image, request.image, platform, self._facts.platform)
        container = await self.create_from(request, image, name)
        warning = "" if platform else platforms.warning(image, self._facts.platform)
        warnings = [warning] if warning else []
        return container.id, warnings + self._warnings(container.record.host)

    async def create_from(
        self, request: CreateRequest, image: Image | None, name: str = ""
    ) -> Container:
        """Make one of an image, or of nothing. Raises: as `create`."""
        wanted = names.check_name(name) if name else names.invent(self._containers.names)
        record = self._record(request, image, wanted)
        self._supposed(record)  # refuses before anything is made
        await asyncio.to_thread(check_sources, record.mounts)
        self._containers.reserve(record.name, record.id)
        made: list[str] = []
        try:
            record = record.replaced(mounts=await self._volumes_for(record.mounts, made))
            return await self._make(record)
        except BaseException:
            self._containers.release(record.name, record.id)
            await self._unmake(made)
            raise

    def _record(self, request: CreateRequest, image: Image | None, name: str) -> Record:
        """What was asked for, complete. Raises: SwarmError."""
        host = defaults.with_host_defaults(request.host_config)
        asked = defaults.with_image(request, image.config if image else ImageConfig())
        command = defaults.command_of(asked)
        checks.check(asked, host, command, self._facts)
        identifier = names.new_container_id()
        return Record(
            id=identifier,
            name=name,
            created_at_ns=self._clock.now_ns(),
            image_id=image.id if image else "",
            image=request.image,
            path=command[0],
            args=command[1:],
            config=asked.replaced(
                hostname=self._hostname_of(asked, host, identifier),
                exposed_ports=networking.exposed(asked, host),
            ),
            host=self._with_log_defaults(host),
            networks=networking.wishes(asked, host, request.networking_config),
            mounts=mounts.plan(asked, host, self._mounts_of),
        )

    def _hostname_of(self, asked: Config, host: HostConfig, identifier: str) -> str:
        mode = host.network_mode
        if mode.startswith("container:"):
            try:
                return self._containers.find(mode.partition(":")[2]).record.config.hostname
            except NotFound:
                return identifier[:12]
        if HOST in {mode, host.uts_mode}:
            return asked.hostname or self._hostname
        return asked.hostname or identifier[:12]

    def _with_log_defaults(self, host: HostConfig) -> HostConfig:
        driver = LogDriver(name=host.log_config.type, options=host.log_config.config or {})
        if self._logs is not None:
            self._logs.check(driver)
        elif driver.name != defaults.LOG_DRIVER:
            raise Refused(400, f"logger: no log driver named '{driver.name}' is registered")
        return host

    def _mounts_of(self, ref: str) -> Iterable[MountPoint]:
        return self._containers.find(ref).record.mounts

    def _supposed(self, record: Record) -> ContainerConfig:
        return config.container_config(record, self._grounds.supposed(record))

    async def _volumes_for(
        self, points: tuple[MountPoint, ...], made: list[str]
    ) -> tuple[MountPoint, ...]:
        """The mounts, each volume with its name; `made`: those that are new."""
        return tuple([await self._volume_for(point, made) for point in points])

    async def _volume_for(self, point: MountPoint, made: list[str]) -> MountPoint:
        if point.kind != "volume":
            return point
        if self._volumes is None:
            raise Unimplemented(f"Mounts: {point.target}: this node keeps no volumes")
        known = {volume.name for volume in self._volumes.list()}
        volume = await self._volumes.create(
            point.name, driver=point.driver or "local", options=point.driver_options,
            labels=point.volume_labels,
        )  # fmt: skip
        if volume.name not in known:
            made.append(volume.name)
        return point.replaced(name=volume.name, driver=volume.driver, source=volume.mountpoint)

    async def _make(self, record: Record) -> Container:
        container = Container(record)
        async with container.lock:
            await self._containers.save(container)
            self._containers.add(container)
            try:
                container.take(await self._runtime.create(self._supposed(record)))
                await self._filler.fill(container)
            except BaseException:
                await self._undo(container)
                raise
            container.wake()
        self._containers.publish(container, "create")
        return container

    async def _undo(self, container: Container) -> None:
        with suppress(NotFound):
            await self._runtime.remove(container.id, force=True)
        self._containers.forget(container)
        await self._containers.erase(container)

    async def _unmake(self, volumes: list[str]) -> None:
        for name in volumes:
            try:
                if self._volumes is not None:
                    await self._volumes.remove(name, force=True)
            except SwarmError:
                continue  # somebody uses it already: it is no longer ours alone

    def _warnings(self, host: HostConfig) -> list[str]:
        found = []
        if host.network_mode == HOST and host.port_bindings:
            found.append("Published ports are discarded when using host network mode")
        if host.memory and not self._facts.swap_limit:
            found.append(
                "Your kernel does not support swap limit capabilities or the cgroup is not mounted."
                " Memory limited without swap."
            )
        return found
