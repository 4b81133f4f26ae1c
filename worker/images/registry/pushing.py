"""Images to registries: what is not there of the layers, then configuration, manifest, and name.

The manifest goes as it is kept, so that a digest stays what it was. A blob that another repository
of the same registry has is mounted from there instead of being sent. Uploads start over when they
break; the manifest goes last, so a push that fails leaves no half image under a name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import BinaryIO

import structlog

from shoal.errors import NotFound
from shoal.model.reference import Reference, parse_reference
from worker.images import oci
from worker.images.ledger import Ledger
from worker.images.model import Image, Layer
from worker.images.registry.api import Progress, Pushed, RegistrySettings, Step
from worker.images.registry.client import RegistryClient
from worker.images.registry.pulling import Rarely
from worker.images.registry.refusals import Refusal

PIECE_BYTES = 256 << 10
SOURCES_MAX = 3
"""Repositories that are asked for a blob before it is sent."""

_log = structlog.get_logger()


class Pusher:
    """Pushes out of one ledger."""

    def __init__(
        self, ledger: Ledger, registries: RegistrySettings, now_ns: Callable[[], int]
    ) -> None:
        self._ledger = ledger
        self._uploads = asyncio.Semaphore(registries.parallel_uploads)
        self._now_ns = now_ns

    async def push(
        self, client: RegistryClient, name: Reference, image: Image, tell: Progress
    ) -> Pushed:
        """Send one image under one tag. Raises as `worker.images.registry.api.Registry.push`."""
        async with self._ledger.lease(image.id):
            manifest = await self._document(image.digest, image)
            layers = list({layer.diff_id: layer for layer in image.layers}.values())
            for layer in reversed(layers):
                tell(Step(status="Preparing", id=layer.diff_id[7:19]))
            async with asyncio.TaskGroup() as group:
                for layer in layers:
                    group.create_task(self._layer(client, name, layer, tell))
            await self._configuration(client, name, image)
            await self._manifest(client, name, manifest)
            digest = oci.sha256(manifest)
            known_as = Reference(registry=name.registry, repository=name.repository, digest=digest)
            await self._ledger.add_names(image.id, [], self._now_ns(), [known_as])
        tell(Step(status=f"{name.tag}: digest: {digest} size: {len(manifest)}"))
        _log.info("image.pushed", image=image.id, name=str(name), digest=digest)
        return Pushed(name.tag or "", digest, len(manifest))

    async def _layer(
        self, client: RegistryClient, name: Reference, layer: Layer, tell: Progress
    ) -> None:
        short = layer.diff_id[7:19]
        if self._uploads.locked():
            tell(Step(status="Waiting", id=short))
        async with self._uploads:
            if await client.exists(_blob_path(name, layer.blob_digest), scope=_scope(name)):
                tell(Step(status="Layer already exists", id=short))
                return
            mounted = await self._mounted(client, name, layer)
            if mounted:
                tell(Step(status=f"Mounted from {mounted}", id=short))
                return
            rare = Rarely()

            def told(count: int) -> None:
                if rare.is_time():
                    total = layer.blob_bytes
                    tell(Step(status="Pushing", id=short, current=count, total=total))

            await self._sent(client, name, layer.blob_digest, layer.blob_bytes, told)
            tell(Step(status="Pushed", id=short))

    async def _configuration(self, client: RegistryClient, name: Reference, image: Image) -> None:
        if await client.exists(_blob_path(name, image.id), scope=_scope(name)):
            return
        size = len(await self._document(image.id, image))
        await self._sent(client, name, image.id, size, lambda count: None)

    async def _manifest(self, client: RegistryClient, name: Reference, manifest: bytes) -> None:
        headers = {"Content-Type": oci.manifest_type(manifest)}

        async def once() -> None:
            async with client.call(
                "PUT",
                f"v2/{name.repository}/manifests/{name.tag}",
                scope=_scope(name),
                headers=headers,
                data=lambda: manifest,
            ):
                return

        await client.persistent(once)

    # -- blobs ------------------------------------------------------------------------------

    async def _mounted(self, client: RegistryClient, name: Reference, layer: Layer) -> str:
        """The repository the registry has taken the blob from, or ""."""
        for source in self._sources(name, layer)[:SOURCES_MAX]:
            path = f"v2/{name.repository}/blobs/uploads/?mount={layer.blob_digest}&from={source}"
            scope = f"{_scope(name)} repository:{source}:pull"
            try:
                async with client.call(
                    "POST", path, scope=scope, headers={"Content-Length": "0"}
                ) as answer:
                    if answer.status == 201:
                        return source
                    location = answer.headers.get("Location", "")
                await self._forget_upload(client, name, location)
            except Refusal as refusal:
                if refusal.retryable:
                    raise
        return ""

    def _sources(self, name: Reference, layer: Layer) -> list[str]:
        """Repositories of the registry that had an image with this very blob."""
        index = self._ledger.index
        found = {
            known.repository
            for text, image_id in index.digests.items()
            if (known := parse_reference(text)).registry == name.registry
            and known.repository != name.repository
            and any(one.blob_digest == layer.blob_digest for one in index.images[image_id].layers)
        }
        return sorted(found)

    async def _forget_upload(self, client: RegistryClient, name: Reference, location: str) -> None:
        """The registry did not mount but opened an upload nobody will use."""
        if not location:
            return
        try:
            async with client.call("DELETE", client.same_place(location), scope=_scope(name)):
                return
        except Refusal:
            return  # it ends by itself

    async def _sent(
        self,
        client: RegistryClient,
        name: Reference,
        digest: str,
        size: int,
        told: Callable[[int], None],
    ) -> None:
        async def once() -> None:
            async with client.call(
                "POST",
                f"v2/{name.repository}/blobs/uploads/",
                scope=_scope(name),
                headers={"Content-Length": "0"},
            ) as answer:
                location = client.same_place(answer.headers.get("Location", ""))
            joint = "&" if "?" in location else "?"
            file = await asyncio.to_thread(self._ledger.disk.blob(digest).open, "rb")
            with file:
                async with client.call(
                    "PUT",
                    f"{location}{joint}digest={digest}",
                    scope=_scope(name),
                    headers={
                        "Content-Length": str(size),
                        "Content-Type": "application/octet-stream",
                    },
                    data=lambda: _pieces(file, told),
                ):
                    return

        await client.persistent(once)

    async def _document(self, digest: str, image: Image) -> bytes:
        try:
            return await asyncio.to_thread(self._ledger.disk.blob(digest).read_bytes)
        except FileNotFoundError:
            raise NotFound(f"No such image: {image.id}") from None


async def _pieces(file: BinaryIO, told: Callable[[int], None]) -> AsyncIterator[bytes]:
    await asyncio.to_thread(file.seek, 0)
    sent = 0
    while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
        yield piece
        sent += len(piece)
        told(sent)


def _blob_path(name: Reference, digest: str) -> str:
    return f"v2/{name.repository}/blobs/{digest}"


def _scope(name: Reference) -> str:
    return f"repository:{name.repository}:pull,push"


def tags_of(images: Sequence[Image], name: Reference) -> list[tuple[Reference, Image]]:
    """What a push of a name takes: the tag, or of a bare name every tag. Pure."""
    return [
        (known, image)
        for image in images
        for known in map(parse_reference, image.names)
        if (known.registry, known.repository) == (name.registry, name.repository)
        and name.tag in (None, known.tag)
    ]
