"""Devices of nodes that containers get: how they are written, and which nodes have them.

A device is a path on the node: a device node, or a directory of them. Nodes say which they have
below /dev, but for families that come and go or that every node has dozens of (`is_listed`); of
others nobody knows before a container of the task is made on the node. Refuses, by name: paths that
are not absolute, permissions that are not letters of `rwm`, two devices at one place.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence

from shoal.errors import InvalidArgument
from shoal.model.types import DeviceMapping, NodeDescription

DEVICES_MAX = 64
"""Devices of one container, before directories are looked into."""
LISTED_MAX = 512
"""Devices that a node tells of; one with more tells of none."""
DEPTH_MAX = 4
PATH_LENGTH_MAX = 255
ALL = "rwm"
_PERMISSIONS = frozenset(ALL)
_ROOT = "/dev/"
_UNLISTED = re.compile(
    r"(?:block|char|disk|mapper|fd|pts|shm|mqueue|hugepages)(?:/.*)?"
    r"|loop[0-9]+(?:p[0-9]+)?|ram[0-9]+|dm-[0-9]+|zram[0-9]+|nbd[0-9]+(?:p[0-9]+)?"
    r"|tty[0-9]*|pty..|tty[p-za-e].|vcs[au]?[0-9]*"
    r"|std(?:in|out|err)|core|console|ptmx"
)


def parse_device(text: str) -> DeviceMapping:
    """`PATH[:PATH-INSIDE][:PERMISSIONS]`, as `docker run --device` takes it.

    Raises: InvalidArgument.
    """
    parts = text.split(":")
    if not 1 <= len(parts) <= 3:
        raise InvalidArgument(f"device {text!r}: must be PATH[:PATH-INSIDE][:PERMISSIONS]")
    if len(parts) == 2 and not parts[1].startswith("/"):
        parts.insert(1, "")
    device = DeviceMapping(*parts)
    check_devices((device,))
    return device


def check_devices(devices: Sequence[DeviceMapping]) -> None:
    """Refuse what no node could show. Raises: InvalidArgument."""
    if len(devices) > DEVICES_MAX:
        raise InvalidArgument(f"device: {len(devices)} devices, at most {DEVICES_MAX} may be")
    for device in devices:
        for path in (device.host_path, inside(device)):
            if not path.startswith("/") or "\0" in path or len(path) > PATH_LENGTH_MAX:
                raise InvalidArgument(
                    f"device {path[:80]!r}: must be an absolute path of at most {PATH_LENGTH_MAX} "
                    "characters"
                )
        letters = device.permissions
        if not set(letters) <= _PERMISSIONS or len(set(letters)) != len(letters):
            raise InvalidArgument(
                f"device {device.host_path}: permissions {letters[:20]!r} must be letters of "
                f"{ALL}, each once"
            )
    if len({inside(device) for device in devices}) != len(devices):
        raise InvalidArgument("device: two devices have the same path in the container")


def inside(device: DeviceMapping) -> str:
    """The path in the container."""
    return device.container_path or device.host_path


def spelled(device: DeviceMapping) -> str:
    """A device as it is written."""
    words = [device.host_path]
    if device.container_path or device.permissions:
        words.append(inside(device))
    if device.permissions:
        words.append(device.permissions)
    return ":".join(words)


def is_listed(path: str) -> bool:
    """Whether a node that has this device tells of it."""
    name = path.removeprefix(_ROOT)
    return (
        name not in {path, ""}
        and name.count("/") < DEPTH_MAX
        and len(path) <= PATH_LENGTH_MAX
        and not _UNLISTED.fullmatch(name)
    )


def missing(description: NodeDescription, devices: Iterable[DeviceMapping]) -> list[str]:
    """The devices that the node is known not to have."""
    if not description.devices_known:
        return []
    have = description.devices
    return [
        device.host_path
        for device, path in ((one, posixpath.normpath(one.host_path)) for one in devices)
        if is_listed(path)
        and path not in have
        and not any(other.startswith(f"{path}/") for other in have)
    ]
