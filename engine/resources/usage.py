"""`/system/df`: what images, containers and volumes take of the disk.

The classic builder keeps its cache as images, so there is no other build cache to tell of.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from engine.containers import listing
from engine.containers.parts import ContainerParts
from engine.http.call import Answer, Call, json_answer
from engine.http.filters import Filters
from engine.http.routing import Route
from engine.http.versions import ApiVersion
from engine.images import words
from engine.images.service import NodeImages
from engine.resources import volumes as volume_words
from shoal.errors import InvalidArgument, NotFound
from worker.volumes.api import Volumes

TYPES = ("container", "image", "volume", "build-cache")
SIZES_AT_ONCE = 4
_BUILDER_SIZE_UNTIL = ApiVersion(1, 41)


def routes(parts: ContainerParts, images: NodeImages, volumes: Volumes) -> Iterable[Route]:
    """The one operation."""
    resource = _Resource(parts, images, volumes)
    yield Route("GET", "/system/df", resource.usage, follows_client=True)


class _Resource:
    def __init__(self, parts: ContainerParts, images: NodeImages, volumes: Volumes) -> None:
        self._parts = parts
        self._images = images
        self._volumes = volumes
        self._gate = asyncio.Semaphore(SIZES_AT_ONCE)

    async def usage(self, call: Call) -> Answer:
        wished = call.query.many("type") or list(TYPES)
        for one in wished:
            if one not in TYPES:
                raise InvalidArgument(f"unknown object type: {one}")
        found: dict[str, Any] = {"LayersSize": self._layers_bytes() if "image" in wished else 0}
        found["Images"] = self._image_words(call) if "image" in wished else None
        found["Containers"] = await self._container_words(call) if "container" in wished else None
        found["Volumes"] = await self._volume_words(call) if "volume" in wished else None
        found["BuildCache"] = [] if "build-cache" in wished else None
        if call.version <= _BUILDER_SIZE_UNTIL:
            found["BuilderSize"] = 0
        return json_answer(found)

    def _layers_bytes(self) -> int:
        """Each layer once, however many images have it."""
        sizes = {
            layer.chain_id: layer.unpacked_bytes
            for image in self._images.store.list()
            for layer in image.layers
        }
        return sum(sizes.values())

    def _image_words(self, call: Call) -> list[dict[str, Any]]:
        counts = self._images.sharing()
        users = Counter(view.image_id for view in self._parts.directory.list())
        return [
            words.summary(
                one.image,
                call.version,
                tags=one.tags,
                digests=one.digests,
                shared_bytes=words.shared_bytes(one.image, counts),
                containers=users[one.image.id],
            )
            for one in self._images.select(Filters(), shows_all=False)
        ]

    async def _container_words(self, call: Call) -> list[dict[str, Any]]:
        parts = self._parts
        now_ns, networks = parts.needs.clock.now_ns(), parts.grounds.network_ids()
        chosen = parts.containers.all()
        sizes = await asyncio.gather(*(self._sizes(one.id) for one in chosen))
        return [
            listing.worded(one, now_ns, networks, call.version, size)
            for one, size in zip(chosen, sizes, strict=True)
        ]

    async def _sizes(self, container: str) -> tuple[int, int]:
        async with self._gate:
            try:
                return await self._parts.directory.sizes(container)
            except NotFound:  # it was removed meanwhile
                return 0, 0

    async def _volume_words(self, call: Call) -> list[dict[str, Any]]:
        users = await self._volumes.users()
        found = []
        for volume in self._volumes.list():
            try:
                size = await self._volumes.size_bytes(volume.name)
            except NotFound:
                continue
            usage = {"Size": size, "RefCount": len(users.get(volume.name, ()))}
            found.append({**volume_words.worded(volume, call.version), "UsageData": usage})
        return found
