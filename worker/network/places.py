"""Published ports by where they answer: their identity, and their keys in the kernel's sets.

A port answers at every address of the node, or at one; a port of an interface is one port for each
address that the interface has at the moment. Sets and maps come in three kinds, since their keys
differ: for every address, for one of IPv4 (`_at`), for one of IPv6 (`_at6`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from typing_extensions import override

from worker.network import route
from worker.network.core import PROTOCOLS, ElementChange
from worker.network.netlink import NETLINK_ROUTE, NetlinkSocket
from worker.network.nft import (
    Element,
    NftSocket,
    endpoint_value,
    parse_placed_key,
    parse_port_key,
    parse_slot_key,
    placed_key,
    port_key,
    slot_key,
)
from worker.network.ports import at

_LINK_LOCAL: Final = "fe80:"
_NAMES: Final = {number: name for name, number in PROTOCOLS.items()}


class PortId(NamedTuple):
    """What tells two published ports of a node apart; address "" is every one."""

    protocol: str
    port: int
    address: str = ""

    @override
    def __str__(self) -> str:
        return f"{at(self.address)}{self.port}/{self.protocol}"


class TableId(NamedTuple):
    """A table holds addresses of one family, 4 or 6."""

    port: PortId
    version: int


def addresses_at(address: str, interface: str) -> tuple[str, ...]:
    """Where in this namespace such a port answers, ("",) for everywhere; none: nowhere as yet.

    An address need not be here now: it may come, as one does that moves between machines.
    """
    if not interface:
        return (address,)
    netlink = NetlinkSocket(NETLINK_ROUTE)
    try:
        link = route.link_of(netlink, interface)
        if link is None:
            return ()
        found = [
            one
            for family in route.FAMILIES
            for one, _length in route.found_addresses(netlink, link.index, family)
        ]
    finally:
        netlink.close()
    return tuple(sorted(one for one in found if not one.startswith(_LINK_LOCAL)))


def versions_at(address: str) -> tuple[int, ...]:
    """The IP versions in which a port answers that is published there; "" is everywhere."""
    if not address:
        return (4, 6)
    return (6,) if ":" in address else (4,)


def no_address(interface: str) -> str:
    """Why a port of this interface is not served."""
    return f"interface {interface} has no address on this node, or is not there"


def kind_of(address: str) -> str:
    """What the name of a set ends with that holds ports at this address."""
    if not address:
        return ""
    return "_at6" if ":" in address else "_at"


def port_element(set_name: str, port_id: PortId) -> Element:
    """The element of a set of ports, in the one of its kind."""
    key = port_key(_number(port_id.protocol), port_id.port)
    return Element(set_name + kind_of(port_id.address), placed_key(port_id.address, key))


def found_ports(
    nft: NftSocket, set_name: str, kinds: tuple[str, ...] = ("", "_at", "_at6")
) -> set[PortId]:
    """The ports in the sets of this name, of all kinds that there are of it."""
    found: set[PortId] = set()
    for kind in kinds:
        for key in nft.elements(set_name + kind):
            address, plain = parse_placed_key(key, len(port_key(0, 0)))
            protocol, port = parse_port_key(plain)
            found.add(PortId(_name(protocol), port, address))
    return found


def slot_element(table_id: TableId, change: ElementChange) -> Element:
    """The element of one slot."""
    key = slot_place(table_id.port, change.slot)
    return Element(change.map_name, key, endpoint_value(change.endpoint))


def slot_place(port_id: PortId, slot: int) -> bytes:
    """The key of one slot."""
    key = slot_key(_number(port_id.protocol), port_id.port, slot)
    return placed_key(port_id.address, key)


def found_slot(key: bytes) -> tuple[PortId, int]:
    """The port and the slot of a key."""
    address, plain = parse_placed_key(key, len(slot_key(0, 0, 0)))
    protocol, port, slot = parse_slot_key(plain)
    return PortId(_name(protocol), port, address), slot


def _name(protocol: int) -> str:
    return _NAMES.get(protocol, str(protocol))


def _number(protocol: str) -> int:
    """Also of a protocol that is not ours, as found in the kernel."""
    return PROTOCOLS.get(protocol) or int(protocol)
