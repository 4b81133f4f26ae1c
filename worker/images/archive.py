"""Understand an image archive that was taken apart: docker save (old and new) and OCI layout.

Pure but for `read`, the function that fetches a small member's bytes. Result: one `PlannedImage`
for each image to load, every digest of a document already checked; the layers' content is checked
by whoever unpacks it. Of an index with several platforms exactly the one for this node is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from shoal.errors import InvalidArgument
from shoal.model.reference import Reference, parse_reference
from worker.images import oci
from worker.images.jobs import Member
from worker.images.model import StoreSettings

_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_INDEX_DEPTH_MAX = 4
_LINK_HOPS_MAX = 8
_IMAGES_MAX = 256


class PlannedImage(msgspec.Struct, frozen=True):
    """One image to load. manifest: the original bytes, or None when one must be made."""

    config: bytes
    parsed: oci.ParsedConfig
    manifest: bytes | None
    layers: tuple[Member, ...]
    names: tuple[Reference, ...]


class _SavedImage(msgspec.Struct):
    Config: str
    Layers: list[str]
    RepoTags: list[str] | None = None


class Archive:
    """The members of one archive by name."""

    def __init__(
        self,
        members: Sequence[Member],
        read: Callable[[Member], bytes],
        *,
        host: oci.Platform,
        settings: StoreSettings,
    ) -> None:
        self._members: Mapping[str, Member] = {member.name: member for member in members}
        self._read = read
        self._host = host
        self._settings = settings

    def plan(self) -> list[PlannedImage]:
        """Every image of the archive, in its order.

        Raises InvalidArgument naming the document or member and what is wrong with it.
        """
        saved = self._saved() if "manifest.json" in self._members else []
        if "index.json" in self._members and "oci-layout" in self._members:
            planned = self._from_oci(saved)
        elif "manifest.json" in self._members:
            planned = [self._from_saved(one) for one in saved]
        else:
            raise InvalidArgument(
                "image archive has neither manifest.json (docker save) nor oci-layout with"
                " index.json (OCI): to turn a root file system into an image, import it"
            )
        if not planned:
            raise InvalidArgument("image archive contains no image")
        return planned

    # -- docker save ------------------------------------------------------------------------

    def _saved(self) -> list[_SavedImage]:
        document = self._document(self._find("manifest.json"))
        saved = oci.read_document(document, list[_SavedImage], "manifest.json")
        if len(saved) > _IMAGES_MAX:
            raise InvalidArgument(f"manifest.json names more than {_IMAGES_MAX} images, the limit")
        return saved

    def _from_saved(self, image: _SavedImage) -> PlannedImage:
        member = self._find(image.Config)
        leaf = image.Config.rpartition("/")[2].removesuffix(".json")
        if len(leaf) == 64 and member.digest != f"sha256:{leaf}":
            raise InvalidArgument(
                f"image archive: {image.Config} has digest {member.digest}, not the one it is"
                " named by: it was altered"
            )
        return self._planned(
            member,
            manifest=None,
            layers=[self._find(name) for name in image.Layers],
            names=self._tags(image),
        )

    def _tags(self, image: _SavedImage) -> list[Reference]:
        return [parse_reference(tag).with_default_tag() for tag in image.RepoTags or []]

    # -- OCI layout -------------------------------------------------------------------------

    def _from_oci(self, saved: Sequence[_SavedImage]) -> list[PlannedImage]:
        tags: dict[str, list[Reference]] = {}
        for one in saved:
            tags.setdefault(self._find(one.Config).digest, []).extend(self._tags(one))
        document = self._document(self._find("index.json"))
        index = oci.read_document(document, oci.ImageIndex, "index.json")
        if len(index.manifests) > _IMAGES_MAX:
            raise InvalidArgument(f"index.json names more than {_IMAGES_MAX} images, the limit")
        planned: dict[str, PlannedImage] = {}
        for top in self._wanted(index.manifests):
            manifest = self._select(top, depth=0)
            content = self._document(self._blob(manifest.digest, "manifest"))
            image = self._from_manifest(content, _annotated_names(top), tags)
            known = planned.get(manifest.digest)
            if known is not None:
                image = _with_names(image, (*known.names, *image.names))
            planned[manifest.digest] = image
        return list(planned.values())

    def _wanted(self, manifests: Sequence[oci.Descriptor]) -> list[oci.Descriptor]:
        """The top level lists images, or (without names) one image's platforms."""
        images = [one for one in manifests if not _is_attestation(one)]
        named = any(_annotated_names(one) for one in images)
        if not named and len(images) > 1 and all(one.platform is not None for one in images):
            return [self._choose(images)]
        return images

    def _select(self, descriptor: oci.Descriptor, *, depth: int) -> oci.Descriptor:
        if descriptor.media_type in oci.MANIFEST_TYPES:
            return descriptor
        if descriptor.media_type not in oci.INDEX_TYPES:
            raise InvalidArgument(
                f"image archive: {descriptor.digest} has media type {descriptor.media_type!r},"
                " neither an image manifest nor an index"
            )
        if depth >= _INDEX_DEPTH_MAX:
            raise InvalidArgument("image archive: indexes are nested too deeply")
        content = self._document(self._blob(descriptor.digest, "index"))
        index = oci.read_document(content, oci.ImageIndex, f"index {descriptor.digest}")
        return self._select(self._choose(index.manifests), depth=depth + 1)

    def _choose(self, manifests: Sequence[oci.Descriptor]) -> oci.Descriptor:
        images = [one for one in manifests if not _is_attestation(one)]
        fitting = [
            one for one in images if one.platform is None or oci.runs_on(one.platform, self._host)
        ]
        if not fitting:
            offered = sorted(
                f"{one.platform.os}/{one.platform.architecture}" for one in images if one.platform
            )
            raise InvalidArgument(
                f"image archive has no image for {self._host.os}/{self._host.architecture};"
                f" it has {', '.join(offered) or 'none'}"
            )
        return max(fitting, key=lambda one: one.platform.variant if one.platform else "")

    def _from_manifest(
        self, content: bytes, names: list[Reference], tags: Mapping[str, list[Reference]]
    ) -> PlannedImage:
        what = f"manifest {oci.sha256(content)}"
        manifest = oci.read_document(content, oci.Manifest, what)
        for layer in manifest.layers:
            if layer.urls or not oci.is_layer_type(layer.media_type):
                raise InvalidArgument(
                    f"{what}: layer {layer.digest} of type {layer.media_type!r} cannot be unpacked"
                    " here (foreign, encrypted or not a file system layer)"
                )
        member = self._blob(manifest.config.digest, "configuration")
        return self._planned(
            member,
            manifest=content,
            layers=[self._blob(layer.digest, "layer") for layer in manifest.layers],
            names=[*names, *tags.get(member.digest, [])],
        )

    # -- members ----------------------------------------------------------------------------

    def _planned(
        self,
        config: Member,
        *,
        manifest: bytes | None,
        layers: Sequence[Member],
        names: Sequence[Reference],
    ) -> PlannedImage:
        content = self._document(config)
        what = f"configuration {config.name}"
        parsed = oci.parse_config(content, what=what, layers_max=self._settings.layers_max)
        if len(parsed.diff_ids) != len(layers):
            raise InvalidArgument(
                f"{what} lists {len(parsed.diff_ids)} layers, the archive {len(layers)}"
            )
        if not oci.runs_on(parsed.platform, self._host) and parsed.platform.architecture:
            raise InvalidArgument(
                f"{what} is for {parsed.platform.os}/{parsed.platform.architecture}; this node is"
                f" {self._host.os}/{self._host.architecture}"
            )
        return PlannedImage(
            config=content,
            parsed=parsed,
            manifest=manifest,
            layers=tuple(layers),
            names=tuple(dict.fromkeys(names)),
        )

    def _blob(self, digest: str, what: str) -> Member:
        algorithm, _, value = digest.partition(":")
        member = self._find(f"blobs/{algorithm}/{value}")
        if member.digest != digest:
            raise InvalidArgument(
                f"image archive: {what} {digest} has content of digest {member.digest}:"
                " it was altered or damaged"
            )
        return member

    def _find(self, name: str) -> Member:
        wanted = "/".join(part for part in name.split("/") if part not in ("", "."))
        member = self._members.get(wanted)
        for _ in range(_LINK_HOPS_MAX):
            if member is None or not member.link:
                break
            member = self._members.get(member.link)
        if member is None or member.link:
            raise InvalidArgument(f"image archive: {name[:200]!r} is missing")
        return member

    def _document(self, member: Member) -> bytes:
        if member.size > self._settings.metadata_bytes_max:
            raise InvalidArgument(
                f"image archive: {member.name!r} has {member.size} bytes; a manifest, index or"
                f" configuration may have {self._settings.metadata_bytes_max}"
            )
        return self._read(member)


def _is_attestation(descriptor: oci.Descriptor) -> bool:
    platform = descriptor.platform
    return platform is not None and platform.os == "unknown"


def _annotated_names(descriptor: oci.Descriptor) -> list[Reference]:
    """Names a descriptor carries. A bare word is a tag of an unknown repository: no name."""
    for key in _NAME_ANNOTATIONS:
        text = (descriptor.annotations or {}).get(key, "")
        if ":" in text or "/" in text:
            return [parse_reference(text).with_default_tag()]
    return []


def _with_names(image: PlannedImage, names: Sequence[Reference]) -> PlannedImage:
    return PlannedImage(
        config=image.config,
        parsed=image.parsed,
        manifest=image.manifest,
        layers=image.layers,
        names=tuple(dict.fromkeys(names)),
    )
