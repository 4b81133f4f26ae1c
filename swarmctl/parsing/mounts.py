"""`--mount`: volumes, binds and tmpfs. Other types are refused: no daemon can mount them yet."""

from __future__ import annotations

from collections.abc import Callable

from shoal.errors import InvalidArgument
from shoal.model.enums import MountPropagation, MountRecursive, MountType
from shoal.model.types import Driver, Mount
from swarmctl.parsing.fields import parse_bool, required, split_fields
from swarmctl.parsing.units import parse_bytes

_TYPES = {"bind": MountType.BIND, "tmpfs": MountType.TMPFS, "volume": MountType.VOLUME}
_LATER_TYPES = ("npipe", "cluster", "image")
_PROPAGATIONS = {item.name.lower(): item for item in MountPropagation}
_RECURSION = {"enabled": MountRecursive.ENABLED, "disabled": MountRecursive.DISABLED}
_ALIASES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
}
_LATER_KEYS = ("volume-subpath",)

_Setter = Callable[[Mount, str | None], Mount]


def parse_mount(text: str) -> Mount:
    """The mount of one `--mount` value, such as `source=data,target=/srv,readonly`.

    Without a type it is a volume, without a source one of the task's own.
    """
    fields = [(_ALIASES.get(key, key), value) for key, value in split_fields(text)]
    mount = Mount(type=_mount_type(text, dict(fields).get("type")))
    for key, value in fields:
        if key != "type":
            mount = _setter(key, mount.type, text)(mount, value)
    return _checked(mount, text)


def _mount_type(text: str, name: str | None) -> MountType:
    if name is None:
        return MountType.VOLUME
    if name in _TYPES:
        return _TYPES[name]
    if name in _LATER_TYPES:
        raise InvalidArgument(
            f"{text!r}: mounts of type {name} are not supported by this version: "
            "use type=volume, type=bind or type=tmpfs"
        )
    raise InvalidArgument(f"{text!r}: unknown type {name!r}: use volume, bind or tmpfs")


def _setter(key: str, mount_type: MountType, text: str) -> _Setter:
    setter = _SETTERS.get(key)
    if key in _LATER_KEYS:
        raise InvalidArgument(f"{text!r}: {key} is not supported for services by this version")
    if setter is None:
        raise InvalidArgument(f"{text!r}: unknown key {key!r}")
    kind, prefix = mount_type.name.lower(), key.partition("-")[0]
    if (prefix in _TYPES and prefix != kind) or (key == "source" and kind == "tmpfs"):
        raise InvalidArgument(f"{text!r}: {key} has no meaning for type={kind}")
    return setter


def _checked(mount: Mount, text: str) -> Mount:
    if not mount.target.startswith("/"):
        raise InvalidArgument(f"{text!r}: target must be an absolute path")
    if mount.type is MountType.BIND and not mount.source.startswith("/"):
        raise InvalidArgument(f"{text!r}: source must be an absolute path on the node")
    if mount.type is MountType.VOLUME and mount.source.startswith("/"):
        raise InvalidArgument(
            f"{text!r}: source must be the name of a volume: use type=bind for a path on the node"
        )
    if mount.volume_driver is not None and not mount.volume_driver.name:
        driver = Driver(name="local", options=mount.volume_driver.options)
        return mount.replaced(volume_driver=driver)
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


def _volume_driver(mount: Mount, value: str | None) -> Mount:
    name = required(value, key="volume-driver")
    return mount.replaced(volume_driver=_driver(mount).replaced(name=name))


def _volume_option(mount: Mount, value: str | None) -> Mount:
    driver = _driver(mount)
    options = {**driver.options, **_pair(value, key="volume-opt")}
    return mount.replaced(volume_driver=driver.replaced(options=options))


def _volume_label(mount: Mount, value: str | None) -> Mount:
    return mount.replaced(volume_labels={**mount.volume_labels, **_pair(value, key="volume-label")})


def _volume_nocopy(mount: Mount, value: str | None) -> Mount:
    return mount.replaced(volume_nocopy=parse_bool(value, key="volume-nocopy"))


def _driver(mount: Mount) -> Driver:
    return mount.volume_driver or Driver()


def _pair(text: str | None, *, key: str) -> dict[str, str]:
    name, _, value = required(text, key=key).partition("=")
    return {name: value}


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
    "volume-driver": _volume_driver,
    "volume-opt": _volume_option,
    "volume-label": _volume_label,
    "volume-nocopy": _volume_nocopy,
    "tmpfs-size": _tmpfs_size,
    "tmpfs-mode": _tmpfs_mode,
}
