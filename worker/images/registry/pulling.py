"""Images from registries: manifest, configuration, layers, and only then a name.

Blobs download a few at a time while others unpack. Every digest is computed here: of manifests,
configurations, blobs and unpacked layers. Two pulls that need one blob share its download. What a
pull has made goes with it when it fails; what it has of unfinished blobs stays for the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from shoal.errors import InvalidArgument, NotFound
from shoal.model.reference import Reference
from worker.images import oci
from worker.images.intake import Intake
from worker.images.keyed import KeyedLocks
from worker.images.layering import Layering, Told, Wanted
from worker.images.ledger import Job, Ledger
from worker.images.model import Image, StoreSettings, digest_hex
from worker.images.registry import manifests
from worker.images.registry.api import Progress, RegistrySettings, Step
from worker.images.registry.blobs import Download
from worker.images.registry.client import RegistryClient
from worker.images.registry.refusals import Refusal, of_pull

_log = structlog.get_logger()


class Found(NamedTuple):
    """What a registry has under a name. digest: of what the name stands for, maybe an index."""

    digest: str
    manifest: oci.Manifest
    content: bytes


class Pulled(NamedTuple):
    """fresh: the name stood for another image before, or for none."""

    image: Image
    fresh: bool


class Puller:
    """Pulls into one ledger."""

    def __init__(
        self,
        ledger: Ledger,
        layering: Layering,
        intake: Intake,
        settings: StoreSettings,
        registries: RegistrySettings,
    ) -> None:
        self._ledger = ledger
        self._layering = layering
        self._intake = intake
        self._settings = settings
        self._downloads = asyncio.Semaphore(registries.parallel_downloads)
        self._blobs = KeyedLocks()

    async def pull(
        self, client: RegistryClient, name: Reference, platform: oci.Platform, tell: Progress
    ) -> Pulled:
        """Bring one image here. Raises as `worker.images.registry.api.Registry.pull`."""
        try:
            found = await self.find(client, name, platform)
        except Refusal as refusal:
            bare = Reference(registry=name.registry, repository=name.repository).familiar()
            raise of_pull(refusal, bare, name.familiar()) from refusal
        tell(
            Step(
                status=f"Pulling from {name.repository}",
                id=name.familiar() if name.digest else name.tag or "",
                whole=True,
            )
        )
        image_id = found.manifest.config.digest
        fresh = not self._is_here(image_id, name)
        if self._is_known(found, image_id):
            await self._name(image_id, name, found.digest)
        else:
            await self._bring(client, name, found, tell)
        tell(Step(status=f"Digest: {found.digest}"))
        _log.info("image.pulled", image=image_id, name=str(name), fresh=fresh)
        return Pulled(self._ledger.index.image(image_id), fresh)

    async def find(self, client: RegistryClient, name: Reference, platform: oci.Platform) -> Found:
        """The manifest of the image for a platform. Raises Refusal, NotFound, InvalidArgument."""
        content, read, digest = await self.top(client, name)
        if isinstance(read, oci.ImageIndex):
            chosen = manifests.choose(read, platform)
            pinned = Reference(
                registry=name.registry, repository=name.repository, digest=chosen.digest
            )
            content, read, _ = await self.top(client, pinned)
            if isinstance(read, oci.ImageIndex):
                raise InvalidArgument(f"{name.familiar()}: an index inside an index is not read")
        return Found(digest, read, content)

    async def top(
        self, client: RegistryClient, name: Reference
    ) -> tuple[bytes, oci.Manifest | oci.ImageIndex, str]:
        """What the name itself stands for, and its digest, which was verified."""
        if name.digest is not None:
            digest_hex(name.digest, "digest")  # what cannot be verified is not asked for
        content, headers = await client.read(
            f"v2/{name.repository}/manifests/{name.digest or name.tag}",
            scope=f"repository:{name.repository}:pull",
            bytes_max=self._settings.metadata_bytes_max,
            headers={"Accept": manifests.ACCEPT},
        )
        digest = oci.sha256(content)
        named = name.digest or headers.get("Docker-Content-Digest", digest)
        if named.startswith("sha256:") and named != digest:
            raise InvalidArgument(
                f"manifest verification failed for digest {named}: the registry sends other content"
            )
        what = f"manifest of {name.familiar()}"
        return content, manifests.read(content, headers.get("Content-Type", ""), what), digest

    # -- an image that is not here ------------------------------------------------------------

    async def _bring(
        self, client: RegistryClient, name: Reference, found: Found, tell: Progress
    ) -> None:
        blobs = found.manifest.layers
        async with self._ledger.job() as job:
            document = await self.configuration(client, name, found.manifest.config)
            parsed = oci.parse_config(
                document,
                what=f"configuration of {name.familiar()}",
                layers_max=self._settings.layers_max,
            )
            if len(parsed.diff_ids) != len(blobs):
                raise InvalidArgument(
                    f"configuration of {name.familiar()} lists {len(parsed.diff_ids)} layers, its"
                    f" manifest {len(blobs)}"
                )
            layers = await self._layering.layers(
                job,
                [
                    Wanted(
                        name=blob.digest,
                        diff_id=diff_id,
                        digest=blob.digest,
                        fetch=self._fetcher(job, client, name, blob, tell),
                    )
                    for blob, diff_id in zip(blobs, parsed.diff_ids, strict=True)
                ],
                _told(blobs, tell),
            )
            record = await self._intake.documents(
                job, document, manifest=found.content, layers=layers
            )
            named, known_as = _names(name, found.digest)
            await self._ledger.record(job, [self._intake.added(record, named, known_as)])

    async def configuration(
        self, client: RegistryClient, name: Reference, blob: oci.Descriptor
    ) -> bytes:
        """An image's configuration, verified."""
        content, _ = await client.read(
            f"v2/{name.repository}/blobs/{blob.digest}",
            scope=f"repository:{name.repository}:pull",
            bytes_max=self._settings.metadata_bytes_max,
        )
        if oci.sha256(content) != blob.digest:
            raise InvalidArgument(
                f"image config verification failed for digest {blob.digest}: the registry sends"
                " other content"
            )
        return content

    def _fetcher(
        self,
        job: Job,
        client: RegistryClient,
        name: Reference,
        blob: oci.Descriptor,
        tell: Progress,
    ) -> Callable[[], Awaitable[Path]]:
        short = blob.digest[7:19]

        async def fetch() -> Path:
            tell(Step(status="Pulling fs layer", id=short))
            if self._downloads.locked():
                tell(Step(status="Waiting", id=short))
            async with self._blobs.hold(blob.digest):
                there = await self._ledger.lease_blob(job, blob.digest)
                if there is None:
                    there = await self._downloaded(job, client, name, blob, tell)
            tell(Step(status="Download complete", id=short))
            return there

        return fetch

    async def _downloaded(
        self,
        job: Job,
        client: RegistryClient,
        name: Reference,
        blob: oci.Descriptor,
        tell: Progress,
    ) -> Path:
        short = blob.digest[7:19]
        rare = Rarely()

        def told(count: int) -> None:
            if rare.is_time():
                tell(Step(status="Downloading", id=short, current=count, total=blob.size))

        disk = self._ledger.disk
        async with self._downloads:
            download = Download(client, name.repository, blob, told)
            await download.to(disk.partial(blob.digest), self._settings.limits.free_bytes_reserve)
        tell(Step(status="Verifying Checksum", id=short))
        await self._ledger.publish_blob(job, blob.digest, disk.partial(blob.digest))
        return disk.blob(blob.digest)

    # -- an image that is here ----------------------------------------------------------------

    def _is_known(self, found: Found, image_id: str) -> bool:
        """Whether this very manifest's image is here, so that a push sends the same again."""
        record = self._ledger.index.images.get(image_id)
        return record is not None and record.digest == oci.sha256(found.content)

    def _is_here(self, image_id: str, name: Reference) -> bool:
        index = self._ledger.index
        if name.digest is not None:
            return index.digests.get(str(name)) == image_id
        return index.names.get(str(name)) == image_id

    async def _name(self, image_id: str, name: Reference, digest: str) -> None:
        names, digests = _names(name, digest)
        try:
            await self._ledger.add_names(image_id, names, self._intake.now_ns(), digests)
        except NotFound:
            raise NotFound(f"No such image: {name.familiar()}: it was removed meanwhile") from None


