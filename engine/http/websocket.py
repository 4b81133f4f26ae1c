"""A WebSocket in the place of a hijacked connection: messages both ways, for browsers and the like.

A WebSocket has no half-close: a client that closes is gone. Output is one raw stream, in binary
messages (text for clients before API 1.28), as dockerd sends it. Bounded: at most MESSAGES_MAX
messages wait for the handler, `output` waits for the client.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from aiohttp import WSMsgType, web

from shoal.errors import InvalidArgument

MESSAGE_BYTES_MAX = 1 << 20
MESSAGES_MAX = 16
CLOSE_S = 2.0
HEARTBEAT_S = 30.0


class SocketWire:
    """The messages as a stream of bytes. Made by `opened`."""

    def __init__(self, socket: web.WebSocketResponse, *, text: bool) -> None:
        self._socket = socket
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace") if text else None
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(MESSAGES_MAX)
        self._gone = asyncio.Event()

    async def input(self) -> AsyncIterator[bytes]:
        """What the client sends, until it is gone. For one reader."""
        while data := await self._waiting.get():
            yield data

    async def output(self, stream: int, data: bytes) -> None:
        """Send output of any stream. Raises: ConnectionResetError when the client is gone."""
        del stream  # all are one
        if self._decoder is None:
            await self._socket.send_bytes(data)
        elif text := self._decoder.decode(data):
            await self._socket.send_str(text)

    async def wait_gone(self) -> None:
        """Return when the client is gone, or has closed."""
        await self._gone.wait()

    async def listen(self, *, keeps: bool) -> None:
        """Take in what the client sends, to its end. keeps: somebody wants it."""
        try:
            async for message in self._socket:
                data = message.data if message.type is WSMsgType.BINARY else b""
                if message.type is WSMsgType.TEXT:
                    data = message.data.encode()
                if data and keeps:
                    await self._waiting.put(data)
        finally:
            self._gone.set()
            with suppress(asyncio.QueueFull):
                self._waiting.put_nowait(b"")


@asynccontextmanager
async def opened(
    request: web.BaseRequest, headers: Mapping[str, str], *, text: bool, keeps: bool
) -> AsyncIterator[SocketWire]:
    """Answer the handshake; inside, the connection is the wire's. Raises: InvalidArgument."""
    socket = web.WebSocketResponse(
        timeout=CLOSE_S, heartbeat=HEARTBEAT_S, compress=False, max_msg_size=MESSAGE_BYTES_MAX
    )
    if not socket.can_prepare(request).ok:
        raise InvalidArgument("not a WebSocket handshake: Upgrade, Connection, Sec-WebSocket-*")
    socket.headers.update(headers)
    await socket.prepare(request)
    wire = SocketWire(socket, text=text)
    listening = asyncio.create_task(wire.listen(keeps=keeps), name="websocket")
    try:
        yield wire
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        with suppress(ConnectionError):
            await socket.close()
