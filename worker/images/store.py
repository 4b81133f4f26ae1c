"""The image store of one node: images come in by import and load, containers mount their layers.

One process owns it (a lock file says so). Content-addressed: a blob is named by its digest, a
snapshot (one unpacked layer) by its chain id; names are pointers to ids in the index. Nothing here
blocks the event loop for long: archives are read by child processes, trees are moved and deleted in
threads. Refuses to remove what a container uses. Layout and rules: docs/design/images.md.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Collection, Sequence
from pathlib import Path

import structlog

from shoal.clock import Clock, SystemClock
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.reference import Reference, parse_reference
from worker.images import index
from worker.images.changes import apply_changes
from worker.images.intake import Intake
from worker.images.ledger import Ledger
from worker.images.model import GcReport, Image, ImageConfig, Removal, StoreSettings
from worker.images.runner import Source

_log = structlog.get_logger()


class ImageStore:
    """Images of this node. Make one with `open`; call `aclose` when no job runs any more."""

    def __init__(self, ledger: Ledger, *, settings: StoreSettings, clock: Clock) -> None:
        self._ledger = ledger
        self._intake = Intake(ledger, settings, clock)

    @classmethod
    async def open(
        cls, root: Path, *, settings: StoreSettings | None = None, clock: Clock | None = None
    ) -> ImageStore:
        """Open (or make) the store under `root` and remove what a crash left half-made.

        Raises FailedPrecondition if another process owns it or its index cannot be read.
        """
        settings = settings or StoreSettings()
        ledger = await Ledger.open(root, settings)
        return cls(ledger, settings=settings, clock=clock or SystemClock())

    async def aclose(self) -> None:
        """Give the store up. Raises FailedPrecondition while an import or load runs."""
        await self._ledger.aclose()

    def list(self) -> builtins.list[Image]:
        """Every image, newest first."""
        images = [self._ledger.index.image(image_id) for image_id in self._ledger.index.images]
        return sorted(images, key=lambda image: (image.created, image.id), reverse=True)

    def resolve(self, ref: str) -> Image:
        """The image a name, id, unique id prefix or digest stands for.

        Raises NotFound ("No such image: web:latest") or InvalidArgument.
        """
        return self._ledger.index.image(index.resolve(self._ledger.index, ref)[0])

    def layers(self, image: Image) -> tuple[str, ...]:
        """Directories of the image's layers, topmost first: overlayfs' lowerdir order."""
        place = self._ledger.disk.snapshot
        return tuple(str(place(layer.chain_id) / "fs") for layer in reversed(image.layers))

    def image_config(self, image: Image) -> ImageConfig:
        """What a container of the image runs by default."""
        return image.config

    async def import_rootfs(
        self, source: Source, reference: str | None, *, changes: Sequence[str] = ()
    ) -> Image:
        """Make a one-layer image of a root file system tar (plain, gzip, zstd, xz or bzip2).

        source: a file, or an async iterable of byte chunks. reference: its name, tag `latest`
        unless given; None for none. changes: as `docker import --change`, see `changes`. Raises
        InvalidArgument, ResourceExhausted; nothing is left behind then.
        """
        config = apply_changes(ImageConfig(), changes)
        names = [] if reference is None else [_plain_name(reference)]
        image_id = await self._intake.import_rootfs(source, config, names)
        return self._ledger.index.image(image_id)

    async def load(self, source: Source) -> builtins.list[str]:
        """Load every image of an archive: docker save or OCI layout, packed in any way.

        Result: the names loaded (short form), or the id of an image that has none, in the
        archive's order. All images or none. Raises InvalidArgument, ResourceExhausted.
        """
        return await self._intake.load(source)

    async def tag(self, ref: str, name: str) -> None:
        """Give an image one more name; a name that stood for another image moves."""
        await self._ledger.add_name(self.resolve(ref).id, _plain_name(name))

    async def remove(self, ref: str, *, in_use: Collection[str], force: bool = False) -> Removal:
        """Take a name away, and the image with its last name; layers others share stay.

        in_use: ids of images that containers use, running or not: those are never deleted. By id,
        an image with several names is removed only with `force`. Raises NotFound,
        FailedPrecondition.
        """
        async with self._ledger.exclusive():
            current = self._ledger.index
            image_id, name = index.resolve(current, ref)
            names = current.names_of(image_id)
            if name is not None and name.digest is None and len(names) > 1:
                await self._ledger.change(current.without_names([str(name)]))
                return Removal(untagged=(name.familiar(),))
            _check_removal(image_id, names, ref=ref, in_use=in_use, force=force)
            await self._ledger.change(current.without_image(image_id))
            record = current.images[image_id]
            gone = self._ledger.condemn_unused(blobs=record.blobs(), chains=record.chains())
        await asyncio.to_thread(self._ledger.disk.empty_trash)
        _log.info("image.removed", image=image_id, names=names)
        return Removal(
            untagged=tuple(parse_reference(one).familiar() for one in names),
            deleted=(image_id, *gone),
        )

    async def gc(self) -> GcReport:
        """Remove every blob, snapshot and leftover that no image and no running job refers to."""
        return await self._ledger.gc()


def _check_removal(
    image_id: str, names: Sequence[str], *, ref: str, in_use: Collection[str], force: bool
) -> None:
    if image_id in in_use:
        raise FailedPrecondition(
            f"conflict: unable to remove {ref}: a container uses image {image_id[7:19]};"
            " remove the container first"
        )
    if len(names) > 1 and not force:
        short = ", ".join(parse_reference(name).familiar() for name in names)
        raise FailedPrecondition(
            f"conflict: unable to delete {ref} (must be forced): it has the names {short}"
        )


def _plain_name(text: str) -> Reference:
    """A name for an image: digests are computed, never given."""
    reference = parse_reference(text).with_default_tag()
    if reference.digest is not None:
        raise InvalidArgument(f"invalid image name {text!r}: a name cannot contain a digest")
    return reference
