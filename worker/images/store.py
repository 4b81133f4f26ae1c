"""The image store of one node: images come in by import and load, containers mount their layers.

One process owns it (a lock file says so). Content-addressed: a blob is named by its digest, a
snapshot (one unpacked layer) by its chain id; names are pointers to ids in the index. Nothing here
blocks the event loop for long: archives are read by child processes, trees are moved and deleted in
threads. Refuses to remove what a container uses. Layout and rules: docs/design/images.md.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from shoal.clock import Clock, SystemClock
from shoal.errors import InvalidArgument, NotFound, ResourceExhausted, SwarmError
from shoal.model.reference import Reference, parse_reference
from worker.images import index, removal, saving
from worker.images.changes import apply_changes
from worker.images.committing import Committer
from worker.images.history import Configuration, HistoryEntry, Step, read_configuration, steps
from worker.images.intake import Intake
from worker.images.keyed import KeyedLocks
from worker.images.layering import Layering
from worker.images.ledger import Ledger
from worker.images.model import GcReport, Image, ImageConfig, Removal, StoreSettings, User
from worker.images.registry.api import Credentials, RegistrySettings
from worker.images.registry.auths import read_auth
from worker.images.registry.service import NodeRegistry
from worker.images.runner import Source

_log = structlog.get_logger()

Users = Mapping[str, Sequence[User]]
"""Who was made from an image, by its id."""


class ImageStore:
    """Images of this node. Make one with `open`; call `aclose` when no job runs any more."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        settings: StoreSettings,
        clock: Clock,
        registries: RegistrySettings,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        layering = Layering(ledger, settings)
        self._intake = Intake(ledger, layering, settings, clock)
        self._committer = Committer(ledger, layering, self._intake, settings)
        self.host = self._intake.host
        self._fetches = KeyedLocks()
        self.registry = NodeRegistry(ledger, layering, self._intake, settings, registries)

    @classmethod
    async def open(
        cls,
        root: Path,
        *,
        settings: StoreSettings | None = None,
        clock: Clock | None = None,
        registries: RegistrySettings | None = None,
    ) -> ImageStore:
        """Open (or make) the store under `root` and remove what a crash left half-made.

        registries: how they are spoken to. Raises FailedPrecondition if another process owns it or
        its index cannot be read.
        """
        settings = settings or StoreSettings()
        ledger = await Ledger.open(root, settings)
        return cls(
            ledger,
            settings=settings,
            clock=clock or SystemClock(),
            registries=registries or RegistrySettings(),
        )

    async def aclose(self) -> None:
        """Give the store up. Raises FailedPrecondition while an import or load runs."""
        await self._ledger.aclose()

    def list(self) -> builtins.list[Image]:
        """Every image, newest first."""
        images = self._ledger.index.all()
        return sorted(images, key=lambda image: (image.created, image.id), reverse=True)

    def resolve(self, ref: str) -> Image:
        """The image a name, id, unique id prefix or digest stands for.

        Raises NotFound ("No such image: web:latest") or InvalidArgument.
        """
        return self._ledger.index.image(index.resolve(self._ledger.index, ref)[0])

    def layers(self, image: Image) -> tuple[str, ...]:
        """Directories of the image's layers, topmost first: overlayfs' lowerdir order.

        Never none: an image without layers has an empty directory.
        """
        place = self._ledger.disk.snapshot
        if not image.layers:
            return (str(self._ledger.disk.empty),)
        return tuple(str(place(layer.chain_id) / "fs") for layer in reversed(image.layers))

    def image_config(self, image: Image) -> ImageConfig:
        """What a container of the image runs by default."""
        return image.config

    async def fetch(self, ref: str, registry_auth: str = "") -> Image:
        """The image of a reference, pulled from its registry when it is not here.

        registry_auth: as services carry credentials, see `registry.auths`. Those who ask for one
        image at once share its pull. Raises NotFound with the reason why it cannot be had,
        InvalidArgument, ResourceExhausted.
        """
        async with self._fetches.hold(ref):
            try:
                return self.resolve(ref)
            except NotFound as missing:
                return await self._fetched(ref, read_auth(registry_auth), missing)

    async def _fetched(self, ref: str, credentials: Credentials, missing: NotFound) -> Image:
        if ref.startswith("sha256:"):  # an id: no registry knows it
            raise missing
        try:
            (image,) = await self.registry.pull(ref, credentials=credentials)
        except (InvalidArgument, ResourceExhausted):
            raise
        except SwarmError as error:  # tried often enough: whoever asked must do without
            raise NotFound(f"{missing.message}: {error.message}") from error
        return image

    async def import_rootfs(
        self,
        source: Source,
        reference: str | None,
        *,
        changes: Sequence[str] = (),
        comment: str = "",
    ) -> Image:
        """Make a one-layer image of a root file system tar (plain, gzip, zstd, xz or bzip2).

        source: a file, or an async iterable of byte chunks. reference: its name, tag `latest`
        unless given; None for none. changes: as `docker import --change`, see `changes`. comment:
        of its history. Raises InvalidArgument, ResourceExhausted; nothing is left behind then.
        """
        config = apply_changes(ImageConfig(), changes)
        names = [] if reference is None else [_plain_name(reference)]
        image_id = await self._intake.import_rootfs(source, config, names, comment)
        return self._ledger.index.image(image_id)

    async def load(self, source: Source) -> builtins.list[str]:
        """Load every image of an archive: docker save or OCI layout, packed in any way.

        Result: the names loaded (short form), or the id of an image that has none, in the
        archive's order. All images or none. Raises InvalidArgument, ResourceExhausted.
        """
        return await self._intake.load(source)

    async def commit(
        self,
        upper: str,
        base: Image | None,
        config: bytes,
        *,
        comment: str = "",
        author: str = "",
        created_by: str = "",
        name: str = "",
    ) -> Image:
        """One more layer from an overlay's upper directory, as an image on top of `base`.

        upper "": only the configuration changes. config: JSON of the new image's `config` object,
        in Docker's spelling. name: what it is called, if anything. What runs in `upper` should be
        paused. Raises InvalidArgument, NotFound (the base is gone), ResourceExhausted; nothing is
        left behind then.
        """
        step = HistoryEntry(
            created_by=created_by, author=author, comment=comment, empty_layer=not upper
        )
        names = [_plain_name(name)] if name else []
        image_id = await self._committer.commit(upper, base, config, step, names)
        return self._ledger.index.image(image_id)

    async def configuration(self, image: Image) -> Configuration:
        """The image's whole configuration document. Raises NotFound when it went away."""
        file = self._ledger.disk.blob(image.id)
        try:
            return read_configuration(await asyncio.to_thread(file.read_bytes))
        except FileNotFoundError:
            raise NotFound(f"No such image: {image.id}") from None

    async def history(self, image: Image) -> builtins.list[Step]:
        """How the image was made, newest step first. Raises NotFound when it went away."""
        return steps(image, await self.configuration(image), self.by_id)

    def by_id(self, image_id: str) -> Image | None:
        """The image of that full id."""
        index_now = self._ledger.index
        return index_now.image(image_id) if image_id in index_now.images else None

    def children(self, image: Image) -> tuple[str, ...]:
        """Ids of the images that were made from it here."""
        return self._ledger.index.children_of(image.id)

    def lease(self, image_id: str) -> AbstractAsyncContextManager[None]:
        """Keep an image, name or not, from being removed while inside. Raises NotFound."""
        return self._ledger.lease(image_id)

    def to_save(self, refs: Sequence[str]) -> builtins.list[saving.Saved]:
        """What saving these takes: of a bare repository every tag. Raises NotFound."""
        return saving.choose(self.list(), refs, self.resolve)

    @asynccontextmanager
    async def save(self, chosen: Sequence[saving.Saved]) -> AsyncIterator[AsyncIterator[bytes]]:
        """An archive of images, in pieces; they stay while inside. Raises NotFound."""
        async with AsyncExitStack() as stack:
            for one in chosen:
                await stack.enter_async_context(self.lease(one.image.id))
            yield saving.save(self._ledger.disk, chosen)

    async def tag(self, ref: str, name: str) -> None:
        """Give an image one more name; a name that stood for another image moves."""
        await self._ledger.add_names(
            self.resolve(ref).id, [_plain_name(name)], self._clock.now_ns()
        )

    async def remove(
        self, ref: str, *, users: Users, force: bool = False, prune: bool = True
    ) -> Removal:
        """Take a name away, and the image with its last name; see `removal` for the rules.

        users: the containers made from each image, by its id. prune: unnamed images it was made
        from go, too. Raises NotFound, InvalidArgument, FailedPrecondition.
        """
        rules = removal.Rules(users=users, leased=self._ledger.leased, force=force, prune=prune)
        async with self._ledger.exclusive():
            before = self._ledger.index
            planned = removal.plan(before, ref, rules)
            await self._ledger.change(planned.index)
            gone = [before.images[image_id] for image_id in planned.images]
            chains = self._ledger.condemn_unused(
                blobs={digest for record in gone for digest in record.blobs()},
                chains={chain for record in gone for chain in record.chains()},
            )
        await asyncio.to_thread(self._ledger.disk.empty_trash)
        _log.info("image.removed", images=planned.images, names=planned.untagged)
        sizes = before.layers_by_chain()
        return Removal(
            removal.as_lines(planned.untagged, (*planned.images, *chains)),
            freed_bytes=sum(sizes[chain].unpacked_bytes for chain in chains if chain in sizes),
        )

    @property
    def root(self) -> Path:
        """Where the store is."""
        return self._ledger.disk.root

    @property
    def index(self) -> index.Index:
        """What there is, now."""
        return self._ledger.index

    @property
    def leased(self) -> frozenset[str]:
        """Ids of the images somebody holds without a container of them."""
        return self._ledger.leased

    async def drop_partials(self, before_s: float) -> None:
        """Remove downloads nobody has gone on with since then, in seconds since 1970."""
        await asyncio.to_thread(self._ledger.disk.drop_partials, before_s)

    async def gc(self) -> GcReport:
        """Remove every blob, snapshot and leftover that no image and no running job refers to."""
        return await self._ledger.gc()


def _plain_name(text: str) -> Reference:
    """A name for an image: digests are computed, never given."""
    reference = parse_reference(text).with_default_tag()
    if reference.digest is not None:
        raise InvalidArgument(f"invalid image name {text!r}: a name cannot contain a digest")
    return reference
