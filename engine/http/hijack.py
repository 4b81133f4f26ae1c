"""Taking a connection over: from an HTTP exchange to raw bytes in both directions.

Docker's attach and exec end the HTTP of a connection: after the head of the answer it carries raw
bytes. `Wire` replaces aiohttp's protocol on the transport, so aiohttp neither parses nor closes on
the client's half-close, which only means the end of standard input. Aiohttp's own protocol still
hears of the loss of the connection and then cancels the handler.

Bounded: reading pauses while INPUT_BYTES_MAX wait for the handler, `output` waits for the client.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import AsyncIterator

from typing_extensions import override

from engine.http import stdcopy
from shoal.errors import invariant

INPUT_BYTES_MAX = 256 << 10
HELD_BACK_S = 0.02
"""docker-py reads the head through a buffer and the rest past it: what comes along is lost."""
GONE_POLL_S = 2.0


class Wire(asyncio.Protocol):
    """The raw connection. Made by `Call.hijack`."""

    def __init__(self, transport: asyncio.Transport, *, framed: bool, holds_back: bool) -> None:
        """framed: several streams in frames. holds_back: the client loses bytes sent at once."""
        self._transport = transport
        self._before = transport.get_protocol()
        self._framed = framed
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = False
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._output_from_s = self._loop.time() + (HELD_BACK_S if holds_back else 0.0)
        self._watch: asyncio.TimerHandle | None = None

    def take(self, head: bytes) -> None:
        """Answer the request and take the connection over."""
        self._transport.set_protocol(self)
        self._transport.write(head)
        self._transport.resume_reading()

    @property
    def gone(self) -> bool:
        """Whether the client has closed the connection, or lost it."""
        return self._gone.is_set()

    async def wait_gone(self) -> None:
        """Return when the client is gone. A half-close is not the end."""
        await self._gone.wait()

    async def input(self) -> AsyncIterator[bytes]:
        """What the client sends, until it ends its side or is gone. For one reader."""
        while True:
            while self._waiting:
                data = self._waiting.popleft()
                self._waiting_bytes -= len(data)
                if self._waiting_bytes < INPUT_BYTES_MAX and not self.gone:
                    self._transport.resume_reading()
                yield data
            if self._ended:
                return
            self._readable.clear()
            await self._readable.wait()

    async def output(self, stream: int, data: bytes) -> None:
        """Send output of a stream. Waits while the client does not read.

        Raises: ConnectionResetError when the client is gone.
        """
        await self.send(stdcopy.frame(stream, data) if self._framed else data)

    async def send(self, data: bytes) -> None:
        """Send bytes as they are. Raises: ConnectionResetError when the client is gone."""
        early_s = self._output_from_s - self._loop.time()
        if early_s > 0:
            await asyncio.sleep(early_s)
        await self._writable.wait()
        if self.gone or self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._transport.write(data)

    def close(self) -> None:
        """Send what is left and close; the handler is done."""
        if self._watch is not None:
            self._watch.cancel()
        self._transport.close()

    @override
    def data_received(self, data: bytes) -> None:
        invariant(not self._ended, "bytes after the end of a client's input")
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= INPUT_BYTES_MAX:
            self._transport.pause_reading()
        self._readable.set()

    @override
    def eof_received(self) -> bool:
        """The client has ended its side only: it goes on reading, so the connection stays."""
        self._end_input()
        self._watch_hangup()
        return True

    @override
    def pause_writing(self) -> None:
        self._writable.clear()

    @override
    def resume_writing(self) -> None:
        self._writable.set()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        self._end_input()
        self._writable.set()
        if self._watch is not None:
            self._watch.cancel()
        self._before.connection_lost(exc)

    def _end_input(self) -> None:
        self._ended = True
        self._readable.set()

    def _watch_hangup(self) -> None:
        """Look now and then whether a half-closed client is gone: the loop no longer reads it."""
        if self._transport.is_closing():
            return
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), 0)
        if any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0)):
            self._transport.abort()
            return
        self._watch = self._loop.call_later(GONE_POLL_S, self._watch_hangup)
