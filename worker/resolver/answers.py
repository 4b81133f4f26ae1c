"""A query in, an answer out, or the word that others must be asked. Pure but for the shuffle.

Plain questions for addresses are read by `codec`, all others by dnspython. Of a known name without
an address of the asked family the answer is empty, never NXDOMAIN: some resolvers give up the whole
name then. A single label nobody knows is NXDOMAIN here and is not told to servers outside.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from typing import Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from worker.resolver import codec
from worker.resolver.index import Index

TTL_S: Final = 1
UDP_BYTES_MIN: Final = 512
UDP_BYTES_MAX: Final = 4096
TCP_BYTES_MAX: Final = 65535


def answer(index: Index, container: str, wire: bytes, *, udp: bool) -> bytes | None:
    """The answer; b"" to what deserves none; None: it is for the servers outside to say."""
    plain = codec.read(wire)
    if plain is not None:
        return _plain_answer(index, container, wire, plain, udp=udp)
    return any_answer(index, container, wire, udp=udp)


def any_answer(index: Index, container: str, wire: bytes, *, udp: bool) -> bytes | None:
    """The same for whatever question, a hundred times slower."""
    try:
        query = dns.message.from_wire(wire, ignore_trailing=True)
    except dns.exception.DNSException:
        return _format_error(wire)
    if query.flags & dns.flags.QR:
        return b""
    if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
        return _finish(query, dns.rcode.NOTIMP, (), udp=udp)
    question = query.question[0]
    if question.rdclass != dns.rdataclass.IN:
        return None
    name = question.name.to_text(omit_final_dot=True)
    if question.rdtype == dns.rdatatype.PTR:
        return _reverse(index, container, query, udp=udp)
    found = index.find(container, name)
    if found is not None:
        records = _records(question.name, question.rdtype, found.ipv4, found.ipv6)
        return _finish(query, dns.rcode.NOERROR, records, udp=udp)
    if len(question.name.labels) == 2:  # one label and the root
        return _finish(query, dns.rcode.NXDOMAIN, (), udp=udp)
    return None


def failure(wire: bytes) -> bytes:
    """What to say when nobody outside answers."""
    try:
        query = dns.message.from_wire(wire, ignore_trailing=True)
    except dns.exception.DNSException:
        return _format_error(wire)
    return _finish(query, dns.rcode.SERVFAIL, (), udp=True)


def _plain_answer(
    index: Index, container: str, wire: bytes, asked: codec.Question, *, udp: bool
) -> bytes | None:
    room = _room(asked.payload) if udp else TCP_BYTES_MAX
    found = index.find(container, asked.name)
    if found is None:
        if "." in asked.name:
            return None
        return codec.reply(wire, asked, codec.NXDOMAIN, (), ttl_s=TTL_S, room=room)
    if asked.kind == codec.A:
        packed = [socket.inet_pton(socket.AF_INET, address) for address in found.ipv4]
    else:
        packed = [socket.inet_pton(socket.AF_INET6, address) for address in found.ipv6]
    if len(packed) > 1:
        random.shuffle(packed)  # as Docker: the load is spread
    return codec.reply(wire, asked, codec.NOERROR, packed, ttl_s=TTL_S, room=room)


def _room(payload: int) -> int:
    """Bytes of an answer over UDP, to an asker who takes so many."""
    return min(max(payload, UDP_BYTES_MIN), UDP_BYTES_MAX)


def _records(
    name: dns.name.Name, kind: dns.rdatatype.RdataType, ipv4: Sequence[str], ipv6: Sequence[str]
) -> tuple[dns.rrset.RRset, ...]:
    addresses = {dns.rdatatype.A: ipv4, dns.rdatatype.AAAA: ipv6}.get(kind, ())
    if not addresses:
        return ()
    turned = random.sample(list(addresses), len(addresses))  # as Docker: the load is spread
    return (dns.rrset.from_text_list(name, TTL_S, "IN", kind, turned),)


def _reverse(
    index: Index, container: str, query: dns.message.Message, *, udp: bool
) -> bytes | None:
    name = query.question[0].name
    try:
        address = dns.reversename.to_address(name)
    except (dns.exception.DNSException, ValueError):
        return None
    called = index.called(container, address)
    if not called:
        return None
    record = dns.rrset.from_text(name, TTL_S, "IN", "PTR", f"{called}.")
    return _finish(query, dns.rcode.NOERROR, (record,), udp=udp)


def _finish(
    query: dns.message.Message,
    code: dns.rcode.Rcode,
    records: Sequence[dns.rrset.RRset],
    *,
    udp: bool,
) -> bytes:
    reply = dns.message.make_response(query, recursion_available=True)
    reply.set_rcode(code)
    reply.answer.extend(records)
    if not udp:
        return bytes(reply.to_wire(max_size=TCP_BYTES_MAX))
    room = _room(query.payload)
    try:
        return bytes(reply.to_wire(max_size=room))
    except dns.exception.TooBig:
        reply.answer.clear()
        reply.flags |= dns.flags.TC
        return bytes(reply.to_wire(max_size=room))


def _format_error(wire: bytes) -> bytes:
    """Of a query that cannot be read nothing but its number is known."""
    if len(wire) < 12 or wire[2] & 0x80:
        return b""
    flags = dns.flags.QR | dns.flags.RA | dns.rcode.FORMERR
    return wire[:2] + int(flags).to_bytes(2, "big") + bytes(8)
