"""What an image's configuration says of how it was made: history, author, comment. Pure.

The configuration's bytes are the source each time: the index keeps none of it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from shoal.errors import Internal
from worker.images.model import Image
from worker.images.oci import Platform, read_document

HISTORY_MAX = 1024


class HistoryEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step. empty_layer: it changed the configuration only."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False

    def at(self, created: str) -> HistoryEntry:
        """The same step, taken then."""
        return msgspec.structs.replace(self, created=created)


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: tuple[str, ...] = ()
    type: str = "layers"


class Configuration(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image's configuration document. config: as it stands there, in Docker's spelling."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    author: str = ""
    comment: str = ""
    docker_version: str = ""
    config: dict[str, Any] | None = None
    history: tuple[HistoryEntry, ...] | None = None
    rootfs: _RootFs = _RootFs()


class Step(msgspec.Struct, frozen=True):
    """One line of `docker history`. id: "" where no image of this node stands for the step."""

    id: str
    names: tuple[str, ...]
    created: str
    created_by: str
    comment: str
    size_bytes: int


def read_configuration(content: bytes) -> Configuration:
    """Read a document the store keeps. Raises InvalidArgument."""
    return read_document(content, Configuration, "configuration")


def child_configuration(
    base: Configuration | None,
    config: dict[str, Any],
    step: HistoryEntry,
    *,
    diff_id: str,
    platform: Platform,
) -> bytes:
    """The document of an image with one more step on `base`. diff_id "": no layer is added."""
    below = () if base is None else base.rootfs.diff_ids
    history = () if base is None else base.history or ()
    document = Configuration(
        architecture=platform.architecture if base is None else base.architecture,
        os=platform.os if base is None else base.os,
        variant=platform.variant if base is None else base.variant,
        created=step.created,
        author=step.author,
        comment=step.comment,
        config=config,
        history=(*history, step),
        rootfs=_RootFs((*below, diff_id) if diff_id else below),
    )
    value = msgspec.to_builtins(document)
    value["rootfs"] = {"type": "layers", "diff_ids": list(document.rootfs.diff_ids)}
    return msgspec.json.encode(value, order="sorted")


def steps(
    image: Image, configuration: Configuration, lookup: Callable[[str], Image | None]
) -> list[Step]:
    """The history, newest first. lookup: images of this node by id.

    Ids are those of the image and of its parents made here; the others are unknown.
    """
    told: list[HistoryEntry] = list(configuration.history or ())
    sizes = _sizes(told, [layer.unpacked_bytes for layer in image.layers])
    found: Image | None = image
    result = []
    for entry, size in zip(reversed(told), reversed(sizes), strict=True):
        result.append(
            Step(
                id="" if found is None else found.id,
                names=() if found is None else found.repo_tags,
                created=entry.created or "",
                created_by=entry.created_by,
                comment=entry.comment,
                size_bytes=size,
            )
        )
        found = lookup(found.parent) if found is not None and found.parent else None
    return result


def _sizes(told: Sequence[HistoryEntry], layers: Sequence[int]) -> list[int]:
    """Bytes of each step's layer; 0 for those without one. Raises Internal."""
    left = list(reversed(layers))
    sizes = []
    for entry in told:
        if entry.empty_layer:
            sizes.append(0)
        elif left:
            sizes.append(left.pop())
        else:
            raise Internal("too many non-empty layers in History section")
    return sizes
