"""Images as one archive: `docker save`. An OCI layout that docker of any age loads, too.

Blobs go in as they are kept, so digests stay what they were; `manifest.json` points at them for
docker, `index.json` for everybody else. Nothing is held in memory but documents.
"""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from shoal.errors import InvalidArgument, NotFound
from shoal.model.reference import Reference, parse_reference
from worker.images import oci
from worker.images.disk import Disk
from worker.images.model import Image
from worker.images.packing import END, header

_PIECE_BYTES = 1 << 20
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class Saved(NamedTuple):
    """An image to save, and the names it gets where it is loaded."""

    image: Image
    names: tuple[Reference, ...]


async def save(disk: Disk, chosen: Sequence[Saved]) -> AsyncIterator[bytes]:
    """The archive, in pieces. The caller holds a lease on each image. Raises NotFound, OSError."""
    images = {one.image.id: one.image for one in chosen}
    manifests = {image.id: await _read(disk.blob(image.digest), image) for image in images.values()}
    sent: set[str] = set()
    for directory in ("blobs/", "blobs/sha256/"):
        yield _header(directory, 0, kind=tarfile.DIRTYPE)
    for image in images.values():
        for digest in (image.id, image.digest, *(layer.blob_digest for layer in image.layers)):
            if digest not in sent:
                sent.add(digest)
                async for piece in _blob(disk.blob(digest), f"blobs/sha256/{digest[7:]}"):
                    yield piece
    yield _document("index.json", _index(chosen, manifests))
    yield _document("manifest.json", _docker_manifest(chosen))
    yield _document("oci-layout", _LAYOUT)
    yield END


async def _read(file: Path, image: Image) -> bytes:
    try:
        return await asyncio.to_thread(file.read_bytes)
    except FileNotFoundError:
        raise NotFound(f"No such image: {image.id}") from None


async def _blob(file: Path, name: str) -> AsyncIterator[bytes]:
    source = await asyncio.to_thread(file.open, "rb")
    with source:
        size = (await asyncio.to_thread(file.stat)).st_size
        yield _header(name, size)
        while piece := await asyncio.to_thread(source.read, _PIECE_BYTES):
            yield piece
        yield bytes(-size % tarfile.BLOCKSIZE)


def _index(chosen: Sequence[Saved], manifests: dict[str, bytes]) -> bytes:
    """One entry for each name; one without for an image that has none."""
    entries: list[dict[str, Any]] = []
    for image, names in chosen:
        content = manifests[image.id]
        entry: dict[str, Any] = {
            "mediaType": oci.manifest_type(content),
            "digest": image.digest,
            "size": len(content),
        }
        entries += [
            {
                **entry,
                "annotations": {
                    "io.containerd.image.name": str(name),
                    "org.opencontainers.image.ref.name": name.tag,
                },
            }
            for name in names
        ] or [entry]
    document = {"schemaVersion": 2, "mediaType": oci.INDEX_TYPE, "manifests": entries}
    return msgspec.json.encode(document)


def _docker_manifest(chosen: Sequence[Saved]) -> bytes:
    entries = [
        {
            "Config": f"blobs/sha256/{image.id[7:]}",
            "RepoTags": [name.familiar() for name in names] or None,
            "Layers": [f"blobs/sha256/{layer.blob_digest[7:]}" for layer in image.layers],
        }
        for image, names in chosen
    ]
    return msgspec.json.encode(entries)


def _document(name: str, content: bytes) -> bytes:
    return _header(name, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    entry.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return header(entry)


def choose(
    images: Sequence[Image], refs: Sequence[str], resolve: Callable[[str], Image]
) -> list[Saved]:
    """What saving these takes: of a bare repository every tag, of an id no name. Pure.

    images: every image of the node. resolve: raises NotFound, InvalidArgument.
    """
    chosen: dict[str, list[Reference]] = {}
    found = {image.id: image for image in images}
    for ref in refs:
        for image_id, name in _of_repository(ref, images) or [_one(ref, resolve)]:
            names = chosen.setdefault(image_id, [])
            if name is not None and name not in names:
                names.append(name)
    return [Saved(found[image_id], tuple(names)) for image_id, names in chosen.items()]


def _of_repository(ref: str, images: Sequence[Image]) -> list[tuple[str, Reference | None]]:
    """Every tag of a repository, if `ref` is one's bare name."""
    try:
        asked = parse_reference(ref)
    except InvalidArgument:  # an id
        return []
    if asked.tag is not None or asked.digest is not None:
        return []
    return [
        (image.id, name)
        for image in images
        for name in map(parse_reference, image.names)
        if (name.registry, name.repository) == (asked.registry, asked.repository)
    ]


def _one(ref: str, resolve: Callable[[str], Image]) -> tuple[str, Reference | None]:
    image = resolve(ref)
    try:
        asked = parse_reference(ref).with_default_tag()
    except InvalidArgument:
        return image.id, None
    return image.id, asked if str(asked) in image.names else None
