"""What exists: the index, what running jobs have published, and the only code that changes either.

Invariants: the index on disk and in memory change together, after everything it points to is
durable; a blob or snapshot on disk is *live* when the index or a running job refers to it, and only
what is not live is ever removed; what a file name claims is believed only if it is live (a crash
leaves files whose content never reached the disk).
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import structlog

from shoal.errors import FailedPrecondition, NotFound, ResourceExhausted
from shoal.ids import new_id
from shoal.model.reference import Reference
from worker.images import disk, index
from worker.images.keyed import uninterrupted
from worker.images.leases import Leases
from worker.images.model import GcReport, Layer, StoreSettings

_log = structlog.get_logger()


class Added(NamedTuple):
    """An image to be made known; names it gets, and what a registry calls it."""

    record: index.ImageRecord
    names: Sequence[Reference] = ()
    digests: Sequence[Reference] = ()


class Job:
    """One import or load: its directory in `ingest`, and leases on what it published or found."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs: set[str] = set()
        self.chains: set[str] = set()

    def path(self, name: str) -> Path:
        """A path in the job's directory."""
        return self.directory / name


class Ledger:
    """Owner of the store's state. Make one with `open`."""

    def __init__(self, where: disk.Disk, found: index.Index, settings: StoreSettings) -> None:
        self.disk = where
        self.index = found
        self._settings = settings
        self._write = asyncio.Lock()
        self._jobs: dict[str, Job] = {}
        self._published: dict[str, Layer] = {}  # unpacked by running jobs, not in the index yet
        self._leases = Leases()

    @classmethod
    async def open(cls, root: Path, settings: StoreSettings) -> Ledger:
        """Take the store's lock, read its index, and remove what a crash left half-made."""
        where = disk.Disk(root)
        return cls(where, await asyncio.to_thread(_prepare, where), settings)

    async def aclose(self) -> None:
        """Give the lock up. Raises FailedPrecondition while a job runs."""
        if self._jobs:
            raise FailedPrecondition(f"image store is busy with {len(self._jobs)} jobs")
        async with self._write:
            self.disk.release()

    # -- jobs -------------------------------------------------------------------------------

    @asynccontextmanager
    async def job(self) -> AsyncIterator[Job]:
        """A new job. On the way out its directory goes, and what it published and nobody kept.

        Raises ResourceExhausted for a full disk.
        """
        job_id = new_id()
        job = Job(self.disk.ingest / job_id)
        self._jobs[job_id] = job
        try:
            await asyncio.to_thread(job.directory.mkdir, 0o700)
            yield job
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceExhausted(
                    f"image store: {error.strerror}: remove images or enlarge the disk,"
                    " then try again"
                ) from error
            raise
        finally:
            await uninterrupted(self._finish(job_id))

    async def _finish(self, job_id: str) -> None:
        async with self._write:
            job = self._jobs.pop(job_id)
            condemned = [job.directory] if job.directory.exists() else []
            self.condemn_unused(blobs=job.blobs, chains=job.chains, also=condemned)
        await asyncio.to_thread(self.disk.empty_trash)

    # -- publishing -------------------------------------------------------------------------

    def unpacked_layer(self, chain_id: str) -> Layer | None:
        """The layer of that chain id if its snapshot is complete."""
        found = self._published.get(chain_id)
        return found or self.index.layers_by_chain().get(chain_id)

    def kept_layer(self, chain_id: str, blob_digest: str) -> Layer | None:
        """The same, whose blob is that one and is kept."""
        return self.index.layer(chain_id, blob_digest)

    async def publish_blob(self, job: Job, digest: str, file: Path) -> None:
        """Give the complete `file` its place under its digest, leased by `job`."""
        async with self._write:
            job.blobs.add(digest)
            if digest not in self._indexed_blobs():
                os.rename(file, self.disk.blob(digest))

    async def lease_blob(self, job: Job, digest: str) -> Path | None:
        """Where the blob is, leased by `job`; None when nobody vouches for it."""
        async with self._write:
            if digest not in self._live()[0]:
                return None
            job.blobs.add(digest)
            return self.disk.blob(digest)

    async def publish_content(self, job: Job, digest: str, content: bytes) -> None:
        """Store a small document under its digest, leased by `job`."""
        file = job.path(f"document-{digest[7:]}")
        await asyncio.to_thread(disk.write_file, file, content)
        await self.publish_blob(job, digest, file)

    async def publish_snapshot(self, job: Job, layer: Layer, directory: Path) -> None:
        """Give the complete `directory` (with `fs` inside) its place, leased by `job`.

        The caller holds the chain id's lock and saw that `unpacked_layer` is None.
        """
        async with self._write:
            place = self.disk.snapshot(layer.chain_id)
            if place.exists():  # of a crash: nobody knows whether its content is whole
                self.disk.condemn([place])
            os.rename(directory, place)
            job.chains.add(layer.chain_id)
            self._published[layer.chain_id] = layer

    async def record(self, job: Job, added: Sequence[Added]) -> None:
        """Make everything `job` published durable, then its images and their names known."""
        for one in added:
            job.blobs |= one.record.blobs()
            job.chains |= one.record.chains()
        await asyncio.to_thread(self.disk.sync)
        async with self._write:
            changed = self.index
            for one in added:
                changed = changed.with_image(
                    one.record,
                    one.names,
                    images_max=self._settings.images_max,
                    digests=one.digests,
                )
            await self.change(changed)

    async def add_names(
        self,
        image_id: str,
        names: Sequence[Reference],
        now_ns: int,
        digests: Sequence[Reference] = (),
    ) -> None:
        """Point more names at an image. Raises NotFound if it went away."""
        async with self._write:
            record = self.index.images.get(image_id)
            if record is None:
                raise NotFound(f"No such image: {image_id}")
            await self.change(
                self.index.with_image(
                    record.tagged(now_ns) if names else record,
                    names,
                    images_max=self._settings.images_max,
                    digests=digests,
                )
            )

    @asynccontextmanager
    async def lease(self, image_id: str) -> AsyncIterator[None]:
        """Keep an image from being removed while inside. Raises NotFound if it went away."""
        async with AsyncExitStack() as stack:
            async with self._write:
                if image_id not in self.index.images:
                    raise NotFound(f"No such image: {image_id}")
                stack.enter_context(self._leases.hold(image_id))
            yield

    @property
    def leased(self) -> frozenset[str]:
        """Ids of the images somebody holds a lease on."""
        return self._leases.held

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Nobody else changes the index inside; for `change` and `condemn_unused`."""
        async with self._write:
            yield

    async def change(self, changed: index.Index) -> None:
        """Durably replace the index. Call inside `exclusive`. Raises OSError; then nothing is."""
        await uninterrupted(self._replace(changed))

    async def _replace(self, changed: index.Index) -> None:
        await asyncio.to_thread(lambda: disk.replace_file(self.disk.index, index.encode(changed)))
        self.index = changed

    # -- removing ---------------------------------------------------------------------------

    def condemn_unused(
        self, *, blobs: Iterable[str], chains: Iterable[str], also: Iterable[Path] = ()
    ) -> tuple[str, ...]:
        """Move those of the given that nothing refers to into the trash. Inside `exclusive`.

        also: paths that go in any case. Result: chain ids that are gone.
        """
        live_blobs, live_chains = self._live()
        self._published = {
            chain: layer for chain, layer in self._published.items() if chain in live_chains
        }
        paths = [self.disk.blob(digest) for digest in set(blobs) - live_blobs]
        gone = sorted(set(chains) - live_chains)
        paths += [self.disk.snapshot(chain) for chain in gone]
        self.disk.condemn([*(path for path in paths if path.exists()), *also])
        return tuple(gone)

    async def gc(self) -> GcReport:
        """Remove every blob, snapshot and leftover that nothing refers to."""
        async with self._write:
            live_blobs, live_chains = self._live()
            blobs, snapshots, strays = await asyncio.to_thread(
                _unused,
                self.disk,
                {digest[7:] for digest in live_blobs},
                {chain[7:] for chain in live_chains},
                set(self._jobs),
            )
            await asyncio.to_thread(self.disk.condemn, [*blobs, *snapshots, *strays])
        freed_bytes = await asyncio.to_thread(self.disk.empty_trash)
        report = GcReport(
            blobs=len(blobs),
            snapshots=len(snapshots),
            leftovers=len(strays),
            freed_bytes=freed_bytes,
        )
        _log.info("image.garbage_collected", blobs=report.blobs, snapshots=report.snapshots)
        return report

    def _indexed_blobs(self) -> set[str]:
        return {digest for record in self.index.images.values() for digest in record.blobs()}

    def _live(self) -> tuple[set[str], set[str]]:
        blobs = self._indexed_blobs()
        chains = set(self.index.layers_by_chain())
        for job in self._jobs.values():
            blobs |= job.blobs
            chains |= job.chains
        return blobs, chains


def _prepare(where: disk.Disk) -> index.Index:
    where.prepare()
    try:
        where.condemn(where.strays(jobs=()))
        where.empty_trash()
        where.index.with_name(where.index.name + ".new").unlink(missing_ok=True)
        if not where.index.exists():
            return index.Index()
        return index.decode(where.index.read_bytes(), path=str(where.index))
    except BaseException:
        where.release()
        raise


def _unused(
    where: disk.Disk, live_blobs: set[str], live_chains: set[str], job_ids: set[str]
) -> tuple[list[Path], list[Path], list[Path]]:
    return (
        [path for path in where.blobs.iterdir() if path.name not in live_blobs],
        [path for path in where.snapshots.iterdir() if path.name not in live_chains],
        where.strays(jobs=job_ids),
    )