def _names(name: Reference, digest: str) -> tuple[list[Reference], list[Reference]]:
    """The tag, and what the registry calls the image. A pull by digest gives no tag."""
    known_as = Reference(registry=name.registry, repository=name.repository, digest=digest)
    tagged = Reference(registry=name.registry, repository=name.repository, tag=name.tag)
    return [tagged] if name.tag and not name.digest else [], [known_as]


def _told(blobs: Sequence[oci.Descriptor], tell: Progress) -> Told:
    rare = [Rarely() for _ in blobs]

    def say(at: int, status: str) -> None:
        tell(Step(status=status, id=blobs[at].digest[7:19]))

    def reads(at: int, count: int) -> None:
        if rare[at].is_time() or count == blobs[at].size:
            short, total = blobs[at].digest[7:19], blobs[at].size
            tell(Step(status="Extracting", id=short, current=min(count, total), total=total))

    return Told(
        exists=lambda at: say(at, "Already exists"),
        reads=reads,
        done=lambda at: say(at, "Pull complete"),
    )


class Rarely:
    """Says when progress may be told again: ten times a second at most."""

    PAUSE_S = 0.1

    def __init__(self) -> None:
        self._next_s = 0.0

    def is_time(self) -> bool:
        """Whether it may, now."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self.PAUSE_S
        return True
