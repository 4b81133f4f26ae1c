"""The wire format of the commonest question: the addresses of one name. Pure.

Nearly all that tasks ask is A or AAAA of one plain name, with EDNS or without. That is read and
answered here in microseconds; whatever else comes (`read` gives None) is a matter of dnspython,
which takes a hundred times as long. Both give the same answer to the same question.

A plain name has labels of letters, digits, hyphens and underscores, so that its text needs no
escapes. Source: RFC 1035 4.1, RFC 6891 6.1.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

A: Final = 1
AAAA: Final = 28
NOERROR: Final = 0
NXDOMAIN: Final = 3

_HEADER: Final = struct.Struct("!HHHHHH")
_TAIL: Final = struct.Struct("!HH")
_OPT: Final = struct.Struct("!BHHBBHH")
_IN, _OPT_TYPE = 1, 41
_RECURSION_DESIRED: Final = 0x0100
_NO_PLAIN_QUERY: Final = 0xFE00
"""An answer, another operation, authoritative or cut off."""
_REPLY: Final = 0x8080
_CUT_OFF: Final = 0x0200
_POINTER: Final = b"\xc0\x0c"
"""To the name of the question, which is where the header ends."""
_NAME_MAX: Final = 253
_OWN_PAYLOAD: Final = 8192
_PLAIN: Final = re.compile(rb"[A-Za-z0-9_-]+").fullmatch


class Question(NamedTuple):
    """What is asked. name: lower case, without the last dot. end: of the question section.

    payload: bytes that the asker takes in a datagram, as EDNS says; -1: it does not speak EDNS.
    """

    name: str
    kind: int
    end: int
    payload: int


def read(wire: bytes) -> Question | None:
    """A plain question for addresses; None: it is another one, or none at all."""
    if len(wire) < _HEADER.size:
        return None
    _, flags, questions, answers, authorities, additional = _HEADER.unpack_from(wire)
    if flags & _NO_PLAIN_QUERY or (questions, answers, authorities) != (1, 0, 0) or additional > 1:
        return None
    labels, place = _labels(wire)
    if not labels or len(wire) < place + _TAIL.size:
        return None
    kind, network = _TAIL.unpack_from(wire, place)
    name = b".".join(labels).decode().lower()
    if network != _IN or kind not in (A, AAAA) or len(name) > _NAME_MAX:
        return None
    end = place + _TAIL.size
    payload = _payload(wire, end) if additional else -1
    if payload is None or (not additional and len(wire) != end):
        return None
    return Question(name, kind, end, payload)


def reply(
    wire: bytes, question: Question, code: int, addresses: Sequence[bytes], *, ttl_s: int, room: int
) -> bytes:
    """The answer. addresses: packed, of the asked family. room: bytes; without enough, cut off."""
    size = len(addresses[0]) if addresses else 0
    opt = b"" if question.payload < 0 else _OPT.pack(0, _OPT_TYPE, _OWN_PAYLOAD, 0, 0, 0, 0)
    flags = _REPLY | (wire[2] << 8 & _RECURSION_DESIRED) | code
    if question.end + len(addresses) * (12 + size) + len(opt) > room:
        addresses, flags = (), flags | _CUT_OFF
    head = _POINTER + struct.pack("!HHIH", question.kind, _IN, ttl_s, size)
    number = wire[0] << 8 | wire[1]
    header = _HEADER.pack(number, flags, 1, len(addresses), 0, 1 if opt else 0)
    records = b"".join([head + address for address in addresses])
    return header + wire[_HEADER.size : question.end] + records + opt


def _labels(wire: bytes) -> tuple[list[bytes], int]:
    """The labels of the question's name and where it ends; none, where they are not plain."""
    labels: list[bytes] = []
    place = _HEADER.size
    while place < len(wire) and (length := wire[place]):
        label = wire[place + 1 : place + 1 + length]
        if not _PLAIN(label) or len(label) != length or length > 63:
            return [], place
        labels.append(label)
        place += 1 + length
    return labels, place + 1


def _payload(wire: bytes, place: int) -> int | None:
    """What the one additional record says, if it is EDNS of version 0 and ends the message."""
    if len(wire) < place + _OPT.size:
        return None
    root, kind, payload, _, version, _, length = _OPT.unpack_from(wire, place)
    if root or kind != _OPT_TYPE or version or len(wire) != place + _OPT.size + length:
        return None
    return int(payload)
