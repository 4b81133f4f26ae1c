"""What the worker and the relay say to each other: packets of msgpack, with descriptors.

A unix socket of packets (SOCK_SEQPACKET), one message each. Whoever connects is told first what the
relay listens to, each ear with its socket, and an `Answer` without an ear after them; then each
order gets one answer. So a worker that was restarted has the sockets of the one before, and no port
is let go of in between.
"""

from __future__ import annotations

import array
import socket
from typing import Final, Literal, TypeVar

import msgspec

FORMAT: Final = 1
MESSAGE_BYTES_MAX: Final = 4096
Kind = TypeVar("Kind")


class Ear(msgspec.Struct, frozen=True, kw_only=True):
    """Where it listens, by a name of the worker's choice, and who gets what it hears."""

    key: str
    protocol: Literal["tcp", "udp"]
    address: str
    port: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A change. put: comes with its socket. leave: nobody needs the relay any more."""

    put: Ear | None = None
    gone: str = ""
    leave: bool = False


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Done; or, at the beginning, one ear. problem: why it was not done."""

    ear: Ear | None = None
    problem: str = ""
    format: int = FORMAT


def send(connection: socket.socket, message: msgspec.Struct, fd: int = -1) -> None:
    """Raises: OSError."""
    rights = [] if fd < 0 else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    connection.sendmsg([msgspec.msgpack.encode(message)], rights)


def receive(connection: socket.socket, kind: type[Kind]) -> tuple[Kind, socket.socket | None]:
    """A message, and the socket that came with it.

    Raises: EOFError at the end, OSError, ValueError for what is no message.
    """
    data, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES_MAX, 4)
    found = [socket.socket(fileno=fd) for fd in fds]
    for one in found:
        one.setblocking(False)  # for whoever else has it, too: they share this
    try:
        if not data:
            raise EOFError("the other side is gone")
        message = msgspec.msgpack.decode(data, type=kind)
    except BaseException:
        for one in found:
            one.close()
        raise
    for one in found[1:]:
        one.close()
    return message, found[0] if found else None
