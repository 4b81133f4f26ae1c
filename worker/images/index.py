"""Which images and names a store has: a value, its file format, and its pure changes.

The file is one JSON document, replaced whole by rename; `format` is checked before anything else,
and a file this version cannot read is refused, never overwritten. Format 1, which knew neither
digests of registries nor parents, is read and written anew as 2. Bounded by images_max.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from shoal.model.reference import Reference, parse_reference
from worker.images.model import Image, ImageConfig, Layer

FORMAT = 2
_READABLE = (1, FORMAT)
_HEX = frozenset("0123456789abcdef")
NAMES_PER_IMAGE_MAX = 1024


class ImageRecord(msgspec.Struct, frozen=True):
    """One image as the file keeps it."""

    id: str
    digest: str
    created: str
    architecture: str
    os: str
    variant: str
    layers: tuple[Layer, ...]
    config: ImageConfig
    parent: str = ""
    tagged_at_ns: int = 0

    def under(self, parent: str) -> ImageRecord:
        """The same image, made from that one."""
        return msgspec.structs.replace(self, parent=parent)

    def tagged(self, now_ns: int) -> ImageRecord:
        """The same image, having got a name."""
        return msgspec.structs.replace(self, tagged_at_ns=now_ns)

    def blobs(self) -> set[str]:
        """Digests of every blob the image needs."""
        return {self.id, self.digest, *(layer.blob_digest for layer in self.layers)}

    def chains(self) -> set[str]:
        """Chain ids of every snapshot the image needs."""
        return {layer.chain_id for layer in self.layers}


class Index(msgspec.Struct, frozen=True):
    """Images by id; ids by full name, and by the `repository@digest` a registry knows them by."""

    format: int = FORMAT
    images: dict[str, ImageRecord] = {}
    names: dict[str, str] = {}
    digests: dict[str, str] = {}

    def with_image(
        self,
        record: ImageRecord,
        names: Iterable[Reference],
        *,
        images_max: int,
        digests: Iterable[Reference] = (),
    ) -> Index:
        """This index with the image, and `names` and `digests` moved to it.

        Raises ResourceExhausted beyond `images_max` images or the names of one image.
        """
        known = self.images.get(record.id)
        if known is not None and not record.parent:  # it came again: what is known of it stays
            record = record.under(known.parent)
        images = {**self.images, record.id: record}
        if len(images) > images_max:
            raise ResourceExhausted(
                f"image store has {len(self.images)} images, the limit: remove some"
            )
        moved = {**self.names, **{str(name): record.id for name in names}}
        known_as = {**self.digests, **{str(one): record.id for one in digests}}
        targets = [*moved.values(), *known_as.values()]
        if targets.count(record.id) > NAMES_PER_IMAGE_MAX:
            raise ResourceExhausted(f"an image may have {NAMES_PER_IMAGE_MAX} names at most")
        return Index(images=images, names=moved, digests=known_as)

    def without_names(self, names: Iterable[str]) -> Index:
        """This index without those full names, tags or digests."""
        gone = set(names)
        return Index(
            images=self.images,
            names={name: target for name, target in self.names.items() if name not in gone},
            digests={name: target for name, target in self.digests.items() if name not in gone},
        )

    def without_image(self, image_id: str) -> Index:
        """This index without that image and its names."""
        return Index(
            images={key: record for key, record in self.images.items() if key != image_id},
            names={name: target for name, target in self.names.items() if target != image_id},
            digests={name: target for name, target in self.digests.items() if target != image_id},
        )

    def digests_of(self, image_id: str) -> tuple[str, ...]:
        """The image's full `repository@digest`s, sorted."""
        return tuple(sorted(name for name, target in self.digests.items() if target == image_id))

    def children_of(self, image_id: str) -> tuple[str, ...]:
        """Ids of the images that were made from it here."""
        return tuple(key for key, record in self.images.items() if record.parent == image_id)

    def layer(self, chain_id: str, blob_digest: str) -> Layer | None:
        """The unpacked layer whose kept blob is that one."""
        for record in self.images.values():
            for layer in record.layers:
                if layer.chain_id == chain_id and layer.blob_digest == blob_digest:
                    return layer
        return None

    def names_of(self, image_id: str) -> tuple[str, ...]:
        """The image's full names, sorted."""
        return tuple(sorted(name for name, target in self.names.items() if target == image_id))

    def layers_by_chain(self) -> dict[str, Layer]:
        """Every layer that is unpacked, by chain id."""
        return {layer.chain_id: layer for record in self.images.values() for layer in record.layers}

    def image(self, image_id: str) -> Image:
        """The image as callers see it. Raises NotFound when it went away."""
        record = self.images.get(image_id)
        if record is None:
            raise NotFound(f"No such image: {image_id}")
        return _seen(record, self.names_of(image_id), self.digests_of(image_id))

    def all(self) -> list[Image]:
        """Every image, in no order."""
        names, digests = _by_image(self.names), _by_image(self.digests)
        return [
            _seen(record, names.get(image_id, ()), digests.get(image_id, ()))
            for image_id, record in self.images.items()
        ]


