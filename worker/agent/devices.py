"""Devices of this node: the list its managers get, and those behind its generic resources.

The list holds what containers may ask for by its path, links to devices among it; families that
come and go are left out (`shoal.model.devices`), so that the node need not register anew for them.
A node with more than may be told tells of none: nobody then takes a device for missing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from shoal.errors import InvalidArgument
from shoal.model.devices import LISTED_MAX, check_devices, is_listed, parse_device
from shoal.model.generic import parse_advertised
from shoal.model.types import DeviceMapping, GenericResource

LIST_BYTES_MAX = 24 << 10
"""Half of what a node may say of itself has to remain for the rest."""
ENTRIES_MAX = 4096

PieceKey = tuple[str, str]
"""Kind and name; "" stands for every piece of the kind."""


class DeviceList(msgspec.Struct, frozen=True):
    """paths: in order. complete: whether what is not among them is not there."""

    paths: tuple[str, ...] = ()
    complete: bool = False


class ResourcePool(msgspec.Struct, frozen=True):
    """The generic resources of a node, and the devices that come with them."""

    resources: tuple[GenericResource, ...] = ()
    devices: Mapping[PieceKey, tuple[DeviceMapping, ...]] = {}

    def devices_of(self, assigned: Iterable[GenericResource]) -> tuple[DeviceMapping, ...]:
        """What a task is to see of the pieces that it was given."""
        keys = dict.fromkeys(
            key for piece in assigned for key in ((piece.kind, ""), (piece.kind, piece.named_value))
        )
        found = [device for key in keys for device in self.devices.get(key, ())]
        return tuple(dict.fromkeys(found))


def read_pool(resources: Iterable[str], devices: Iterable[str]) -> ResourcePool:
    """Of `KIND=COUNT|NAME`, and `KIND[=NAME],DEVICE[,DEVICE ...]`. Raises: InvalidArgument."""
    pieces = parse_advertised(resources)
    bound: dict[PieceKey, tuple[DeviceMapping, ...]] = {}
    for text in devices:
        piece, *paths = text.split(",")
        kind, _, name = piece.partition("=")
        if not any(one.kind == kind and name in ("", one.named_value) for one in pieces):
            raise InvalidArgument(
                f"generic device {text!r}: the node has no generic resource {piece!r}"
            )
        if not paths or (kind, name) in bound:
            raise InvalidArgument(
                f"generic device {text!r}: write KIND[=NAME],DEVICE[,DEVICE ...], once for each"
            )
        bound[kind, name] = tuple(map(parse_device, paths))
    pool = ResourcePool(pieces, bound)
    for kind in {one.kind for one in pieces}:  # a task may be given every piece of a kind
        check_devices(pool.devices_of(one for one in pieces if one.kind == kind))
    return pool


def list_devices(root: str = "/dev") -> DeviceList:
    """What this node has. Blocks; what cannot be read is not there."""
    found: list[str] = []
    for seen, path in enumerate(_paths(root)):
        if seen > ENTRIES_MAX:
            return DeviceList()
        if is_listed("/dev" + path[len(root) :]) and _is_device(path):
            found.append("/dev" + path[len(root) :])
    if len(found) > LISTED_MAX or sum(map(len, found)) > LIST_BYTES_MAX:
        return DeviceList()
    return DeviceList(tuple(sorted(found)), complete=True)


def _paths(root: str) -> Iterator[str]:
    for directory, names, files in os.walk(root):
        names[:] = [one for one in names if is_listed("/dev" + f"{directory}/{one}"[len(root) :])]
        yield from (f"{directory}/{name}" for name in files)


def _is_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def ordered(*groups: Sequence[DeviceMapping]) -> tuple[DeviceMapping, ...]:
    """All of them; of two at one place in the container the later one."""
    places = {
        device.container_path or device.host_path: device for group in groups for device in group
    }
    return tuple(places.values())
