"""Echo requests of either version of IP, of any size, never cut into pieces on the way.

A packet that is larger than what the path takes is lost, which is what is to be found out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import os
import socket
import struct
from typing import Final

import msgspec

_ANSWER_S: Final = 1.0
_MTU_DISCOVER_PROBE: Final = 3  # never cut, and mind no known MTU of the path
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23

_numbers = itertools.count(1)


class _Version(msgspec.Struct, frozen=True):
    """headers_bytes: of IP and ICMP. shows_header: answers come with that of IP."""

    family: int
    protocol: int
    request: int
    reply: int
    headers_bytes: int
    discover: tuple[int, int]
    shows_header: bool


_VERSIONS: Final = {
    4: _Version(
        socket.AF_INET, socket.IPPROTO_ICMP, 8, 0, 28,
        (socket.IPPROTO_IP, _IP_MTU_DISCOVER), True,
    ),
    6: _Version(
        socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, 129, 48,
        (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER), False,
    ),
}  # fmt: skip


async def echo(address: str, *, size: int = 64) -> bool:
    """Whether a host answers an echo request of `size` bytes, headers included, sent whole."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await _echo(_VERSIONS[ipaddress.ip_address(address).version], address, size)
    except (OSError, TimeoutError):
        return False


async def _echo(version: _Version, address: str, size: int) -> bool:
    loop = asyncio.get_running_loop()
    mark = struct.pack("!HH", os.getpid() & 0xFFFF, next(_numbers) & 0xFFFF)
    with socket.socket(version.family, socket.SOCK_RAW, version.protocol) as sock:
        sock.setblocking(False)
        sock.setsockopt(*version.discover, _MTU_DISCOVER_PROBE)
        sock.connect((address, 0))
        body = mark + bytes(size - version.headers_bytes)
        await loop.sock_sendall(sock, _request(version.request, body))
        while True:
            packet = await loop.sock_recv(sock, 65_536)
            message = packet[4 * (packet[0] & 0x0F) :] if version.shows_header else packet
            if message[:1] == bytes([version.reply]) and message[4:8] == mark:
                return True


def _request(kind: int, body: bytes) -> bytes:
    """With the checksum of ICMP; that of ICMPv6 the kernel writes itself."""
    head = struct.pack("!BBH", kind, 0, 0)
    return struct.pack("!BBH", kind, 0, _checksum(head + body)) + body


def _checksum(data: bytes) -> int:
    """The Internet's: of RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
