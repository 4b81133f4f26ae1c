"""Images from what containers and builds have changed: `docker commit`, steps of a build.

The upper directory is read twice: a child writes the layer's blob from it, another unpacks that
blob as any other layer, so that what runs here is what a push sends. Nothing is left behind when
either fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from shoal.errors import Internal, InvalidArgument, NotFound
from shoal.model.reference import Reference
from worker.images import history, jobs, oci
from worker.images.intake import Intake
from worker.images.layering import Layering, Wanted
from worker.images.ledger import Job, Ledger
from worker.images.model import Image, Layer, StoreSettings

_log = structlog.get_logger()


class Committer:
    """Makes images in one ledger."""

    def __init__(
        self, ledger: Ledger, layering: Layering, intake: Intake, settings: StoreSettings
    ) -> None:
        self._ledger = ledger
        self._layering = layering
        self._intake = intake
        self._settings = settings

    async def commit(
        self,
        upper: str,
        base: Image | None,
        config: bytes,
        step: history.HistoryEntry,
        names: Sequence[Reference],
    ) -> str:
        """One more step on `base`. Result: the image's id. Raises as `ImageStore.commit`."""
        wished = oci.read_document(config, dict[str, Any], "config")
        async with self._ledger.job() as job:
            below = None if base is None else await self._configuration(job, base)
            layers = [] if base is None else list(base.layers)
            diff_id = ""
            if upper:
                self._check_room(len(layers))
                layers = await self._with_layer(job, upper, layers)
                diff_id = layers[-1].diff_id
            document = history.child_configuration(
                below,
                wished,
                step.at(self._intake.now_text()) if not step.created else step,
                diff_id=diff_id,
                platform=self._intake.host,
            )
            record = await self._intake.documents(
                job, document, manifest=None, layers=layers, layers_min=0
            )
            record = record.under("" if base is None else base.id)
            await self._ledger.record(job, [self._intake.added(record, names)])
        _log.info("image.committed", image=record.id, names=[str(name) for name in names])
        return record.id

    async def _configuration(self, job: Job, base: Image) -> history.Configuration:
        """The base's, which stays with all its layers while the job runs."""
        job.blobs |= {base.id, *(layer.blob_digest for layer in base.layers)}
        job.chains |= {layer.chain_id for layer in base.layers}
        file = self._ledger.disk.blob(base.id)
        return history.read_configuration(await asyncio.to_thread(file.read_bytes))

    async def _with_layer(self, job: Job, upper: str, below: list[Layer]) -> list[Layer]:
        blob = job.path("packed")
        packed = await self._layering.runner.run(
            jobs.PackJob(upper=upper, blob=str(blob), limits=self._settings.limits), None
        )
        if not isinstance(packed, jobs.Packed):
            raise Internal("the packing process gave another job's answer")

        async def packed_blob() -> Path:
            return blob

        top = Wanted("changes", packed.diff_id, packed.blob_digest, packed_blob)
        layers = await self._layering.layers(job, [*map(_kept, below), top])
        await self._ledger.publish_blob(job, packed.blob_digest, blob)
        return layers

    def _check_room(self, layers: int) -> None:
        if layers >= self._settings.layers_max:
            raise InvalidArgument(
                f"the image has {layers} layers, the limit is {self._settings.layers_max}:"
                " make it anew from fewer steps"
            )


def _kept(layer: Layer) -> Wanted:
    async def lost() -> Path:
        raise NotFound(f"layer {layer.chain_id} of the base image is not there any more")

    return Wanted(layer.diff_id, layer.diff_id, layer.blob_digest, lost)
