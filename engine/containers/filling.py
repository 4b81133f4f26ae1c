"""Copy-up: volumes that are empty get what the image has at their place."""

from __future__ import annotations

from engine.containers.container import Container
from engine.containers.ground import Grounds
from engine.containers.service import Containers
from worker.files.layers import Layers
from worker.volumes.api import Volumes


class Filler:
    """volumes: None when this node has none."""

    def __init__(
        self, containers: Containers, volumes: Volumes | None, grounds: Grounds, layers: Layers
    ) -> None:
        self._containers = containers
        self._volumes = volumes
        self._grounds = grounds
        self._layers = layers

    async def fill(self, container: Container) -> None:
        """Fill what is empty, once for each container; its lock is held, and it does not run.

        Raises: NotFound: a volume was removed before it had a user; SwarmError.
        """
        record = container.record
        points = [point for point in record.mounts if point.kind == "volume"]
        if self._volumes is None or record.filled or not points:
            return
        layers = self._grounds.layers(record)
        for point in points:
            self._volumes.get(point.name)
            if not point.copy or point.subpath:
                continue
            async with self._layers.content(record.id, layers, point.target) as source:
                if source:
                    await self._volumes.mount(point.name, record.id, copy_from=source)
                    await self._volumes.unmount(point.name, record.id)
        await self._containers.save(container, durable=False, filled=True)
