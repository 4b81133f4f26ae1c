"""Which mounts a container has: from `-v`, `--mount`, `--volumes-from` and the image. Pure.

Order and precedence are Docker's: volumes of other containers, then binds, then mounts, then what
the image or `-v /path` declares; two wishes for one place are refused.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable

from engine.containers.records import MountPoint
from engine.containers.requests import Config, HostConfig, MountRequest
from shoal.errors import InvalidArgument, Unimplemented
from worker.volumes.options import check_subpath

PROPAGATIONS = frozenset(("private", "rprivate", "shared", "rshared", "slave", "rslave"))
_LABELS = frozenset(("z", "Z"))
_CONSISTENCIES = frozenset(("consistent", "cached", "delegated"))
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")

Others = Callable[[str], Iterable[MountPoint]]
"""Mounts of another container, by name or id. Raises: NotFound."""


def plan(config: Config, host: HostConfig, others: Others) -> tuple[MountPoint, ...]:
    """Every mount, by target; volumes without a name are anonymous. Raises: InvalidArgument."""
    found: dict[str, MountPoint] = {}
    for wish in host.volumes_from or ():
        for point in _of_another(wish, others):
            found[point.target] = point
    asked: set[str] = set()
    for point in (*map(parse_bind, host.binds or ()), *map(_requested, host.mounts or ())):
        if point.target in asked:
            raise InvalidArgument(f"Duplicate mount point: {point.target}")
        asked.add(point.target)
        found[point.target] = point
    for target in host.tmpfs or ():
        if _target(target) in asked:
            raise InvalidArgument(f"Duplicate mount point: {target}")
    taken = {posixpath.normpath(one) for one in host.tmpfs or ()}
    for target in config.volumes or ():
        place = _target(target)
        if place not in found and place not in taken:
            found[place] = MountPoint("volume", place, anonymous=True)
    return tuple(found.values())


def parse_bind(text: str) -> MountPoint:
    """`/src:/dst:ro`, `volume:/dst`, `/dst`. Raises: InvalidArgument."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidArgument(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return MountPoint("volume", _target(parts[0], text), anonymous=True)
    source, target = parts[0], _target(parts[1], text)
    mode = parts[2] if len(parts) == 3 else ""
    read_only, propagation, copy = _parse_mode(mode, text)
    if source.startswith("/"):
        return MountPoint(
            "bind", target, source=posixpath.normpath(source), mode=mode, read_only=read_only,
            propagation=propagation, create_source=True,
        )  # fmt: skip
    if not _NAME.fullmatch(source):
        raise InvalidArgument(
            f'{source}: "{source}" includes invalid characters for a local volume name, only'
            ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory,'
            " use absolute path"
        )
    if propagation:
        raise InvalidArgument(f"invalid mode: {mode}")
    return MountPoint("volume", target, name=source, mode=mode, read_only=read_only, copy=copy)


def tmpfs_points(host: HostConfig) -> tuple[MountPoint, ...]:
    """The `--tmpfs` mounts, which `inspect` does not list. Raises: InvalidArgument."""
    points = []
    for target, options in (host.tmpfs or {}).items():
        split = tuple(part for part in options.split(",") if part)
        points.append(MountPoint("tmpfs", _target(target), mode=options, tmpfs_options=split))
    return tuple(points)


def _parse_mode(mode: str, text: str) -> tuple[bool, str, bool]:
    """Read-only, propagation, copy-up. Raises: InvalidArgument for what is given twice."""
    words = mode.split(",") if mode else []
    kinds = {"access": {"ro", "rw"}, "label": _LABELS, "propagation": PROPAGATIONS,
             "copy": {"nocopy"}, "consistency": _CONSISTENCIES}  # fmt: skip
    given = [kind for word in words for kind, known in kinds.items() if word in known]
    if len(given) != len(words) or len(set(given)) != len(given):
        raise InvalidArgument(f"invalid mode: {mode} in '{text}'")
    propagation = next((word for word in words if word in PROPAGATIONS), "")
    return "ro" in words, propagation, "nocopy" not in words


def _requested(wish: MountRequest) -> MountPoint:
    target = _target(wish.target)
    if wish.type == "bind":
        return _bind_request(wish, target)
    if wish.type == "volume":
        return _volume_request(wish, target)
    if wish.type == "tmpfs":
        options = wish.tmpfs_options
        if wish.source:
            raise InvalidArgument("invalid mount config for type \"tmpfs\": field Source must"
                                  " not be specified")  # fmt: skip
        return MountPoint(
            "tmpfs", target, read_only=wish.read_only,
            tmpfs_size_bytes=options.size_bytes if options else 0,
            tmpfs_mode=options.mode if options else 0,
            tmpfs_options=tuple("=".join(one) for one in (options and options.options) or ()),
        )  # fmt: skip
    if wish.type in {"npipe", "cluster", "image"}:
        raise Unimplemented(f"Mounts: type {wish.type} is not possible on this node")
    raise InvalidArgument(f'invalid mount config for type "{wish.type}": mount type unknown')


def _bind_request(wish: MountRequest, target: str) -> MountPoint:
    options = wish.bind_options
    if not wish.source.startswith("/"):
        raise InvalidArgument(
            f"invalid mount config for type \"bind\": invalid mount path: '{wish.source}' mount"
            " path must be absolute"
        )
    propagation = options.propagation if options else ""
    if propagation and propagation not in PROPAGATIONS:
        raise InvalidArgument(f'invalid mount config for type "bind": invalid propagation mode:'
                              f" {propagation}")  # fmt: skip
    return MountPoint(
        "bind", target, source=posixpath.normpath(wish.source), read_only=wish.read_only,
        propagation=propagation,
        recursive=not (options and options.non_recursive),
        recursive_read_only=bool(options and options.read_only_force_recursive),
        create_source=bool(options and options.create_mountpoint),
    )  # fmt: skip


def _volume_request(wish: MountRequest, target: str) -> MountPoint:
    options = wish.volume_options
    driver = options.driver_config if options else None
    if wish.source and not _NAME.fullmatch(wish.source):
        raise InvalidArgument(
            f'invalid mount config for type "volume": invalid name: {wish.source}'
        )
    return MountPoint(
        "volume", target, name=wish.source, read_only=wish.read_only,
        driver=driver.name if driver else "", anonymous=not wish.source,
        driver_options=(driver and driver.options) or {},
        volume_labels=(options and options.labels) or {},
        subpath=check_subpath(options.subpath) if options else "",
        copy=not (options and options.no_copy),
    )  # fmt: skip


def _of_another(wish: str, others: Others) -> Iterable[MountPoint]:
    ref, _, mode = wish.partition(":")
    if mode not in {"", "ro", "rw"}:
        raise InvalidArgument(f"invalid mode for volumes-from: {mode}")
    for point in others(ref):
        if point.kind == "tmpfs":
            continue
        read_only = point.read_only if mode in {"", "rw"} else True
        yield point.replaced(read_only=read_only, anonymous=False)


def _target(path: str, text: str = "") -> str:
    """A place in the container. Raises: InvalidArgument."""
    place = posixpath.normpath(path)
    if not path.startswith("/"):
        raise InvalidArgument(
            f"invalid volume specification: '{text or path}': invalid mount config for type"
            f" \"volume\": invalid mount path: '{path}' mount path must be absolute"
        )
    if place in {"/", "//"}:
        raise InvalidArgument(
            f"invalid volume specification: '{text or path}': invalid mount config: invalid"
            " specification: destination can't be '/'"
        )
    return place
