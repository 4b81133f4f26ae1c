"""Elements of the mesh's nft sets and maps over raw netlink: a transaction per call, with ack.

Invariant: `apply` is atomic: all its changes or none. Deletes run before adds, so that an element
may be replaced (writing an existing key is refused by the kernel). Refuses: rules and chains; those
are text in skeleton.py, loaded once.
Key layout: the node's address where the map has one, then each field of the concatenation padded to
four bytes, the protocol in byte 0, ports big endian, slot numbers in host order.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from worker.network.api import Endpoint
from worker.network.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_CREATE,
    Message,
    NetlinkError,
    NetlinkSocket,
    attr,
    attributes,
    iterate,
    nested,
    text,
)

TABLE: Final = "shoal"
NAME_MAX: Final = 15

_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 16, 17
_GETTABLE, _DELTABLE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_NEWSETELEM, _GETSETELEM, _DELSETELEM = _SUBSYSTEM | 12, _SUBSYSTEM | 13, _SUBSYSTEM | 14
NFPROTO_INET: Final = 1
NFPROTO_IPV4: Final = 2
NFPROTO_IPV6: Final = 10
_TABLE_NAME, _TABLE_USERDATA = 1, 6
_USERDATA_COMMENT = 0
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEM_KEY, _ELEM_DATA, _ELEM_TIMEOUT, _ELEM_EXPIRATION = 1, 2, 4, 5
_DATA_VALUE = 1
_NESTED = 0x8000
# One list must stay below 64 KiB (16-bit attribute length); an element takes at most ~70 bytes.
_ELEMENTS_PER_MESSAGE = 500


class Element(msgspec.Struct, frozen=True, gc=False):
    """An element of a set (no value) or a map, as bytes; `timeout_ms` 0 lives for ever."""

    set_name: str
    key: bytes
    value: bytes = b""
    timeout_ms: int = 0


class NftSocket:
    """The elements of our table of one family in the calling thread's network namespace."""

    def __init__(self, family: int = NFPROTO_INET) -> None:
        """family: of the table `shoal`; a namespace may have one of each."""
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        self._family = family

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def apply(self, deletes: Sequence[Element], adds: Sequence[Element]) -> None:
        """Delete, then add, in one transaction.

        Raises: NetlinkError; ENOENT when a deleted element or the table is missing, EEXIST when an
        added key has another value. Nothing is changed then.
        """
        self.send(transaction(self._family, deletes, adds))

    def send(self, messages: Sequence[Message]) -> None:
        """What `transaction` has made for this family. Raises: as `apply`."""
        if messages:
            self._batch(messages)

    def elements(self, set_name: str) -> dict[bytes, bytes]:
        """Everything in a set or map: value (or b"") by key. Raises: NetlinkError (ENOENT)."""
        return {key: value for key, value, _rest in self._dump(set_name)}

    def expirations_ms(self, set_name: str) -> dict[bytes, int]:
        """The remaining life of each element of a set with timeouts."""
        return {key: rest_ms for key, _value, rest_ms in self._dump(set_name)}

    def version(self) -> str | None:
        """The comment of the table, which is the version of the skeleton; None without a table."""
        request = Message(_GETTABLE, 0, self._nfgen() + text(_TABLE_NAME, TABLE))
        try:
            payload = self._netlink.get(request)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        userdata = attributes(payload[4:]).get(_TABLE_USERDATA, b"")
        return _comment(userdata)

    def delete_table(self) -> None:
        """Remove the table with everything in it, if it is there."""
        if self.version() is not None:
            self._batch([Message(_DELTABLE, 0, self._nfgen() + text(_TABLE_NAME, TABLE))])

    def _dump(self, set_name: str) -> Iterator[tuple[bytes, bytes, int]]:
        body = self._nfgen() + text(_LIST_TABLE, TABLE) + text(_LIST_SET, set_name)
        for payload in self._netlink.dump(Message(_GETSETELEM, 0, body)):
            elements = attributes(payload[4:]).get(_LIST_ELEMENTS, b"")
            for _kind, element in iterate(elements):
                found = attributes(element)
                expiration = found.get(_ELEM_EXPIRATION)
                rest_ms = int.from_bytes(expiration, "big") if expiration else 0
                yield _value(found.get(_ELEM_KEY)), _value(found.get(_ELEM_DATA)), rest_ms

    def _nfgen(self) -> bytes:
        return _nfgen(self._family)

    def _batch(self, messages: Sequence[Message]) -> None:
        # Only the last message asks for an ack; an error comes back for whichever it concerns,
        # or for the batch's begin when the commit itself fails.
        begin = Message(_BATCH_BEGIN, 0, struct.pack("!BBH", 0, 0, 10))
        end = begin._replace(kind=_BATCH_END)
        last = messages[-1]._replace(flags=messages[-1].flags | NLM_F_ACK)
        self._netlink.transact_batch([begin, *messages[:-1], last, end], acked=len(messages))


