"""Volumes of Compose services as mounts. Pure."""

from __future__ import annotations

from typing import Any

from shoal.errors import InvalidArgument
from shoal.model.enums import MountPropagation, MountType
from shoal.model.types import Driver, Mount
from swarmctl.compose.names import Namespace
from swarmctl.parsing.units import parse_bytes

_PROPAGATIONS = {item.name.lower(): item for item in MountPropagation}
_SECTIONS = {"bind": MountType.BIND, "volume": MountType.VOLUME, "tmpfs": MountType.TMPFS}


def mount(given: dict[str, Any], volumes: dict[str, Any], namespace: Namespace) -> Mount:
    """One entry of `volumes`. volumes: the file's section of that name."""
    kind = _SECTIONS.get(given["type"])
    if kind is None:
        raise InvalidArgument(f"volume type {given['type']!r} is not possible: use bind, volume"
                              " or tmpfs")  # fmt: skip
    if not given.get("target"):
        raise InvalidArgument("invalid mount target, must be an absolute path")
    for section in _SECTIONS:
        if section in given and section != given["type"]:
            raise InvalidArgument(f"{section} options are incompatible with type {given['type']}")
    base = Mount(
        type=kind,
        source=given.get("source", ""),
        target=given["target"],
        read_only=given.get("read_only", False),
        consistency=given.get("consistency", ""),
    )
    if kind is MountType.BIND:
        return _bind(base, given.get("bind") or {})
    if kind is MountType.TMPFS:
        return _tmpfs(base, given.get("tmpfs") or {})
    return _volume(base, given.get("volume") or {}, volumes, namespace)


def tmpfs_mount(text: str) -> Mount:
    """One entry of `tmpfs`: `TARGET[:OPTION,...]` with size and mode."""
    target, _, options = text.partition(":")
    result = Mount(type=MountType.TMPFS, target=target)
    for option in options.split(",") if options else ():
        key, _, value = option.partition("=")
        if key == "size":
            result = result.replaced(tmpfs_size_bytes=parse_bytes(value))
        elif key == "mode" and value and set(value) <= set("01234567"):
            result = result.replaced(tmpfs_mode=int(value, 8))
        else:
            raise InvalidArgument(f"{text!r}: option {option!r} is unknown: use size and mode")
    return result


def _bind(base: Mount, options: dict[str, Any]) -> Mount:
    if not base.source:
        raise InvalidArgument("invalid bind source, source cannot be empty")
    word = options.get("propagation") or "rprivate"
    if word not in _PROPAGATIONS:
        raise InvalidArgument(f"propagation: {word!r} is not one of {', '.join(_PROPAGATIONS)}")
    return base.replaced(propagation=_PROPAGATIONS[word])


def _tmpfs(base: Mount, options: dict[str, Any]) -> Mount:
    if base.source:
        raise InvalidArgument("invalid tmpfs source, source must be empty")
    return base.replaced(tmpfs_size_bytes=options.get("size", 0))


def _volume(
    base: Mount, options: dict[str, Any], volumes: dict[str, Any], namespace: Namespace
) -> Mount:
    base = base.replaced(volume_nocopy=options.get("nocopy", False))
    if not base.source:
        return base
    if base.source not in volumes:
        raise InvalidArgument(f"undefined volume {base.source!r}: name it under volumes")
    given = volumes[base.source]
    base = base.replaced(source=namespace.name_of(base.source, given))
    if given.get("external"):
        return base
    if "x-cluster-spec" in given:
        raise InvalidArgument("x-cluster-spec: volumes of a cluster are not possible here")
    driver = None
    if given.get("driver") or given.get("driver_opts"):
        driver = Driver(name=given.get("driver", ""), options=given.get("driver_opts", {}))
    return base.replaced(volume_driver=driver, volume_labels=namespace.labels(given.get("labels")))
