"""From what a registry serves under a name to one image's manifest. Pure.

Of an index or manifest list the image for the wished platform is taken, with the highest variant
that is known to run there. Documents are judged by what they hold, as registries' headers lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shoal.errors import InvalidArgument, NotFound
from worker.images import oci
from worker.images.model import digest_hex

ACCEPT = ", ".join((*oci.MANIFEST_TYPES, *oci.INDEX_TYPES))
_LAYER_BYTES_MAX = 1 << 40


class _Head(msgspec.Struct):
    media_type: str = msgspec.field(name="mediaType", default="")
    schema_version: int = msgspec.field(name="schemaVersion", default=0)
    manifests: list[object] | None = None
    layers: list[object] | None = None


def read(content: bytes, content_type: str, what: str) -> oci.Manifest | oci.ImageIndex:
    """A manifest or an index. Raises InvalidArgument naming what is wrong with it."""
    head = oci.read_document(content, _Head, what)
    kind = head.media_type or content_type.partition(";")[0].strip()
    if head.schema_version == 1:
        raise InvalidArgument(
            f"{what} is of schema version 1, which is obsolete and not read here: push the image"
            " again with a client of this decade"
        )
    if kind in oci.INDEX_TYPES or (head.manifests is not None and head.layers is None):
        return oci.read_document(content, oci.ImageIndex, what)
    if kind not in oci.MANIFEST_TYPES and head.layers is None:
        raise InvalidArgument(f"{what} has media type {kind[:100]!r}: that is no image")
    manifest = oci.read_document(content, oci.Manifest, what)
    _check(manifest, what)
    return manifest


def _check(manifest: oci.Manifest, what: str) -> None:
    digest_hex(manifest.config.digest, f"{what}: config")
    for layer in manifest.layers:
        digest_hex(layer.digest, f"{what}: layer")
        if layer.urls or not oci.is_layer_type(layer.media_type):
            raise InvalidArgument(
                f"{what}: layer {layer.digest} of type {layer.media_type[:100]!r} cannot be"
                " unpacked here (foreign, encrypted or not a file system layer)"
            )
        if not 0 <= layer.size <= _LAYER_BYTES_MAX:
            raise InvalidArgument(f"{what}: layer {layer.digest} has a size of {layer.size} bytes")


def choose(index: oci.ImageIndex, wished: oci.Platform) -> oci.Descriptor:
    """The image for a platform. Raises NotFound."""
    fitting = [one for one in images(index) if one.platform and oci.runs_on(one.platform, wished)]
    if not fitting:
        offered = sorted({platform_text(one.platform) for one in images(index) if one.platform})
        raise NotFound(
            f"no matching manifest for {platform_text(wished)} in the manifest list entries: it has"
            f" {', '.join(offered) or 'none'}"
        )
    pick = max if wished.variant else min  # a variant we do not know of ourselves may not run
    chosen = pick(fitting, key=lambda one: one.platform.variant if one.platform else "")
    digest_hex(chosen.digest, "index: manifest")
    return chosen


def images(index: oci.ImageIndex) -> Sequence[oci.Descriptor]:
    """Its images, without attestations."""
    return [one for one in index.manifests if one.platform is None or one.platform.os != "unknown"]


def parse_platform(text: str, host: oci.Platform) -> oci.Platform:
    """`linux/arm64/v8`, `arm64`, `linux`; "" is the node's own. Raises InvalidArgument."""
    if not text:
        return host
    parts = text.lower().split("/")
    if len(parts) == 1:
        is_system = parts[0] in {"linux", "windows", "darwin", "freebsd"}
        parts = [parts[0], host.architecture] if is_system else ["linux", parts[0]]
    if len(parts) > 3 or not all(part.replace("_", "").isalnum() for part in parts):
        raise InvalidArgument(f'"{text[:100]}": unknown operating system or architecture')
    architecture, variant = oci.normal_architecture(parts[1])
    if architecture not in oci.KNOWN_ARCHITECTURES:
        raise InvalidArgument(f'"{text[:100]}": unknown operating system or architecture')
    return oci.Platform(
        os=parts[0], architecture=architecture, variant=parts[2] if len(parts) > 2 else variant
    )


def platform_text(platform: oci.Platform) -> str:
    """`linux/arm64/v8`."""
    parts = (platform.os, platform.architecture, platform.variant)
    return "/".join(part for part in parts if part)
