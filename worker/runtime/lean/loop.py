"""A small event loop: epoll, timers, and a line-per-message unix socket server.

Single-threaded; a callback must not block. Each client's unread output is bounded: one that does
not read is disconnected and reads the state again when it comes back.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

from worker.runtime.lean import tinyjson
from worker.runtime.lean.files import complain, discard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LINE_BYTES_MAX = 4 << 20
OUTPUT_BYTES_MAX = 8 << 20
_BLOCKED = (BlockingIOError, InterruptedError)


class Loop:
    """Calls back on ready descriptors and on time."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self.stopped = False

    def watch(self, fd: int, callback: Callable[[int], None], *, write: bool = False) -> None:
        """Call `callback(events)` while `fd` is readable (and writable, with `write`)."""
        events = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        if fd in self._ready:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._ready[fd] = callback

    def forget(self, fd: int) -> None:
        """Stop watching; call before closing the descriptor."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call once, `delay_s` from now."""
        self._timers.append((time.monotonic() + delay_s, callback))

    def run(self) -> None:
        """Serve until `stopped`. A callback's exception is logged and costs that event only."""
        while not self.stopped:
            for fd, events in self._epoll.poll(self._timeout_s()):
                callback = self._ready.get(fd)
                if callback is not None:
                    self._guard(callback, events)
            now = time.monotonic()
            due = [timer for timer in self._timers if timer[0] <= now]
            if due:
                self._timers = [timer for timer in self._timers if timer[0] > now]
                for _, expired in due:
                    self._guard(expired)

    def _timeout_s(self) -> float:
        if not self._timers:
            return -1
        return max(0.0, min(when for when, _ in self._timers) - time.monotonic())

    def _guard(self, callback: Callable[..., None], *arguments: int) -> None:
        try:
            callback(*arguments)
        except Exception as error:  # noqa: BLE001 - one container's trouble must not stop all
            complain(f"{type(error).__name__}: {error} {_place(error)}")


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    places = []
    while trace is not None:
        places.append(f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " ".join(places)


class Client:
    """One connection: JSON requests in, JSON replies and events out, one per line."""

    def __init__(self, loop: Loop, sock: _socket.socket, on_request: Callable[..., None]) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._on_request = on_request
        self._input = b""
        self._output = bytearray()
        self.open = True
        self.on_close: list[Callable[[Client], None]] = []
        loop.watch(self._fd, self._on_ready)

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        """Queue one message; disconnects a client that lets too much pile up.

        fds: descriptors to send along, which only goes with nothing else under way.
        """
        if not self.open:
            return
        line = tinyjson.dumps(message).encode() + b"\n"
        self._output += line[self._send_rights(line, fds) :] if fds else line
        if len(self._output) > OUTPUT_BYTES_MAX:
            self.close()
            return
        self._flush()

    def _send_rights(self, line: bytes, fds: list[int]) -> int:
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
        try:
            return 0 if self._output else self._sock.sendmsg([line], rights)
        except OSError:
            return 0  # gone, or it does not read: it sees a reply without descriptors, or none

    def close(self) -> None:
        """End the connection."""
        if self.open:
            self.open = False
            self._loop.forget(self._fd)
            self._sock.close()
            for callback in self.on_close:
                callback(self)

    def _flush(self) -> None:
        try:
            while self._output:
                sent = self._sock.send(self._output)
                del self._output[:sent]
        except _BLOCKED:
            pass
        except OSError:
            self.close()
            return
        self._loop.watch(self._fd, self._on_ready, write=bool(self._output))

    def _on_ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if not self.open or not events & ~select.EPOLLOUT:
            return
        try:
            piece = self._sock.recv(1 << 18)
        except _BLOCKED:
            return
        except OSError:
            piece = b""
        if not piece or len(self._input) > LINE_BYTES_MAX:
            self.close()
            return
        *lines, self._input = (self._input + piece).split(b"\n")
        for line in lines:
            self._dispatch(line)

    def _dispatch(self, line: bytes) -> None:
        try:
            request = tinyjson.loads(line.decode())
        except ValueError:
            self.close()
            return
        self._on_request(self, request)


def listen(loop: Loop, path: str, on_request: Callable[..., None]) -> None:
    """Serve a unix stream socket at `path` (mode 0600), replacing a stale one."""
    fresh = f"{path}.new"
    discard(fresh)
    sock = _socket.socket(
        _socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC, 0
    )
    mask = os.umask(0o177)
    sock.bind(fresh)
    os.umask(mask)
    sock.listen(64)
    os.rename(fresh, path)

    def accept(events: int) -> None:
        del events
        try:
            fd, _ = sock._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        connection = _socket.socket(fileno=fd)
        connection.setblocking(False)
        Client(loop, connection, on_request)

    loop.watch(sock.fileno(), accept)
