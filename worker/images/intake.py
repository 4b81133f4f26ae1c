"""How images come in: a root file system becomes one, an archive of images is loaded.

Each runs as one job of the ledger: children read and unpack inside the job's directory, digests are
compared, complete parts are published, and the index entry comes last. Whatever fails, the job
takes back what it made.
"""

from __future__ import annotations

import asyncio
import datetime
import platform
from collections.abc import Sequence
from pathlib import Path

import structlog

from shoal.clock import NS_PER_S, Clock
from shoal.errors import Internal
from shoal.model.reference import Reference
from worker.images import archive, jobs, oci
from worker.images.index import ImageRecord
from worker.images.layering import Layering, Wanted
from worker.images.ledger import Added, Job, Ledger
from worker.images.model import ImageConfig, Layer, StoreSettings
from worker.images.runner import Source

_log = structlog.get_logger()


class Intake:
    """Imports and loads into one ledger."""

    def __init__(
        self, ledger: Ledger, layering: Layering, settings: StoreSettings, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._layering = layering
        self.host = oci.host_platform(platform.machine())

    async def import_rootfs(
        self, source: Source, config: ImageConfig, names: Sequence[Reference], comment: str = ""
    ) -> str:
        """One layer, one image. Result: its id."""
        async with self._ledger.job() as job:
            layer = await self._layering.root(job, source)
            document = oci.build_config(
                config,
                platform=self.host,
                created=self.now_text(),
                diff_ids=[layer.diff_id],
                comment=comment
                or f"Imported from {source.name if isinstance(source, Path) else '-'}",
            )
            record = await self.documents(job, document, manifest=None, layers=[layer])
            await self._ledger.record(job, [self.added(record, names)])
        _log.info("image.imported", image=record.id, names=[str(name) for name in names])
        return record.id

    async def load(self, source: Source) -> list[str]:
        """Every image of an archive. Result: short names, or ids of images without one."""
        async with self._ledger.job() as job:
            members = job.path("members")
            await asyncio.to_thread(members.mkdir)
            split = await self._layering.runner.run(
                jobs.SplitJob(
                    destination=str(members),
                    members_max=self._settings.members_max,
                    limits=self._settings.limits,
                ),
                source,
            )
            if not isinstance(split, jobs.Split):
                raise Internal("the splitting process gave another job's answer")
            planned = await asyncio.to_thread(self._plan, split, members)
            added = [await self._load_one(job, image, members) for image in planned]
            await self._ledger.record(job, added)
        _log.info("image.loaded", images=[one.record.id for one in added])
        return [text for one in added for text in _spoken(one)]

    def _plan(self, split: jobs.Split, members: Path) -> list[archive.PlannedImage]:
        return archive.Archive(
            split.members,
            lambda member: (members / member.file).read_bytes(),
            host=self.host,
            settings=self._settings,
        ).plan()

    async def _load_one(self, job: Job, image: archive.PlannedImage, members: Path) -> Added:
        def wanted(member: jobs.Member, diff_id: str) -> Wanted:
            return Wanted(
                name=member.name,
                diff_id=diff_id,
                digest=member.digest,
                fetch=lambda: self._blob_file(job, members, member),
            )

        layers = await self._layering.layers(
            job, [*map(wanted, image.layers, image.parsed.diff_ids)]
        )
        for layer, member in zip(layers, image.layers, strict=True):
            file = members / member.file
            if await asyncio.to_thread(file.exists):  # else an earlier layer or image published it
                await self._ledger.publish_blob(job, layer.blob_digest, file)
        record = await self.documents(job, image.config, manifest=image.manifest, layers=layers)
        return self.added(record, image.names)

    async def _blob_file(self, job: Job, members: Path, member: jobs.Member) -> Path:
        """Where the member's bytes are now: an earlier image of the archive may have taken it."""
        file = members / member.file
        if member.digest in job.blobs and not await asyncio.to_thread(file.exists):
            return self._ledger.disk.blob(member.digest)
        return file

    async def documents(
        self,
        job: Job,
        document: bytes,
        *,
        manifest: bytes | None,
        layers: Sequence[Layer],
        layers_min: int = 1,
    ) -> ImageRecord:
        """Publish the configuration and manifest; the record of the image they make."""
        image_id = oci.sha256(document)
        if manifest is None:
            manifest = oci.build_manifest(
                config_digest=image_id, config_bytes=len(document), layers=layers
            )
        parsed = oci.parse_config(
            document,
            what="configuration",
            layers_max=self._settings.layers_max,
            layers_min=layers_min,
        )
        await self._ledger.publish_content(job, image_id, document)
        await self._ledger.publish_content(job, oci.sha256(manifest), manifest)
        return ImageRecord(
            id=image_id,
            digest=oci.sha256(manifest),
            created=parsed.created,
            architecture=parsed.platform.architecture,
            os=parsed.platform.os,
            variant=parsed.platform.variant,
            layers=tuple(layers),
            config=parsed.config,
        )

    def added(
        self,
        record: ImageRecord,
        names: Sequence[Reference],
        digests: Sequence[Reference] = (),
    ) -> Added:
        """An image to be made known, by now."""
        return Added(record.tagged(self._clock.now_ns()) if names else record, names, digests)

    def now_ns(self) -> int:
        """The time."""
        return self._clock.now_ns()

    def now_text(self) -> str:
        """The time as configurations carry it."""
        seconds = self._clock.now_ns() / NS_PER_S
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _spoken(added: Added) -> list[str]:
    """How the user is told of a loaded image: its short names, or its id."""
    return [name.familiar() for name in added.names] or [added.record.id]
