"""Where lines go besides files: a syslog server, or the journal. Driven by the logger.

A sink owes its server at most what one turn has put into it; while it does, its container waits,
for `PATIENCE_S` at most. Then, and when there is no connection, lines are dropped and that is said
once a minute; the file beside it, if there is one, has them. Standard library only.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

from worker.logs import files

PATIENCE_S = 5.0
_RETRY_S, _PAUSE_S = 1.0, 30.0
_COMPLAINT_PERIOD_S = 60.0
_EVENTS = select.EPOLLOUT | select.EPOLLET
LOCAL_SYSLOG = ("/dev/log", "/var/run/syslog", "/var/run/log")
_SEVERITIES = {1: 6, 2: 3}  # standard output informs, standard error is an error
_FAMILIES = {
    "unix": (_socket.AF_UNIX, _socket.SOCK_STREAM),
    "unixgram": (_socket.AF_UNIX, _socket.SOCK_DGRAM),
    "tcp": (_socket.AF_INET, _socket.SOCK_STREAM),
    "udp": (_socket.AF_INET, _socket.SOCK_DGRAM),
}

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Format = Callable[[int, bytes, bool], bytes]


class Sink:
    """One container's way to its server. conf: as `worker.logs.drivers` writes it."""

    def __init__(self, container: str, conf: dict[str, Any], epoll: select.epoll) -> None:
        self.container = container
        self._conf = conf
        self._epoll = epoll
        self._format = _formats(conf)
        self._socket: _socket.socket | None = None
        self._unsent: list[bytes] = []
        self._stuck_at_s = 0.0
        self._retry_at_s = 0.0
        self._complained_at_s = -_COMPLAINT_PERIOD_S
        self.fd = -1

    def put(self, number: int, pieces: list[bytes]) -> None:
        """Send lines of standard output (1) or error (2)."""
        messages = [
            self._format(number, piece.removesuffix(b"\n"), not piece.endswith(b"\n"))
            for piece in pieces
        ]
        limit = self._conf.get("buffer_bytes", 0)
        if limit and sum(map(len, self._unsent)) + sum(map(len, messages)) > limit:
            self._complain("its server is too slow")  # `mode=non-blocking`: better none than late
            return
        self._unsent += messages
        self.flush()

    def holds(self) -> bool:
        """True while the container has to wait."""
        return bool(self._unsent) and not self._conf.get("buffer_bytes", 0)

    def flush(self) -> None:
        """Send what goes; without a connection nothing is kept."""
        try:
            self._connect()
            while self._unsent and self._socket is not None:
                sent = self._socket.send(self._unsent[0], _socket.MSG_NOSIGNAL)
                rest = b"" if self._is_datagram() else self._unsent[0][sent:]
                self._unsent[:1] = [rest] if rest else []
            self._stuck_at_s = 0.0
        except BlockingIOError:
            self._stuck_at_s = self._stuck_at_s or time.monotonic()
        except OSError as error:
            self._give_up(os.strerror(error.errno) if error.errno else str(error))

    def timeout_s(self) -> float:
        """When `cut` has something to do; -1: never."""
        if not self._unsent or not self._stuck_at_s:
            return -1
        return max(0.0, self._stuck_at_s + PATIENCE_S - time.monotonic())

    def cut(self) -> bool:
        """Drop what was waited for long enough; True if the container may go on now."""
        if self.timeout_s() != 0:
            return False
        self._give_up("its server takes nothing", _PAUSE_S)
        return True

    def close(self) -> None:
        """Let go of the connection."""
        if self._socket is not None:
            self._epoll.unregister(self.fd)
            self._socket.close()
        self._socket, self.fd = None, -1

    def _is_datagram(self) -> bool:
        return bool(self._conf["network"] in {"udp", "unixgram"})

    def _connect(self) -> None:
        if self._socket is not None:
            return
        if time.monotonic() < self._retry_at_s:
            raise OSError(0, "no connection to its server")
        family, kind = _FAMILIES[self._conf["network"]]
        address = self._conf["address"]
        if address == LOCAL_SYSLOG[0]:
            address = next((path for path in LOCAL_SYSLOG if os.path.exists(path)), address)
        if family == _socket.AF_INET:
            address = (self._conf["address"], self._conf["port"])
            family = _socket.AF_INET6 if ":" in self._conf["address"] else family
        sock = _socket.socket(family, kind | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC, 0)
        self._socket, self.fd = sock, sock.fileno()
        self._epoll.register(self.fd, _EVENTS)
        if sock.connect_ex(address) not in {0, 115}:  # EINPROGRESS: sending will say
            code = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
            code = code or sock.connect_ex(address)
            raise OSError(code, os.strerror(code))

    def _give_up(self, reason: str, pause_s: float = _RETRY_S) -> None:
        self.close()
        self._unsent = []
        self._stuck_at_s = 0.0
        if time.monotonic() >= self._retry_at_s:
            self._retry_at_s = time.monotonic() + pause_s
        self._complain(reason)

    def _complain(self, reason: str) -> None:
        now_s = time.monotonic()
        if now_s - self._complained_at_s >= _COMPLAINT_PERIOD_S:
            self._complained_at_s = now_s
            files.complain(f"logger: {self.container}: lines dropped: {reason}")


def _formats(conf: dict[str, Any]) -> Format:
    return _journal(conf) if conf["kind"] == "journald" else _syslog(conf)


def _syslog(conf: dict[str, Any]) -> Format:
    """Messages of RFC 3164 or 5424, as Docker's driver writes them."""
    facility, tag, pid = conf["facility"] * 8, conf["tag"], os.getpid()
    host = os.uname().nodename
    style = conf["format"]

    def write(number: int, text: bytes, partial: bool) -> bytes:
        del partial
        priority = facility + _SEVERITIES[number]
        now = time.time()
        utc = time.gmtime(now)
        if style.startswith("rfc5424"):
            micro = f".{int(now % 1 * 1e6):06d}" if style == "rfc5424micro" else ""
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", utc) + micro + "Z"
            head = f"<{priority}>1 {stamp} {host} {tag} {pid} {tag} - "
        else:
            stamp = time.strftime("%b %e %H:%M:%S", time.localtime(now))
            name = f"{host} " if style == "rfc3164" else ""
            head = f"<{priority}>{stamp} {name}{tag}[{pid}]: "
        return head.encode() + text + b"\n"

    return write


def _journal(conf: dict[str, Any]) -> Format:
    """Entries of the journal's native protocol."""
    always = b"".join(_field(name, text.encode()) for name, text in conf["fields"].items())

    def write(number: int, text: bytes, partial: bool) -> bytes:
        entry = always + _field("PRIORITY", str(_SEVERITIES[number]).encode())
        if partial:
            entry += _field("CONTAINER_PARTIAL_MESSAGE", b"true")
        return entry + _field("MESSAGE", text)

    return write


def _field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
