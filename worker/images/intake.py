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
from shoal.errors import Internal, InvalidArgument
from shoal.model.reference import Reference
from worker.images import archive, jobs, oci
from worker.images.index import ImageRecord
from worker.images.keyed import KeyedLocks
from worker.images.ledger import Added, Job, Ledger
from worker.images.model import ImageConfig, Layer, StoreSettings
from worker.images.runner import Runner, Source
from worker.images.settle import settle

_log = structlog.get_logger()


class Intake:
    """Imports and loads into one ledger."""

    def __init__(self, ledger: Ledger, settings: StoreSettings, clock: Clock) -> None:
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._runner = Runner(settings)
        self._chains = KeyedLocks()
        self._host = oci.host_platform(platform.machine())

    async def import_rootfs(
        self, source: Source, config: ImageConfig, names: Sequence[Reference]
    ) -> str:
        """One layer, one image. Result: its id."""
        async with self._ledger.job() as job:
            unpacked = await self._unpack(job, source, slot="layer", keep_blob=True)
            layer = _layer(unpacked, chain_id=unpacked.diff_id)
            async with self._chains.hold(layer.chain_id):
                if not self._known(job, layer.chain_id):
                    await self._settle_and_publish(job, layer, unpacked.implied, slot="layer")
            await self._ledger.publish_blob(job, layer.blob_digest, job.path("layer.blob"))
            document = oci.build_config(
                config,
                platform=self._host,
                created=self._now(),
                diff_ids=[layer.diff_id],
                comment=f"Imported from {source.name if isinstance(source, Path) else '-'}",
            )
            record = await self._documents(job, document, manifest=None, layers=[layer])
            await self._ledger.record(job, [(record, names)])
        _log.info("image.imported", image=record.id, names=[str(name) for name in names])
        return record.id

    async def load(self, source: Source) -> list[str]:
        """Every image of an archive. Result: short names, or ids of images without one."""
        async with self._ledger.job() as job:
            members = job.path("members")
            await asyncio.to_thread(members.mkdir)
            split = await self._runner.run(
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
        _log.info("image.loaded", images=[record.id for record, _ in added])
        return [text for one in added for text in _spoken(one)]

    def _plan(self, split: jobs.Split, members: Path) -> list[archive.PlannedImage]:
        return archive.Archive(
            split.members,
            lambda member: (members / member.file).read_bytes(),
            host=self._host,
            settings=self._settings,
        ).plan()

    async def _load_one(self, job: Job, image: archive.PlannedImage, members: Path) -> Added:
        layers = await self._layers(job, image, members)
        for layer, member in zip(layers, image.layers, strict=True):
            file = members / member.file
            if await asyncio.to_thread(file.exists):  # else an earlier layer or image published it
                await self._ledger.publish_blob(job, layer.blob_digest, file)
        record = await self._documents(job, image.config, manifest=image.manifest, layers=layers)
        return record, image.names

    async def _layers(self, job: Job, image: archive.PlannedImage, members: Path) -> list[Layer]:
        """Unpack what is not there yet, in parallel; each waits for the one below to settle.

        Two loads cannot wait for each other in a circle: equal chain ids have equal chains below,
        so every wait goes to a lower layer.
        """
        chains = oci.chain_ids(image.parsed.diff_ids)
        ready = [asyncio.Event() for _ in chains]
        layers: dict[int, Layer] = {}

        async def one(at: int) -> None:
            async with self._chains.hold(chains[at]):
                below = ready[at - 1] if at else None
                layers[at] = await self._layer(job, image, members, at=at, below=below)
            ready[at].set()

        try:
            async with asyncio.TaskGroup() as group:
                for at in range(len(chains)):
                    group.create_task(one(at), name=f"unpack-layer-{at}")
        except ExceptionGroup as failures:
            raise _first(failures) from None
        return [layers[at] for at in range(len(chains))]

    async def _layer(
        self,
        job: Job,
        image: archive.PlannedImage,
        members: Path,
        *,
        at: int,
        below: asyncio.Event | None,
    ) -> Layer:
        """One layer, unpacked or known. The caller holds its chain id's lock."""
        chains = oci.chain_ids(image.parsed.diff_ids)
        member, diff_id = image.layers[at], image.parsed.diff_ids[at]
        known = self._known(job, chains[at])
        if known is not None and known.blob_digest == member.digest:
            return known
        slot = f"{chains[at][7:]}"
        blob = await self._blob_file(job, members, member)
        # A known snapshot with another blob: only verified, so that a push sends the right thing.
        unpacked = await self._unpack(
            job, blob, slot=slot, keep_blob=False, only_verify=bool(known)
        )
        if unpacked.diff_id != diff_id:
            raise InvalidArgument(
                f"layer {member.name!r} has diffID {unpacked.diff_id}, its configuration says"
                f" {diff_id}: it was altered or damaged"
            )
        layer = _layer(unpacked, chain_id=chains[at])
        if known is None:
            if below is not None:
                await below.wait()
            await self._settle_and_publish(
                job, layer, unpacked.implied, slot=slot, below=chains[:at]
            )
        return layer

    async def _blob_file(self, job: Job, members: Path, member: jobs.Member) -> Path:
        """Where the member's bytes are now: an earlier image of the archive may have taken it."""
        file = members / member.file
        if member.digest in job.blobs and not await asyncio.to_thread(file.exists):
            return self._ledger.disk.blob(member.digest)
        return file

    async def _unpack(
        self, job: Job, source: Source, *, slot: str, keep_blob: bool, only_verify: bool = False
    ) -> jobs.Unpacked:
        root = job.path(slot) / "fs"
        await asyncio.to_thread(root.mkdir, 0o755, parents=True, exist_ok=True)
        unpacked = await self._runner.run(
            jobs.UnpackJob(
                destination="" if only_verify else str(root),
                keep_blob=str(job.path(f"{slot}.blob")) if keep_blob else "",
                limits=self._settings.limits,
            ),
            source,
        )
        if not isinstance(unpacked, jobs.Unpacked):
            raise Internal("the unpacking process gave another job's answer")
        if not unpacked.media_type:
            raise InvalidArgument(
                "a layer is packed in a way OCI does not know: use plain, gzip or zstd"
            )
        return unpacked

    def _known(self, job: Job, chain_id: str) -> Layer | None:
        """The layer if it is unpacked already; then it is leased, so that it stays."""
        known = self._ledger.unpacked_layer(chain_id)
        if known is not None:
            job.chains.add(chain_id)
        return known

    async def _settle_and_publish(
        self,
        job: Job,
        layer: Layer,
        implied: Sequence[bytes],
        *,
        slot: str,
        below: Sequence[str] = (),
    ) -> None:
        lowers = [self._ledger.disk.snapshot(chain) / "fs" for chain in reversed(below)]
        await asyncio.to_thread(settle, job.path(slot) / "fs", implied, lowers)
        await self._ledger.publish_snapshot(job, layer, job.path(slot))

    async def _documents(
        self, job: Job, document: bytes, *, manifest: bytes | None, layers: Sequence[Layer]
    ) -> ImageRecord:
        """Publish the configuration and manifest; the record of the image they make."""
        image_id = oci.sha256(document)
        if manifest is None:
            manifest = oci.build_manifest(
                config_digest=image_id, config_bytes=len(document), layers=layers
            )
        parsed = oci.parse_config(
            document, what="configuration", layers_max=self._settings.layers_max
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

    def _now(self) -> str:
        seconds = self._clock.now_ns() / NS_PER_S
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _layer(unpacked: jobs.Unpacked, *, chain_id: str) -> Layer:
    return Layer(
        diff_id=unpacked.diff_id,
        chain_id=chain_id,
        blob_digest=unpacked.blob_digest,
        blob_bytes=unpacked.blob_bytes,
        media_type=unpacked.media_type,
        unpacked_bytes=unpacked.unpacked_bytes,
    )


def _spoken(added: Added) -> list[str]:
    """How the user is told of a loaded image: its short names, or its id."""
    record, names = added
    return [name.familiar() for name in names] or [record.id]


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    """The first cause in a group: later ones mostly follow from it."""
    found: Exception = failures
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    return found
