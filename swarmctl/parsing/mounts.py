"""`--mount`: binds and tmpfs. Other types are refused, as the daemons cannot mount them yet."""

from __future__ import annotations

from collections.abc import Callable

from shoal.errors import InvalidArgument
from shoal.model.enums import MountPropagation, MountRecursive, MountType
from shoal.model.types import Mount
from swarmctl.parsing.fields import parse_bool, required, split_fields
from swarmctl.parsing.units import parse_bytes

_TYPES = {"bind": MountType.BIND, "tmpfs": MountType.TMPFS}
_LATER_TYPES = ("volume", "npipe", "cluster", "image")
_PROPAGATIONS = {item.name.lower(): item for item in MountPropagation}
_RECURSION = {"enabled": MountRecursive.ENABLED, "disabled": MountRecursive.DISABLED}
_ALIASES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
}
_BIND_KEYS = ("bind-propagation", "bind-nonrecursive", "bind-recursive")
_TMPFS_KEYS = ("tmpfs-size", "tmpfs-mode")

_Setter = Callable[[Mount, str | None], Mount]


def parse_mount(text: str) -> Mount:
    """The mount of one `--mount` value, such as `type=bind,source=/srv,target=/srv,readonly`."""
    fields = [(_ALIASES.get(key, key), value) for key, value in split_fields(text)]
    mount = Mount(type=_mount_type(text, dict(fields).get("type")))
    for key, value in fields:
        if key != "type":
            mount = _setter(key, mount.type, text)(mount, value)
    return _checked(mount, text)


def _mount_type(text: str, name: str | None) -> MountType:
    if name in _TYPES:
        return _TYPES[name]
    if name is None or name in _LATER_TYPES:
        kind = "volume (the default)" if name is None else name
        raise InvalidArgument(
            f"{text!r}: mounts of type {kind} are not supported by this version: "
            "use type=bind or type=tmpfs"
        )
    raise InvalidArgument(f"{text!r}: unknown type {name!r}: use bind or tmpfs")


def _setter(key: str, mount_type: MountType, text: str) -> _Setter:
    setter = _SETTERS.get(key)
    if setter is None:
        raise InvalidArgument(f"{text!r}: unknown key {key!r}")
    wrong = _TMPFS_KEYS if mount_type is MountType.BIND else (*_BIND_KEYS, "source")
    if key in wrong:
        raise InvalidArgument(f"{text!r}: {key} has no meaning for type={mount_type.name.lower()}")
    return setter


def _checked(mount: Mount, text: str) -> Mount:
    if not mount.target.startswith("/"):
        raise InvalidArgument(f"{text!r}: target must be an absolute path")
    if mount.type is MountType.BIND and not mount.source.startswith("/"):
        raise InvalidArgument(f"{text!r}: source must be an absolute path on the node")
    return mount


def _source(mount: Mount, value: str | None) -> Mount:
    return mount.replaced(source=required(value, key="source"))


def _target(mount: Mount, value: str | None) -> Mount:
    return mount.replaced(target=required(value, key="target"))


def _read_only(mount: Mount, value: str | None) -> Mount:
    return mount.replaced(read_only=parse_bool(value, key="readonly"))


def _propagation(mount: Mount, value: str | None) -> Mount:
    if value not in _PROPAGATIONS:
        raise InvalidArgument(
            f"bind-propagation={value} is unknown: use {', '.join(_PROPAGATIONS)}"
        )
    return mount.replaced(propagation=_PROPAGATIONS[value])


def _non_recursive(mount: Mount, value: str | None) -> Mount:
    flat = parse_bool(value, key="bind-nonrecursive")
    return mount.replaced(recursive=MountRecursive.DISABLED if flat else MountRecursive.ENABLED)


def _recursive(mount: Mount, value: str | None) -> Mount:
    if value not in _RECURSION:
        raise InvalidArgument(
            f"bind-recursive={value} is not supported: use {' or '.join(_RECURSION)}"
        )
    return mount.replaced(recursive=_RECURSION[value])


def _tmpfs_size(mount: Mount, value: str | None) -> Mount:
    size = parse_bytes(required(value, key="tmpfs-size"))
    return mount.replaced(tmpfs_size_bytes=size)


def _tmpfs_mode(mount: Mount, value: str | None) -> Mount:
    word = required(value, key="tmpfs-mode")
    try:
        mode = int(word, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise InvalidArgument(f"tmpfs-mode={word} is not an octal mode such as 1777")
    return mount.replaced(tmpfs_mode=mode)


_SETTERS: dict[str, _Setter] = {
    "source": _source,
    "target": _target,
    "readonly": _read_only,
    "bind-propagation": _propagation,
    "bind-nonrecursive": _non_recursive,
    "bind-recursive": _recursive,
    "tmpfs-size": _tmpfs_size,
    "tmpfs-mode": _tmpfs_mode,
}
