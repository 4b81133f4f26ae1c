"""The node's way to registries: `pull`, `push`, `describe`, `login`, for the API and for tasks.

Credentials are used for the one call they came with and kept nowhere. Mirrors stand in for
docker.io, are asked anonymously, and are passed over when they fail.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import msgspec
import structlog

from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SwarmError,
)
from shoal.model.reference import DEFAULT_REGISTRY, Reference, parse_reference
from worker.images import oci
from worker.images.intake import Intake
from worker.images.layering import Layering
from worker.images.ledger import Ledger
from worker.images.model import Image, StoreSettings
from worker.images.registry import manifests
from worker.images.registry.api import (
    Credentials,
    Descriptor,
    Progress,
    Pushed,
    RegistrySettings,
    Step,
)
from worker.images.registry.client import RegistryClient
from worker.images.registry.login import RegistryLogin
from worker.images.registry.metrics import counted
from worker.images.registry.places import registry_name
from worker.images.registry.pulling import Pulled, Puller
from worker.images.registry.pushing import Pusher, tags_of
from worker.images.registry.refusals import Refusal, of_pull

TAGS_MAX = 1000
_TAGS_BYTES_MAX = 4 << 20
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')

_log = structlog.get_logger()


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class NodeRegistry:
    """Implements `worker.images.registry.api.Registry` over one image store's ledger."""

    def __init__(
        self,
        ledger: Ledger,
        layering: Layering,
        intake: Intake,
        settings: StoreSettings,
        registries: RegistrySettings,
    ) -> None:
        self.settings = registries
        self._ledger = ledger
        self._host = intake.host
        self._layers_max = settings.layers_max
        self._puller = Puller(ledger, layering, intake, settings, registries)
        self._pusher = Pusher(ledger, registries, intake.now_ns)
        self._login = RegistryLogin(registries)

    async def login(self, credentials: Credentials) -> str:
        """Show a registry who we are. Result: an identity token, mostly ""."""
        return await self._login.login(credentials)

    async def pull(
        self,
        reference: str,
        *,
        credentials: Credentials | None = None,
        platform: str = "",
        all_tags: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Image, ...]:
        """Bring images here; several only with `all_tags`."""
        name = parse_reference(reference)
        wished = manifests.parse_platform(platform, self._host)
        tell = progress or _nobody
        if not all_tags:
            tagged = name.with_default_tag()
            pulled = [await self._pull(tagged, credentials, wished, tell)]
            tell(_status(tagged, pulled))
            return (pulled[0].image,)
        async with self._client(name, credentials) as client:
            tags = await self._tags(client, name)
        pulled = []
        for tag in tags:
            tagged = Reference(registry=name.registry, repository=name.repository, tag=tag)
            pulled.append(await self._pull(tagged, credentials, wished, tell))
        tell(_status(name, pulled))
        return tuple(one.image for one in pulled)

    async def push(
        self,
        reference: str,
        *,
        credentials: Credentials | None = None,
        all_tags: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Pushed, ...]:
        """Send an image's layers, configuration and manifest."""
        name = parse_reference(reference)
        if name.digest is not None:
            raise InvalidArgument("cannot push a digest reference")
        bare = Reference(registry=name.registry, repository=name.repository)
        wanted = bare if all_tags else name.with_default_tag()
        tell = progress or _nobody
        tell(Step(status=f"The push refers to repository [{bare}]"))
        chosen = tags_of(self._ledger.index.all(), wanted)
        if not chosen:
            raise NotFound(f"An image does not exist locally with the tag: {bare.familiar()}")
        async with self._client(name, credentials) as client:
            return tuple([
                await self._pushed(client, tagged, image, tell) for tagged, image in chosen
            ])  # fmt: skip

    async def describe(
        self, reference: str, *, credentials: Credentials | None = None
    ) -> Descriptor:
        """The manifest or index a reference stands for in its registry."""
        name = parse_reference(reference).with_default_tag()
        async with self._client(name, credentials) as client:
            try:
                return await self._describe(client, name)
            except Refusal as refusal:
                if refusal.status == 404:
                    raise NotFound(refusal.message) from refusal
                raise

    # -- parts ------------------------------------------------------------------------------

    async def _pull(
        self,
        name: Reference,
        credentials: Credentials | None,
        platform: oci.Platform,
        tell: Progress,
    ) -> Pulled:
        async with AsyncExitStack() as stack:
            stack.enter_context(counted("pull"))
            for url in self.settings.mirrors if name.registry == DEFAULT_REGISTRY else ():
                mirror = RegistryClient(
                    urlsplit(url).netloc, self.settings, urls=(url.rstrip("/"),)
                )
                try:
                    client = await stack.enter_async_context(mirror)
                    return await self._puller.pull(client, name, platform, tell)
                except ResourceExhausted:
                    raise
                except SwarmError as error:  # it lies, has not got it, or is not there
                    _log.warning("registry.mirror_failed", mirror=url, reason=error.message)
            client = await stack.enter_async_context(self._client(name, credentials))
            return await self._puller.pull(client, name, platform, tell)

    async def _pushed(
        self, client: RegistryClient, name: Reference, image: Image, tell: Progress
    ) -> Pushed:
        try:
            with counted("push"):
                return await self._pusher.push(client, name, image, tell)
        except ExceptionGroup as failures:
            raise _first(failures) from None

    async def _describe(self, client: RegistryClient, name: Reference) -> Descriptor:
        content, read, digest = await self._puller.top(client, name)
        if isinstance(read, oci.ImageIndex):
            platforms = [one.platform for one in manifests.images(read) if one.platform]
            kind = oci.read_document(content, _Kind, "index").media_type or oci.INDEX_TYPE
        else:
            document = await self._puller.configuration(client, name, read.config)
            parsed = oci.parse_config(
                document, what="configuration", layers_max=self._layers_max, layers_min=0
            )
            platforms = [parsed.platform]
            kind = oci.manifest_type(content)
        return Descriptor(
            media_type=kind,
            digest=digest,
            size_bytes=len(content),
            platforms=tuple((one.os, one.architecture, one.variant) for one in platforms),
        )

    async def _tags(self, client: RegistryClient, name: Reference) -> list[str]:
        """Every tag of a repository. Raises NotFound, FailedPrecondition beyond TAGS_MAX."""
        path, tags = f"v2/{name.repository}/tags/list?n=100", list[str]()
        while path:
            try:
                content, headers = await client.read(
                    path,
                    scope=f"repository:{name.repository}:pull",
                    bytes_max=_TAGS_BYTES_MAX,
                )
            except Refusal as refusal:
                familiar = name.familiar()
                raise of_pull(refusal, familiar, familiar) from refusal
            tags += oci.read_document(content, _Tags, "list of tags").tags or []
            if len(tags) > TAGS_MAX:
                raise FailedPrecondition(
                    f"{name.familiar()} has more than {TAGS_MAX} tags: pull those you need"
                )
            found = _NEXT.search(headers.get("Link", ""))
            path = client.same_place(found[1]) if found else ""
        return tags

    def _client(self, name: Reference, credentials: Credentials | None) -> RegistryClient:
        return RegistryClient(registry_name(name.registry), self.settings, credentials)


class _Kind(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType", default="")


def _status(name: Reference, pulled: Sequence[Pulled]) -> Step:
    fresh = any(one.fresh for one in pulled)
    words = "Downloaded newer image for" if fresh else "Image is up to date for"
    return Step(status=f"Status: {words} {name.familiar()}")


def _nobody(step: Step) -> None:
    """Nobody wants to know."""


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    found: Exception = failures
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    return found