def _by_image(names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, image_id in sorted(names.items()):
        found.setdefault(image_id, []).append(name)
    return {image_id: tuple(those) for image_id, those in found.items()}


def _seen(record: ImageRecord, names: tuple[str, ...], digests: tuple[str, ...]) -> Image:
    return Image(
        id=record.id,
        digest=record.digest,
        names=names,
        repo_tags=tuple(parse_reference(name).familiar() for name in names),
        created=record.created,
        size_bytes=sum(layer.unpacked_bytes for layer in record.layers),
        architecture=record.architecture,
        os=record.os,
        variant=record.variant,
        layers=record.layers,
        config=record.config,
        repo_digests=tuple(parse_reference(one).familiar() for one in digests),
        parent=record.parent,
        tagged_at_ns=record.tagged_at_ns,
    )


def resolve(index: Index, text: str) -> tuple[str, Reference | None]:
    """The id `text` stands for, and the name it was found by (None when it is an id).

    Order: full id, name, unique id prefix. Raises NotFound, or InvalidArgument when `text` is
    neither an id nor a reference, or is the prefix of several ids.
    """
    bare = text.removeprefix("sha256:")
    is_hex = bool(bare) and len(bare) <= 64 and _HEX.issuperset(bare)
    if is_hex and f"sha256:{bare}" in index.images:
        return f"sha256:{bare}", None
    if is_hex and (text.startswith("sha256:") or len(bare) == 64):
        return _by_prefix(index, bare, f"No such image: {text}"), None
    reference = parse_reference(text).with_default_tag()
    found = _by_name(index, reference)
    if found is not None:
        return found, reference
    missing = f"No such image: {reference.familiar()}"
    if is_hex:
        return _by_prefix(index, bare, missing), None
    raise NotFound(missing)


def _by_name(index: Index, reference: Reference) -> str | None:
    if reference.digest is None:
        return index.names.get(str(reference))
    repository = f"{reference.registry}/{reference.repository}"
    known = index.digests.get(f"{repository}@{reference.digest}")
    if known is not None:
        return known
    for name, image_id in sorted(index.names.items()):
        if index.images[image_id].digest != reference.digest:
            continue
        named = parse_reference(name)
        if f"{named.registry}/{named.repository}" == repository:
            return image_id
    return None


def _by_prefix(index: Index, prefix: str, missing: str) -> str:
    found = [key for key in index.images if key.startswith(f"sha256:{prefix}")]
    if not found:
        raise NotFound(missing)
    if len(found) > 1:
        raise InvalidArgument(f"image id prefix {prefix!r} is ambiguous: give more digits")
    return found[0]


def encode(index: Index) -> bytes:
    """The index file's content."""
    return msgspec.json.format(msgspec.json.encode(index), indent=1)


def decode(content: bytes, *, path: str) -> Index:
    """Read the index file. Raises FailedPrecondition naming the file when it cannot be read."""

    class _Head(msgspec.Struct):
        format: int

    try:
        head = msgspec.json.decode(content, type=_Head)
        if head.format not in _READABLE:
            raise FailedPrecondition(
                f"image index {path} has format {head.format}; this version reads up to {FORMAT}:"
                " it was written by a newer version"
            )
        found = msgspec.json.decode(content, type=Index)
        return Index(images=found.images, names=found.names, digests=found.digests)
    except msgspec.MsgspecError as error:
        raise FailedPrecondition(
            f"image index {path} is damaged ({error}): restore it, or remove it to start empty"
        ) from error
