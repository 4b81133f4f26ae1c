"""On which ports the programs of a network namespace take traffic, asked of the kernel.

Source: sock_diag(7). Four dumps that look at the listening sockets alone take some 50 us; reading
/proc/net/tcp takes a millisecond, since it walks the connections of the whole machine.
A socket that is bound to a loopback address does not count: no packet from outside gets there.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from ipaddress import ip_address
from typing import Final

from worker.network.netlink import Message, NetlinkSocket

Listener = tuple[str, int]
"""Protocol (`tcp` or `udp`) and port."""

PAUSE_MIN_S: Final = 0.001
PAUSE_MAX_S: Final = 0.1

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_TCP_LISTEN, _TCP_CLOSE = 10, 7  # a UDP socket without a peer is "closed"
_REQUEST = struct.Struct("=BBBBI48x")
_PORT = struct.Struct(">H")
_PORT_AT, _SOURCE_AT = 4, 8
_KINDS: Final = (
    ("tcp", socket.AF_INET, socket.IPPROTO_TCP, _TCP_LISTEN),
    ("tcp", socket.AF_INET6, socket.IPPROTO_TCP, _TCP_LISTEN),
    ("udp", socket.AF_INET, socket.IPPROTO_UDP, _TCP_CLOSE),
    ("udp", socket.AF_INET6, socket.IPPROTO_UDP, _TCP_CLOSE),
)


class NamespaceSockets(NetlinkSocket):
    """The listening sockets of the namespace in which the calling thread is at the start."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_SOCK_DIAG)

    def listeners(self) -> frozenset[Listener]:
        """Where traffic from outside is taken now. Raises: NetlinkError."""
        return frozenset(
            (name, _PORT.unpack_from(answer, _PORT_AT)[0])
            for name, family, protocol, state in _KINDS
            for answer in self.dump(_request(family, protocol, state))
            if not _is_loopback(family, answer)
        )


async def await_listeners(
    sockets: NamespaceSockets, wanted: frozenset[Listener], timeout_s: float
) -> frozenset[Listener]:
    """Wait until traffic is taken on all of `wanted`. Result: on which of them it is not by then.

    Raises: NetlinkError.
    """
    loop = asyncio.get_running_loop()
    end_s, pause_s = loop.time() + timeout_s, PAUSE_MIN_S
    while True:
        missing = wanted - sockets.listeners()  # too short for a thread
        left_s = end_s - loop.time()
        if not missing or left_s <= 0:
            return missing
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, PAUSE_MAX_S)


def _request(family: int, protocol: int, state: int) -> Message:
    return Message(_SOCK_DIAG_BY_FAMILY, 0, _REQUEST.pack(family, protocol, 0, 0, 1 << state))


def _is_loopback(family: int, answer: bytes) -> bool:
    size = 4 if family == socket.AF_INET else 16
    return ip_address(answer[_SOURCE_AT : _SOURCE_AT + size]).is_loopback
