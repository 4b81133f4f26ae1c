"""The Images service of a node: archives in as a stream, answers out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import grpc
from typing_extensions import override

from shoal.api.v1 import node_pb2 as pb
from shoal.api.v1.node_pb2_grpc import ImagesServicer
from shoal.api.v1.types_pb2 import Platform
from shoal.errors import InvalidArgument
from shoal.model.reference import Reference, parse_reference
from worker.images.model import Image
from worker.images.registry.auths import read_auth
from worker.images.store import ImageStore, Users

CHANGES_MAX = 256
_NS_MAX = 2**63 - 1

Context = grpc.aio.ServicerContext[Any, Any]


class ImagesServer(ImagesServicer):
    """Serves `shoal.api.v1.Images`."""

    def __init__(self, store: ImageStore, image_users: Callable[[], Awaitable[Users]]) -> None:
        """image_users: the node's containers, by the id of the image they were made from."""
        self._store = store
        self._image_users = image_users

    @override
    async def ImportImage(
        self, request_iterator: AsyncIterator[pb.ImportImageRequest], context: Context
    ) -> pb.ImportImageResponse:
        first = await _first(request_iterator)
        if len(first.changes) > CHANGES_MAX:
            raise InvalidArgument(f"changes: {len(first.changes)}, at most {CHANGES_MAX}")
        image = await self._store.import_rootfs(
            _chunks(first, request_iterator), first.reference or None, changes=first.changes
        )
        return pb.ImportImageResponse(image=_message(image))

    @override
    async def LoadImages(
        self, request_iterator: AsyncIterator[pb.LoadImagesRequest], context: Context
    ) -> pb.LoadImagesResponse:
        first = await _first(request_iterator)
        names = await self._store.load(_chunks(first, request_iterator))
        return pb.LoadImagesResponse(names=names)

    @override
    async def ListImages(
        self, request: pb.ListImagesRequest, context: Context
    ) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=[_message(image) for image in self._store.list()])

    @override
    async def InspectImage(
        self, request: pb.InspectImageRequest, context: Context
    ) -> pb.InspectImageResponse:
        return pb.InspectImageResponse(image=_message(self._store.resolve(request.image)))

    @override
    async def RemoveImage(
        self, request: pb.RemoveImageRequest, context: Context
    ) -> pb.RemoveImageResponse:
        removal = await self._store.remove(
            request.image, users=await self._image_users(), force=request.force
        )
        return pb.RemoveImageResponse(untagged=removal.untagged, deleted=removal.deleted)

    @override
    async def ResolveImage(
        self, request: pb.ResolveImageRequest, context: Context
    ) -> pb.ResolveImageResponse:
        name = parse_reference(request.image).with_default_tag()
        credentials = read_auth(request.registry_auth)
        found = await self._store.registry.describe(str(name), credentials=credentials)
        pinned = Reference(name.registry, name.repository, name.tag, found.digest)
        return pb.ResolveImageResponse(
            image=pinned.familiar(),
            platforms=[
                Platform(architecture=architecture, os=os)
                for os, architecture, _ in found.platforms
            ],
        )


async def _first(requests: AsyncIterator[Any]) -> Any:
    async for request in requests:
        return request
    raise InvalidArgument("archive: nothing was sent")


async def _chunks(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    if first.chunk:
        yield first.chunk
    async for request in rest:
        yield request.chunk


def _message(image: Image) -> pb.Image:
    config = image.config
    return pb.Image(
        id=image.id,
        names=[parse_reference(name).familiar() for name in image.names],
        digest=image.digest,
        created_at_ns=_nanoseconds(image.created),
        size_bytes=image.size_bytes,
        architecture=image.architecture,
        os=image.os,
        config=pb.ImageConfig(
            env=config.env,
            command=config.cmd or (),
            entrypoint=config.entrypoint or (),
            user=config.user,
            working_dir=config.working_dir,
            stop_signal=config.stop_signal,
            exposed_ports=config.exposed_ports,
            labels=config.labels,
        ),
    )


def _nanoseconds(text: str) -> int:
    """Nanoseconds since 1970 of an RFC 3339 text; 0 when the image does not say.

    Builders that keep no time write one before 1970 (Go's zero time), which counts as not said.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    age = moment - datetime(1970, 1, 1, tzinfo=UTC)
    microseconds = (age.days * 86_400 + age.seconds) * 1_000_000 + age.microseconds
    return min(max(microseconds, 0) * 1_000, _NS_MAX)
