"""The mesh's elements where a map cannot have a slot number in its key: a map per slot instead.

Everybody else goes on naming elements of the slot maps; here is where they are. Invariant: the two
layouts hold the same, and a transaction stays one transaction.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from typing_extensions import override

from worker.network.core import NARROW_SLOTS, WIDE_SLOTS, map_name
from worker.network.features import Features
from worker.network.nft import Element, NftSocket

_VERSIONS: Final = (4, 6)
_KINDS: Final = tuple(
    (sticky, size) for sticky in (False, True) for size in (NARROW_SLOTS, WIDE_SLOTS)
)


class SlotMap(NamedTuple):
    """What is in a slot map: addresses of IP `version`; `placed`: of ports at one address each."""

    version: int
    placed: bool


SLOT_MAPS: Final = {
    map_name(sticky=sticky, size=size, version=version, placed=placed): SlotMap(version, placed)
    for placed in (True, False)
    for version in _VERSIONS
    for sticky, size in _KINDS
}
"""All slot maps by name, in the order in which they are asked."""
SPLIT: Final = frozenset(name for name in SLOT_MAPS if "_wide" not in name)
"""Those that can have a map per slot; of the wide ones it would be thousands."""
_SLOT: Final = struct.Struct("=I")
"""The last field of a key: the kernel's random number, in its own byte order."""


def split_name(name: str, slot: int) -> str:
    """The map of one slot."""
    return f"{name}_{slot}"


def split(elements: Mapping[bytes, bytes]) -> dict[int, dict[bytes, bytes]]:
    """The elements of a slot map, by slot and then by port."""
    found: dict[int, dict[bytes, bytes]] = {}
    for key, value in elements.items():
        port, slot = _parted(key)
        found.setdefault(slot, {})[port] = value
    return found


class MeshSocket(NftSocket):
    """The elements of table `inet shoal`, whichever layout its slot maps have."""

    def __init__(self) -> None:
        """features: of the table, as soon as somebody knows them."""
        super().__init__()
        self.features = Features()

    @override
    def apply(self, deletes: Sequence[Element], adds: Sequence[Element]) -> None:
        if not self.features.slot_keys:
            deletes, adds = [*map(_placed, deletes)], [*map(_placed, adds)]
        super().apply(deletes, adds)

    @override
    def elements(self, set_name: str) -> dict[bytes, bytes]:
        if self.features.slot_keys or set_name not in SLOT_MAPS:
            return super().elements(set_name)
        return dict(self._gathered(set_name)) if set_name in SPLIT else {}

    def _gathered(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        for slot in range(NARROW_SLOTS):
            for key, value in super().elements(split_name(name, slot)).items():
                yield key + _SLOT.pack(slot), value


def _placed(element: Element) -> Element:
    if element.set_name not in SPLIT:
        return element
    key, slot = _parted(element.key)
    where = split_name(element.set_name, slot)
    return Element(where, key, element.value, element.timeout_ms)


def _parted(key: bytes) -> tuple[bytes, int]:
    """A key without its last field, and that."""
    (slot,) = _SLOT.unpack(key[-_SLOT.size :])
    return key[: -_SLOT.size], int(slot)
