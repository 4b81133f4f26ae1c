"""The image store's data: what callers see, what the index file keeps, and the limits.

All values are frozen. Digests are always `sha256:<hex>`; sizes are bytes; times are RFC 3339 text
as image configurations carry them.
"""

from __future__ import annotations

import re

import msgspec

from shoal.errors import InvalidArgument
from shoal.model.types import HealthCheck

MIB = 1024 * 1024
GIB = 1024 * MIB

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class UnpackLimits(msgspec.Struct, frozen=True):
    """Bounds on what one archive or layer may cost. Every one is enforced while it streams."""

    archive_bytes_max: int = 32 * GIB
    """Bytes read from the archive as it comes (compressed), at most."""
    unpacked_bytes_max: int = 32 * GIB
    """Bytes of tar after decompression, at most: the guard against decompression bombs."""
    entries_max: int = 1_000_000
    """Entries of one tar, at most; also bounds the applier's memory (about 300 bytes each)."""
    device_nodes_max: int = 64
    """Character devices of one layer, at most. A minimal /dev has about 15; block devices: none."""
    header_bytes_max: int = MIB
    """Bytes of one extended header (pax, GNU long name), at most: names, links and xattrs."""
    free_bytes_reserve: int = 512 * MIB
    """Free space that must remain on the store's disk, or the unpacking is refused."""


class StoreSettings(msgspec.Struct, frozen=True):
    """How one image store behaves."""

    limits: UnpackLimits = UnpackLimits()
    """Bounds on archives and layers."""
    images_max: int = 4096
    """Images kept at once; the index file is rewritten on each change, so it must stay small."""
    layers_max: int = 127
    """Layers of one image: what overlayfs mounts in one piece, and docker's own limit."""
    metadata_bytes_max: int = 4 * MIB
    """Bytes of one manifest, index or configuration: docker's and registries' limit."""
    members_max: int = 4096
    """Files inside one image archive (docker save, OCI)."""
    unpack_parallel: int = 2
    """Unpacking processes at once; more than cores gains nothing."""
    unpack_timeout_s: float = 3600.0
    """Deadline of one unpacking process."""


class ImageConfig(msgspec.Struct, frozen=True):
    """What a container of the image runs by default. `None` means: the image does not say."""

    env: tuple[str, ...] = ()
    cmd: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    healthcheck: HealthCheck | None = None
    shell: tuple[str, ...] | None = None


class Layer(msgspec.Struct, frozen=True):
    """One layer: the digest of its tar, of its stored (mostly compressed) form, and its chain."""

    diff_id: str
    chain_id: str
    blob_digest: str
    blob_bytes: int
    media_type: str
    unpacked_bytes: int


class Image(msgspec.Struct, frozen=True):
    """One image of this node.

    id: digest of the configuration. digest: digest of the manifest. names: full references that
    point here, sorted; empty for a dangling image. layers: lowest first. size_bytes: unpacked.
    repo_digests: `repository@digest` of what registries call it, in their short form. parent: id of
    the image it was made from here, or "". tagged_at_ns: when it last got a name, or 0.
    """

    id: str
    digest: str
    names: tuple[str, ...]
    repo_tags: tuple[str, ...]
    created: str
    size_bytes: int
    architecture: str
    os: str
    variant: str
    layers: tuple[Layer, ...]
    config: ImageConfig
    repo_digests: tuple[str, ...] = ()
    parent: str = ""
    tagged_at_ns: int = 0


class User(msgspec.Struct, frozen=True):
    """A container made from an image. running: it must keep its layers whatever is forced."""

    container: str
    running: bool = True


class Removed(msgspec.Struct, frozen=True):
    """One line of what a removal did. Exactly one is set: a name that is gone, or an id."""

    untagged: str = ""
    deleted: str = ""


class Removal(msgspec.Struct, frozen=True):
    """What `remove` did, in order: names that point nowhere now, then what is gone."""

    lines: tuple[Removed, ...] = ()
    freed_bytes: int = 0

    @property
    def untagged(self) -> tuple[str, ...]:
        """Names that are gone, in their short form."""
        return tuple(line.untagged for line in self.lines if line.untagged)

    @property
    def deleted(self) -> tuple[str, ...]:
        """Ids of images and chain ids of layers that are gone."""
        return tuple(line.deleted for line in self.lines if line.deleted)


class GcReport(msgspec.Struct, frozen=True):
    """What `gc` removed. freed_bytes counts blobs and leftovers by allocated size."""

    blobs: int
    snapshots: int
    leftovers: int
    freed_bytes: int


def digest_hex(digest: str, field: str) -> str:
    """The hexadecimal half of a sha256 digest.

    Raises InvalidArgument naming `field`: a digest becomes a file name, so its shape is checked
    wherever one comes from outside.
    """
    if not _DIGEST.fullmatch(digest):
        raise InvalidArgument(f"{field} {digest[:100]!r} is not sha256:<64 hexadecimal digits>")
    return digest[7:]