def transaction(
    family: int, deletes: Sequence[Element], adds: Sequence[Element]
) -> tuple[Message, ...]:
    """The messages that delete, then add: made once, they may be sent to many namespaces."""
    return (
        *(_elements_message(family, _DELSETELEM, 0, *group) for group in _groups(deletes)),
        *(_elements_message(family, _NEWSETELEM, NLM_F_CREATE, *group) for group in _groups(adds)),
    )


def slot_key(protocol: int, port: int, slot: int) -> bytes:
    """Key of a slot map: protocol, published port, slot number."""
    return struct.pack("=B3x", protocol) + struct.pack("!H2x", port) + struct.pack("=I", slot)


def parse_slot_key(key: bytes) -> tuple[int, int, int]:
    """(protocol, published port, slot number) of a key."""
    (slot,) = struct.unpack_from("=I", key, 8)
    return key[0], int.from_bytes(key[4:6], "big"), slot


def endpoint_value(endpoint: Endpoint) -> bytes:
    """Value of a slot map: address of the map's family, target port."""
    return _packed(endpoint.address) + struct.pack("!H2x", endpoint.port)


def parse_endpoint(value: bytes) -> Endpoint:
    """The endpoint of a slot map's value."""
    size = len(value) - 4
    family = socket.AF_INET if size == 4 else socket.AF_INET6
    return Endpoint(
        socket.inet_ntop(family, value[:size]), int.from_bytes(value[size : size + 2], "big")
    )


def port_key(protocol: int, port: int) -> bytes:
    """Key of `pub` and `reserved`: protocol, published port."""
    return struct.pack("=B3x", protocol) + struct.pack("!H2x", port)


def parse_port_key(key: bytes) -> tuple[int, int]:
    """(protocol, port) of a key."""
    return key[0], int.from_bytes(key[4:6], "big")


def placed_key(address: str, key: bytes) -> bytes:
    """`key` as it is in sets and maps of ports at one address; unchanged without an address."""
    return _packed(address) + key if address else key


def parse_placed_key(key: bytes, plain: int) -> tuple[str, bytes]:
    """(address, or "" without one, and the key behind it, of `plain` bytes)."""
    front, rest = key[:-plain], key[-plain:]
    if not front:
        return "", rest
    return socket.inet_ntop(socket.AF_INET if len(front) == 4 else socket.AF_INET6, front), rest


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _nfgen(family: int) -> bytes:
    return struct.pack("!BBH", family, 0, 0)


def _elements_message(
    family: int, kind: int, flags: int, set_name: str, elements: Sequence[Element]
) -> Message:
    deleting = kind == _DELSETELEM
    members = [_element(index, e, deleting) for index, e in enumerate(elements, start=1)]
    body = _nfgen(family) + text(_LIST_TABLE, TABLE) + text(_LIST_SET, set_name)
    return Message(kind, flags, body + nested(_LIST_ELEMENTS, *members))


def _groups(elements: Sequence[Element]) -> Iterator[tuple[str, list[Element]]]:
    by_set: dict[str, list[Element]] = {}
    for element in elements:
        by_set.setdefault(element.set_name, []).append(element)
    for set_name, members in by_set.items():
        for start in range(0, len(members), _ELEMENTS_PER_MESSAGE):
            yield set_name, members[start : start + _ELEMENTS_PER_MESSAGE]


def _element(index: int, element: Element, deleting: bool) -> bytes:
    parts = [nested(_ELEM_KEY, attr(_DATA_VALUE, element.key))]
    if element.value and not deleting:
        parts.append(nested(_ELEM_DATA, attr(_DATA_VALUE, element.value)))
    if element.timeout_ms and not deleting:
        parts.append(attr(_ELEM_TIMEOUT, element.timeout_ms.to_bytes(8, "big")))
    return nested(index, *parts)


def _value(payload: bytes | None) -> bytes:
    return attributes(payload).get(_DATA_VALUE, b"") if payload else b""


def _comment(userdata: bytes) -> str:
    offset = 0
    while offset + 2 <= len(userdata):
        kind, length = userdata[offset], userdata[offset + 1]
        if kind == _USERDATA_COMMENT:
            return userdata[offset + 2 : offset + 2 + length].rstrip(b"\0").decode()
        offset += 2 + length
    return ""


def elements_of(set_name: str, values: Mapping[bytes, bytes]) -> list[Element]:
    """`values` as elements of `set_name`."""
    return [Element(set_name, key, value) for key, value in values.items()]
