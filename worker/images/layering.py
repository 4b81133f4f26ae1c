"""Layers of one image, unpacked or known: the part that all ways in have in common.

Layers unpack in parallel, a process each; equal layers of two jobs are unpacked once. A layer that
is there already but comes as another blob is read and its diffID compared, so that a later push
cannot send something else than what runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from shoal.errors import Internal, InvalidArgument
from worker.images import jobs, oci
from worker.images.keyed import KeyedLocks
from worker.images.ledger import Job, Ledger
from worker.images.model import Layer, StoreSettings
from worker.images.runner import Runner, Source
from worker.images.settle import settle


class Told(NamedTuple):
    """Who is told how far the layers are; each is called with the layer's place."""

    exists: Callable[[int], None] = lambda at: None
    reads: Callable[[int, int], None] = lambda at, count: None
    """While it is unpacked: compressed bytes read so far."""
    done: Callable[[int], None] = lambda at: None


class Wanted(NamedTuple):
    """A layer to have. fetch: brings its blob, when it is needed, and says where it is."""

    name: str
    diff_id: str
    digest: str
    fetch: Callable[[], Awaitable[Path]]


class Layering:
    """Unpacks layers into one ledger."""

    def __init__(self, ledger: Ledger, settings: StoreSettings) -> None:
        self._ledger = ledger
        self._settings = settings
        self.runner = Runner(settings)
        self._chains = KeyedLocks()

    async def layers(
        self, job: Job, wanted: Sequence[Wanted], told: Told | None = None
    ) -> list[Layer]:
        """Unpack what is not there yet, in parallel; each waits for the one below to settle.

        Two jobs cannot wait for each other in a circle: equal chain ids have equal chains below,
        so every wait goes to a lower layer. Raises InvalidArgument, ResourceExhausted, and what
        `fetch` raises.
        """
        told = told or Told()
        chains = oci.chain_ids([one.diff_id for one in wanted])
        ready = [asyncio.Event() for _ in chains]
        layers: dict[int, Layer] = {}

        async def one(at: int) -> None:
            async with self._chains.hold(chains[at]):
                below = ready[at - 1] if at else None
                layers[at] = await self._layer(job, wanted[at], chains[: at + 1], below, told)
            ready[at].set()

        try:
            async with asyncio.TaskGroup() as group:
                for at in range(len(chains)):
                    group.create_task(one(at), name=f"unpack-layer-{at}")
        except ExceptionGroup as failures:
            raise _first(failures) from None
        return [layers[at] for at in range(len(chains))]

    async def root(self, job: Job, source: Source) -> Layer:
        """The one layer of a root file system, kept as it came where OCI knows the packing."""
        unpacked = await self._unpack(job, source, slot="layer", keep_blob=True)
        layer = _layer(unpacked, chain_id=unpacked.diff_id)
        async with self._chains.hold(layer.chain_id):
            if not self._known(job, layer.chain_id):
                await self._settle_and_publish(job, layer, unpacked.implied, slot="layer")
        await self._ledger.publish_blob(job, layer.blob_digest, job.path("layer.blob"))
        return layer

    async def _layer(
        self,
        job: Job,
        wanted: Wanted,
        chains: Sequence[str],
        below: asyncio.Event | None,
        told: Told,
    ) -> Layer:
        """One layer, unpacked or known. The caller holds its chain id's lock."""
        chain_id, at = chains[-1], len(chains) - 1
        kept = self._ledger.kept_layer(chain_id, wanted.digest)
        if kept is not None:
            job.chains.add(chain_id)
            job.blobs.add(kept.blob_digest)
            told.exists(at)
            return kept
        known = self._known(job, chain_id)
        blob = await wanted.fetch()
        # A known snapshot with another blob: only verified, so that a push sends the right thing.
        unpacked = await self._unpack(
            job,
            blob,
            slot=chain_id[7:],
            only_verify=known is not None,
            reads=lambda count: told.reads(at, count),
        )
        told.reads(at, unpacked.blob_bytes)
        if unpacked.diff_id != wanted.diff_id:
            raise InvalidArgument(
                f"layer {wanted.name!r} has diffID {unpacked.diff_id}, its configuration says"
                f" {wanted.diff_id}: it was altered or damaged"
            )
        layer = _layer(unpacked, chain_id=chain_id)
        if known is None:
            if below is not None:
                await below.wait()
            await self._settle_and_publish(
                job, layer, unpacked.implied, slot=chain_id[7:], below=chains[:-1]
            )
        told.done(at)
        return layer

    async def _unpack(
        self,
        job: Job,
        source: Source,
        *,
        slot: str,
        keep_blob: bool = False,
        only_verify: bool = False,
        reads: Callable[[int], None] | None = None,
    ) -> jobs.Unpacked:
        root = job.path(slot) / "fs"
        await asyncio.to_thread(root.mkdir, 0o755, parents=True, exist_ok=True)
        unpacked = await self.runner.run(
            jobs.UnpackJob(
                destination="" if only_verify else str(root),
                keep_blob=str(job.path(f"{slot}.blob")) if keep_blob else "",
                limits=self._settings.limits,
            ),
            source,
            reads=reads,
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


def _layer(unpacked: jobs.Unpacked, *, chain_id: str) -> Layer:
    return Layer(
        diff_id=unpacked.diff_id,
        chain_id=chain_id,
        blob_digest=unpacked.blob_digest,
        blob_bytes=unpacked.blob_bytes,
        media_type=unpacked.media_type,
        unpacked_bytes=unpacked.unpacked_bytes,
    )


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    """The first cause in a group: later ones mostly follow from it."""
    found: Exception = failures
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    return found
