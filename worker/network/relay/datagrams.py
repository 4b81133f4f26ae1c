"""Datagrams of one published port: who sends gets a socket of his own towards the container.

What the container answers there goes back to him, from the address he wrote to. Invariant: at most
so many senders at once; one who has been silent both ways for long enough is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import OrderedDict
from typing import Final, NamedTuple

_SENDERS_MAX: Final = 1024
_SILENT_S: Final = 90.0
_SWEEP_S: Final = 5.0
_AT_ONCE: Final = 64
_BYTES_MAX: Final = 65536
_PKTINFO = struct.Struct("=16sI")
Place = tuple[str, int, int, int]
"""An IPv6 address as sockets tell it."""


class _Sender(NamedTuple):
    """Where he is, and the address (with its device) he wrote to."""

    place: Place
    written_to: bytes


class _Way:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.used_s = time.monotonic()


class Datagrams:
    """In the loop of the process."""

    def __init__(self, ear: socket.socket, target: tuple[str, int]) -> None:
        self._ear = ear
        self._target = target
        self._ways: OrderedDict[_Sender, _Way] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None

    def hear(self) -> None:
        """Something has come to the port."""
        for _ in range(_AT_ONCE):
            try:
                data, ancillary, _, place = self._ear.recvmsg(_BYTES_MAX, socket.CMSG_SPACE(20))
            except OSError:
                return
            way = self._way(_Sender(place, _written_to(ancillary)))
            if way is not None:
                with contextlib.suppress(OSError):  # nobody listens there, or its buffer is full
                    way.sock.send(data)

    def close(self) -> None:
        """Forget everybody."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        while self._ways:
            self._forget(next(iter(self._ways)))

    def _way(self, sender: _Sender) -> _Way | None:
        way = self._ways.get(sender)
        if way is None:
            if len(self._ways) >= _SENDERS_MAX:
                return None  # lost, as datagrams may be
            way = self._open(sender)
        if way is not None:
            way.used_s = time.monotonic()
            self._ways.move_to_end(sender)
        return way

    def _open(self, sender: _Sender) -> _Way | None:
        family = socket.AF_INET6 if ":" in self._target[0] else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            return None
        try:
            sock.connect(self._target)
        except OSError:
            sock.close()
            return None
        way = self._ways[sender] = _Way(sock)
        loop = asyncio.get_running_loop()
        loop.add_reader(sock, self._answer, sender, way)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
        return way

    def _answer(self, sender: _Sender, way: _Way) -> None:
        level, kind = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO
        rights = [(level, kind, sender.written_to)] if sender.written_to else []
        for _ in range(_AT_ONCE):
            try:
                data = way.sock.recv(_BYTES_MAX)
            except OSError:
                return
            way.used_s = time.monotonic()
            self._ways.move_to_end(sender)
            with contextlib.suppress(OSError):
                self._ear.sendmsg([data], rights, 0, sender.place)

    def _sweep(self) -> None:
        self._sweeper = None
        limit_s = time.monotonic() - _SILENT_S
        while self._ways:
            sender, way = next(iter(self._ways.items()))
            if way.used_s > limit_s:
                break
            self._forget(sender)
        if self._ways:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)

    def _forget(self, sender: _Sender) -> None:
        way = self._ways.pop(sender)
        asyncio.get_running_loop().remove_reader(way.sock)
        way.sock.close()


def _written_to(ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """What an answer has to be sent from: the address, and the device of a local one alone."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            address, device = _PKTINFO.unpack(data[: _PKTINFO.size])
            is_local = address[:1] == b"\xfe" and address[1] & 0xC0 == 0x80
            return _PKTINFO.pack(address, device if is_local else 0)
    return b""
