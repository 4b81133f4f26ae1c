"""Live copies: what containers write, given to whoever asked for it before lines are cut.

A client hands the logger one end of a socket pair (docs/design/logs.md, "Live copy") and gets
frames: `[kind][0 0 0][length, big endian][payload]`; kind 1 and 2 are bytes of the streams, kind 0
says in JSON where the copy stands. Each client owes at most one frame: while it does, its container
waits in its own pipe, as Docker lets it. Once the container has ended it is waited for
`PATIENCE_S` more. Standard library only, like the logger that drives it.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

COPIES_MAX = 4096
PATIENCE_S = 3.0
HEADER = struct.Struct(">BxxxI")
CONTROL = 0
NOW, AFTER_LOG, RESUME = "now", "log", "resume"

_EVENTS = select.EPOLLRDHUP | select.EPOLLOUT | select.EPOLLET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Protocol

    class Source(Protocol):
        """One stream of a container, as copies see it."""

        taken: int

        def held(self) -> int:
            """How many bytes wait in the pipe."""
            ...


class Copy:
    """One client. `places`: per stream, the count of bytes before the next one to give."""

    __slots__ = ("container", "ending", "mode", "places", "sock", "told", "unsent")

    def __init__(self, container: str, sock: _socket.socket, mode: str, places: list[int]) -> None:
        self.container = container
        self.sock = sock
        self.mode = mode
        self.places = places
        self.unsent = b""
        self.ending = False  # closed as soon as nothing is left to send
        self.told = False  # where it stands; only who waits for a log's last entries is not, yet

    def put(self, kind: int, payload: bytes) -> None:
        """Send a frame, or keep what does not go. Raises: OSError when the client is gone."""
        self.unsent += HEADER.pack(kind, len(payload)) + payload
        self.flush()

    def flush(self) -> None:
        """Send what goes. Raises: OSError when the client is gone."""
        while self.unsent:
            try:
                self.unsent = self.unsent[self.sock.send(self.unsent, _socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                return


class Copies:
    """Every live copy, and which containers wait for one."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._by_fd: dict[int, Copy] = {}
        self._joined: dict[str, list[Copy]] = {}
        self._waiting: dict[str, list[Copy]] = {}
        self._cut_at_s: dict[int, float] = {}  # of containers that have ended, by descriptor

    def accept(
        self,
        container: str,
        how: list[str],
        fd: int,
        sources: Sequence[Source],
        last_ns: int,
        *,
        drains: bool = False,
    ) -> None:
        """Take a client on. how: a mode and, to resume, the places.

        sources: the container's streams while it runs; without them the client waits for its next
        run, or is told the end if it wanted to resume. last_ns: time of its log's last entry.
        drains: its last run has ended, but more entries of it will come: who begins after the log
        is told so by `settled`. Raises: ValueError: not a mode.
        """
        sock = _socket.socket(fileno=fd)
        sock.setblocking(False)
        try:
            copy = Copy(container, sock, *_mode(how))
        except ValueError:
            sock.close()
            raise
        if len(self._by_fd) >= COPIES_MAX:
            copy.put(CONTROL, b'{"refused":"too many live copies on this node"}')
            sock.close()
            return
        self._by_fd[fd] = copy
        self._epoll.register(fd, _EVENTS)
        if sources:
            self._joined.setdefault(container, []).append(copy)
            self._guarded(copy, self._begin, copy, sources, last_ns)
        elif copy.mode == RESUME:
            self._finish(copy)
        else:
            self._waiting.setdefault(container, []).append(copy)
            if not drains or copy.mode == NOW:
                self._guarded(copy, self._wait, copy, last_ns)

    def settled(self, container: str, last_ns: int) -> None:
        """The log of its last run is complete: who waited for that is told where it ends."""
        for copy in tuple(self._waiting.get(container, ())):
            if not copy.told:
                self._guarded(copy, self._wait, copy, last_ns)

    def _wait(self, copy: Copy, last_ns: int) -> None:
        copy.told = True
        copy.put(CONTROL, f'{{"state":"waiting","log_time_ns":{last_ns}}}'.encode())

    def begin(self, container: str, sources: Sequence[Source], last_ns: int) -> None:
        """A run begins: who has waited for it sees all of it."""
        for copy in self._waiting.pop(container, ()):
            self._joined.setdefault(container, []).append(copy)
            copy.mode = AFTER_LOG
            self._guarded(copy, self._begin, copy, sources, last_ns)

    def _begin(self, copy: Copy, sources: Sequence[Source], last_ns: int) -> None:
        if copy.mode == NOW:
            copy.places = [source.taken + source.held() for source in sources]
        else:
            wished = copy.places or [0 for _ in sources]
            copy.places = [max(w, s.taken) for w, s in zip(wished, sources, strict=True)]
        text = f'{{"state":"joined","places":{copy.places},"log_time_ns":{last_ns}}}'
        copy.put(CONTROL, text.encode())

    def show(self, container: str, number: int, base: int, data: bytes) -> None:
        """Give everybody what they have not had of a stream's bytes from `base` on.

        number: 1 is standard output, 2 standard error.
        """
        for copy in tuple(self._joined.get(container, ())):
            fresh = data[max(0, copy.places[number - 1] - base) :]
            copy.places[number - 1] = max(copy.places[number - 1], base + len(data))
            if fresh:
                self._guarded(copy, copy.put, number, fresh)

    def holds(self, container: str) -> bool:
        """True while somebody has to take a frame before the container may go on."""
        return any(copy.unsent for copy in self._joined.get(container, ()))

    def on_event(self, fd: int, events: int) -> str:
        """A client reads on or is gone; the container that may go on now, or nothing."""
        copy = self._by_fd.get(fd)
        if copy is None:
            return ""
        if events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            self._forget(copy)
        else:
            self._guarded(copy, copy.flush)
            if copy.ending and not copy.unsent:
                self._forget(copy)
        return "" if self.holds(copy.container) else copy.container

    def ended(self, container: str) -> None:
        """The container has ended: patience with the slow begins to run out."""
        for copy in self._joined.get(container, ()):
            self._limit(copy)

    def finish(self, container: str) -> None:
        """All it has written was shown."""
        for copy in self._joined.pop(container, ()):
            self._finish(copy)

    def drop(self, container: str) -> None:
        """The container is removed: nobody waits for it any more."""
        self.finish(container)
        for copy in self._waiting.pop(container, ()):
            self._finish(copy)

    def cut_slow(self) -> list[str]:
        """Let go of who was waited for long enough; the containers that may go on now."""
        now_s = time.monotonic()
        freed = []
        for fd in [fd for fd, at_s in self._cut_at_s.items() if at_s <= now_s]:
            copy = self._by_fd[fd]
            self._cut_at_s[fd] = now_s + PATIENCE_S
            if copy.unsent:
                self._forget(copy)
                freed.append(copy.container)
        return freed

    def timeout_s(self) -> float:
        """When `cut_slow` has something to do; -1: never."""
        if not self._cut_at_s:
            return -1
        return max(0.0, min(self._cut_at_s.values()) - time.monotonic())

    def _limit(self, copy: Copy) -> None:
        self._cut_at_s.setdefault(copy.sock.fileno(), time.monotonic() + PATIENCE_S)

    def _finish(self, copy: Copy) -> None:
        copy.ending = True
        self._limit(copy)
        self._guarded(copy, copy.put, CONTROL, b'{"state":"ended"}')
        if not copy.unsent:
            self._forget(copy)

    def _guarded(self, copy: Copy, act: Callable[..., None], *arguments: object) -> None:
        try:
            act(*arguments)
        except OSError:
            self._forget(copy)

    def _forget(self, copy: Copy) -> None:
        fd = copy.sock.fileno()
        if self._by_fd.pop(fd, None) is None:
            return
        self._cut_at_s.pop(fd, None)
        copy.unsent = b""
        for table in (self._joined, self._waiting):
            _remove(table, copy)
        self._epoll.unregister(fd)
        copy.sock.close()


def _mode(how: list[str]) -> tuple[str, list[int]]:
    mode, places = how[0] if how else "", [int(place) for place in how[1:]]
    if mode not in {NOW, AFTER_LOG, RESUME} or len(places) != 2 * (mode == RESUME):
        raise ValueError("not a mode")
    return mode, places


def received(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message, not to be inherited."""
    fds = [fd for _, _, rights in ancillary for (fd,) in struct.iter_unpack("i", rights)]
    for fd in fds:
        os.set_inheritable(fd, False)
    return fds


def _remove(table: dict[str, list[Copy]], copy: Copy) -> None:
    copies = table.get(copy.container, [])
    if copy in copies:
        copies.remove(copy)
        if not copies:
            del table[copy.container]
