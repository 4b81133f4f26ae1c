"""Forgetting tracked connections (ctnetlink): of removed UDP endpoints, lost nodes, old tasks.

A UDP client that keeps sending keeps its entry alive, so it would stay with a dead task for ever; a
TCP client of a dead node would retransmit for 15 minutes. Once the entry is gone the next packet is
balanced anew. Invariant: only entries that match the given address are deleted, in every zone.
Newer kernels delete by filter in one message; others get a dump and one delete per entry. So does
whatever has an IPv6 address, on every kernel: up to 6.18 at least, the filter compares those the
wrong way round, and everything but the entries asked for would go (ctnetlink_filter_match_tuple).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from worker.network.netlink import (
    NETLINK_NETFILTER,
    Message,
    NetlinkError,
    NetlinkSocket,
    attr,
    attributes,
    nested,
    u32,
)

_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = {4: 1, 16: 3}
"""Attribute of a source address, by its length in bytes."""
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_PROTO_NUMBER, _PROTO_SOURCE_PORT = 1, 2
_FILTER_ORIG, _FILTER_REPLY = 1, 2
_MATCH_SOURCE, _MATCH_PROTOCOL, _MATCH_SOURCE_PORT = 1 << 0, 1 << 3, 1 << 4
_REFUSED_FILTER: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT})
_DELETES_PER_CALL = 256


class Match(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Entries whose reply (or original) packets come from `address`; "" and 0 match any."""

    address: str = ""
    protocol: int = 0
    port: int = 0
    original: bool = False


class ConntrackSocket:
    """The connection table of the calling thread's network namespace."""

    def __init__(self, *, filters: bool = True) -> None:
        """filters: try to delete by filter first; False goes the way of older kernels."""
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        self._filters = filters

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def forget(self, matches: Iterable[Match]) -> None:
        """Delete the entries that match any of `matches`. Raises: NetlinkError."""
        wanted = [match for match in matches if match != Match()]
        six = [match for match in wanted if ":" in match.address]
        rest = [match for match in wanted if ":" not in match.address]
        while rest and self._filters:
            try:
                self._netlink.transact(
                    [_delete_by_filter(rest[-1], f) for f in _families(rest[-1])]
                )
            except NetlinkError as error:
                if error.errno not in _REFUSED_FILTER:
                    raise
                self._filters = False  # kernel before 6.8
            else:
                rest.pop()
        remaining = [*six, *rest]
        families = {family for match in remaining for family in _families(match)}
        if families:
            self._delete_where(
                lambda orig, reply: any(_fits(m, orig, reply) for m in remaining), families
            )

    def forget_subnet(self, subnet: str) -> int:
        """Delete the entries answered from an address in `subnet`; returns how many."""
        network = ipaddress.ip_network(subnet)
        low, high = network.network_address.packed, network.broadcast_address.packed
        return self._delete_where(
            lambda _orig, reply: low <= reply[0] <= high, {_FAMILIES[network.version == 6]}
        )

    def _dump(self, families: Iterable[int]) -> Iterator[bytes]:
        for family in sorted(families):
            yield from self._netlink.dump(Message(_GET, 0, _nfgen(family)))

    def _delete_where(
        self, wanted: Callable[[_Tuple, _Tuple], bool], families: Iterable[int]
    ) -> int:
        deletes: list[Message] = []
        for payload in self._dump(families):
            found = attributes(payload[4:])
            if wanted(_tuple(found.get(_TUPLE_ORIG)), _tuple(found.get(_TUPLE_REPLY))):
                body = _nfgen(payload[0]) + nested(_TUPLE_ORIG, found[_TUPLE_ORIG])
                body += b"".join(attr(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
                deletes.append(Message(_DELETE, 0, body))
        for start in range(0, len(deletes), _DELETES_PER_CALL):
            try:
                self._netlink.transact(deletes[start : start + _DELETES_PER_CALL])
            except NetlinkError as error:
                if error.errno != errno.ENOENT:  # it expired meanwhile
                    raise
        return len(deletes)


_Tuple = tuple[bytes, int, int]
"""Source address, protocol number, source port of one direction."""


def _families(match: Match) -> tuple[int, ...]:
    """Those that may have such entries."""
    if not match.address:
        return _FAMILIES
    return _FAMILIES[1:] if ":" in match.address else _FAMILIES[:1]


def _delete_by_filter(match: Match, family: int) -> Message:
    flags = 0
    parts: list[bytes] = []
    proto: list[bytes] = []
    if match.address:
        flags |= _MATCH_SOURCE
        packed = _packed(match.address)
        parts.append(nested(_TUPLE_IP, attr(_IP_SOURCE[len(packed)], packed)))
    if match.protocol:
        flags |= _MATCH_PROTOCOL
        proto.append(attr(_PROTO_NUMBER, bytes([match.protocol])))
    if match.protocol and match.port:
        flags |= _MATCH_SOURCE_PORT
        proto.append(attr(_PROTO_SOURCE_PORT, struct.pack("!H", match.port)))
    if proto:
        parts.append(nested(_TUPLE_PROTO, *proto))
    direction = _TUPLE_ORIG if match.original else _TUPLE_REPLY
    which = _FILTER_ORIG if match.original else _FILTER_REPLY
    other = _FILTER_REPLY if match.original else _FILTER_ORIG
    selector = nested(_FILTER, u32(which, flags), u32(other, 0))
    return Message(_DELETE, 0, _nfgen(family) + nested(direction, *parts) + selector)


def _fits(match: Match, orig: _Tuple, reply: _Tuple) -> bool:
    address, protocol, port = orig if match.original else reply
    return (
        (not match.address or address == _packed(match.address))
        and match.protocol in (0, protocol)
        and match.port in (0, port)
    )


def _tuple(payload: bytes | None) -> _Tuple:
    outer = attributes(payload or b"")
    addresses = attributes(outer.get(_TUPLE_IP, b""))
    source = next((addresses[kind] for kind in _IP_SOURCE.values() if kind in addresses), b"")
    proto = attributes(outer.get(_TUPLE_PROTO, b""))
    number = proto.get(_PROTO_NUMBER, b"\0")[0]
    port = int.from_bytes(proto.get(_PROTO_SOURCE_PORT, b"\0\0"), "big")
    return source, number, port


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def _nfgen(family: int) -> bytes:
    # Version 1 makes the kernel honour the family on deletes; without it a filter is refused.
    return struct.pack("!BBH", family, 1, 0)
