"""Netlink framing: attributes, requests answered by acks, dumps. The three families build on it.

Invariant: the kernel handles a request inside `sendmsg`, so when `transact` returns, every message
of the call has been acknowledged or refused, and nothing of it is left in the receive queue.
Refuses: asynchronous use and multicast groups. A socket belongs to the network namespace in which
its thread was when it was made, for good.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_DUMP_INTR = 0x10
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 16 << 20
_RECEIVE_BYTES = 1 << 16  # the kernel cuts dumps into 32 KiB
_DUMP_TRIES = 5
_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")


class NetlinkError(OSError):
    """The kernel refused a message; `index` is its place in the call, `strerror` says why."""

    def __init__(self, code: int, detail: str, index: int) -> None:
        text = os.strerror(code)
        super().__init__(code, f"{text}: {detail}" if detail else text)
        self.index = index


class Message(NamedTuple):
    """One request: message type, flags beyond REQUEST, family header and attributes."""

    kind: int
    flags: int
    body: bytes


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(payload)
    return _ATTR.pack(length, kind) + payload + bytes(-length % 4)


def nested(kind: int, *attrs: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attr(kind | _NLA_F_NESTED, b"".join(attrs))


def u32(kind: int, value: int) -> bytes:
    """A 32-bit attribute in host order."""
    return attr(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attr(kind, value.encode() + b"\0")


def iterate(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in `payload`, in order; the type without its flag bits."""
    offset = 0
    while offset + 4 <= len(payload):
        length, kind = _ATTR.unpack_from(payload, offset)
        if length < 4:
            return
        yield kind & _NLA_TYPE_MASK, payload[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attributes(payload: bytes) -> dict[int, bytes]:
    """The attributes in `payload` by type; the last one wins."""
    return dict(iterate(payload))


class NetlinkSocket:
    """A blocking netlink socket of one family in the calling thread's network namespace."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._sequence = 1
        self._socket.bind((0, 0))
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def transact(self, messages: Sequence[Message]) -> None:
        """Send `messages` in one system call and wait for an acknowledgement of each.

        Messages after a refused one are still executed (rtnetlink knows no transactions).
        Raises: NetlinkError of the first refused message.
        """
        if not messages:
            return
        acked = [message._replace(flags=message.flags | NLM_F_ACK) for message in messages]
        self._raise_first(self._exchange(acked), len(messages))

    def transact_batch(self, messages: Sequence[Message], *, acked: int) -> None:
        """Send an nfnetlink batch; `messages[acked]` carries the ack flag of the whole.

        Raises: NetlinkError of the first refused message; nothing of the batch was applied then.
        """
        answers = self._exchange(messages)
        self._raise_first(answers, 0)
        if acked not in answers:
            raise NetlinkError(errno.ENODATA, "the kernel did not acknowledge the batch", acked)

    def dump(self, message: Message) -> list[bytes]:
        """All payloads the kernel answers to a dump request; asked again if it was interrupted.

        Raises: NetlinkError when refused; EINTR when the table never held still.
        """
        for _ in range(_DUMP_TRIES):
            payloads, interrupted = self._dump_once(message)
            if not interrupted:
                return payloads
        raise NetlinkError(errno.EINTR, "the table kept changing during a dump", 0)

    def get(self, message: Message) -> bytes:
        """The single payload answered to a get request. Raises: NetlinkError (ENODEV, ENOENT)."""
        answer: bytes | None = None
        failures: dict[int, tuple[int, str]] = {}
        base = self._send([message])
        for kind, _flags, sequence, payload in self._receive():
            if kind == _NLMSG_ERROR:
                code, detail = _error(_flags, payload)
                failures[sequence - base] = (code, detail)
            else:
                answer = payload
        self._raise_first(failures, 0)
        if answer is None:
            raise NetlinkError(errno.ENODATA, "no answer to a get request", 0)
        return answer

    def _exchange(self, messages: Sequence[Message]) -> dict[int, tuple[int, str]]:
        """Send and collect acks: (errno, detail) by index; errno 0 is success."""
        base = self._send(messages)
        answers: dict[int, tuple[int, str]] = {}
        for kind, flags, sequence, payload in self._receive():
            index = sequence - base
            if kind == _NLMSG_ERROR and 0 <= index < len(messages):
                answer = _error(flags, payload)
                if answer[0] or index not in answers:
                    answers[index] = answer
        return answers

    def _send(self, messages: Sequence[Message]) -> int:
        base = self._sequence
        parts: list[bytes] = []
        for offset, (kind, flags, body) in enumerate(messages):
            size = 16 + len(body)
            parts.append(_HEADER.pack(size, kind, flags | NLM_F_REQUEST, base + offset, 0))
            parts.append(body)
            parts.append(bytes(-size % 4))
        self._sequence = (base + len(messages)) & 0x3FFFFFFF or 1
        self._socket.sendall(b"".join(parts))
        return base

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Everything in the receive queue as (type, flags, sequence, payload)."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
                yield from _split(packet)

    def _dump_once(self, message: Message) -> tuple[list[bytes], bool]:
        base = self._send([message._replace(flags=message.flags | NLM_F_DUMP)])
        payloads: list[bytes] = []
        interrupted = False
        while True:
            packet = self._socket.recv(_RECEIVE_BYTES)
            for kind, flags, sequence, payload in _split(packet):
                if sequence != base:
                    continue
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if kind == _NLMSG_ERROR:
                    self._raise_first({0: _error(flags, payload)}, 0)
                elif kind == _NLMSG_DONE:
                    return payloads, interrupted
                else:
                    payloads.append(payload)

    @staticmethod
    def _raise_first(answers: dict[int, tuple[int, str]], expected: int) -> None:
        for index in sorted(answers):
            code, detail = answers[index]
            if code:
                raise NetlinkError(code, detail, index)
        if len(answers) < expected:
            raise NetlinkError(errno.ENODATA, "the kernel did not acknowledge a message", 0)


def _split(packet: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + 16 <= len(packet):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(packet, offset)
        if length < 16:
            return
        yield kind, flags, sequence, packet[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _error(flags: int, payload: bytes) -> tuple[int, str]:
    (code,) = struct.unpack_from("=i", payload)
    detail = ""
    if flags & _NLM_F_ACK_TLVS:
        (request_bytes,) = struct.unpack_from("=I", payload, 4)
        start = 20 if flags & _NLM_F_CAPPED else 4 + ((request_bytes + 3) & ~3)
        raw = attributes(payload[start:]).get(_NLMSGERR_ATTR_MSG, b"")
        detail = raw.rstrip(b"\0").decode(errors="replace")
    return -code, detail
