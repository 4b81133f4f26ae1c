"""One call of the API, as handlers see it; and the answers they give. Hides the HTTP library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import msgspec
from aiohttp import web

from engine.http import bodies, credentials, stdcopy, websocket
from engine.http.errors import Refused
from engine.http.hijack import Wire
from engine.http.query import Query
from engine.http.streams import Progress, Stream, Taken, drain_body
from engine.http.versions import ApiVersion
from shoal.errors import InvalidArgument, Unavailable
from worker.images.registry.api import Credentials

Answer: TypeAlias = web.StreamResponse
Kind = TypeVar("Kind")

BODY_DEADLINE_S = 60.0
CHUNK_BYTES = 256 << 10
_MULTIPLEXED_SINCE = ApiVersion(1, 42)
_LOSES_EARLY_BYTES = ("docker-sdk-python", "docker-py")
_NOTHING = object()


class Call:
    """A request that has found its handler."""

    def __init__(
        self,
        request: web.BaseRequest,
        version: ApiVersion,
        path: Mapping[str, str],
        headers: Mapping[str, str],
    ) -> None:
        """path: the route's variables, decoded. headers: of every answer."""
        self.version = version
        self.path = path
        self.query = Query(request.raw_path.partition("?")[2])
        self._request = request
        self._headers = headers

    @property
    def has_body(self) -> bool:
        """Whether the client sends one, however short."""
        return self._request.can_read_body

    def header(self, name: str) -> str:
        """A header of the request; empty when it is not there."""
        return self._request.headers.get(name, "")

    def credentials(self) -> Credentials:
        """Who pulls or pushes. Raises: InvalidArgument."""
        return credentials.one(self.header("X-Registry-Auth"))

    def registry_config(self) -> dict[str, Credentials]:
        """Credentials of several registries, for builds. Raises: InvalidArgument."""
        return credentials.by_server(self.header("X-Registry-Config"))

    async def body(self, kind: type[Kind], *, optional: bool = False) -> Kind:
        """The JSON body. optional: without one, an empty object.

        Raises: InvalidArgument, Refused.
        """
        if optional and not self.has_body:
            return bodies.convert({}, kind)
        given = self._request.headers.get("Content-Type", "")
        if (given or self.has_body) and self._request.content_type != "application/json":
            raise InvalidArgument(f"Content-Type specified ({given}) must be 'application/json'")
        return bodies.decode(await self._read(), kind)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, in pieces of at most CHUNK_BYTES."""
        async for data in self._request.content.iter_chunked(CHUNK_BYTES):
            yield data

    def stream(self, content_type: str, headers: Mapping[str, str] | None = None) -> Stream:
        """An answer in pieces whose head is sent on entering."""
        return Stream(self._request, {**self._headers, **(headers or {})}, content_type)

    def progress(self) -> Progress:
        """An answer of JSON objects whose head is sent with the first."""
        return Progress(self._request, self._headers)

    def output_stream(self, *, tty: bool) -> Stream:
        """An answer of a container's output, framed by the caller (`stdcopy`) unless tty."""
        return self.stream(self._output_type(tty=tty))

    @asynccontextmanager
    async def hijack(self, *, tty: bool) -> AsyncIterator[Wire]:
        """Take the connection over; inside, it is the wire's. The handler returns `taken()`.

        tty: one raw stream; otherwise frames. Raises: Unavailable when the client is gone already.
        """
        async with _body_deadline():
            await drain_body(self._request, BODY_DEADLINE_S)
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise Unavailable("the client is gone")
        agent = self.header("User-Agent")
        wire = Wire(
            transport,
            framed=not tty,
            holds_back=any(name in agent for name in _LOSES_EARLY_BYTES),
        )
        wire.take(self._hijack_head(tty=tty))
        try:
            yield wire
        finally:
            wire.close()

    def websocket(
        self, *, text: bool, keeps: bool
    ) -> AbstractAsyncContextManager[websocket.SocketWire]:
        """Open a WebSocket in the connection; the handler returns `taken()`.

        text: send text, not binary messages. keeps: what the client sends is read by somebody.
        """
        return websocket.opened(self._request, self._headers, text=text, keeps=keeps)

    def _hijack_head(self, *, tty: bool) -> bytes:
        lines = [f"Content-Type: {self._output_type(tty=tty)}"]
        if self.header("Upgrade"):
            lines = ["HTTP/1.1 101 UPGRADED", *lines, "Connection: Upgrade", "Upgrade: tcp"]
        else:
            lines = ["HTTP/1.1 200 OK", *lines]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def _output_type(self, *, tty: bool) -> str:
        framed = not tty and self.version >= _MULTIPLEXED_SINCE
        return stdcopy.MULTIPLEXED if framed else stdcopy.RAW

    async def _read(self) -> bytes:
        parts, size = [], 0
        async with _body_deadline():
            async for data in self.chunks():
                size += len(data)
                if size > bodies.BODY_BYTES_MAX:
                    raise Refused(413, f"body: larger than {bodies.BODY_BYTES_MAX >> 20} MiB")
                parts.append(data)
        return b"".join(parts)


def json_answer(
    value: Any = _NOTHING, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """A JSON value; structs are written in their own spelling."""
    body = msgspec.json.encode(None if value is _NOTHING else value) + b"\n"
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def empty(status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """No body."""
    return web.Response(status=status, headers=headers)


def text(value: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Plain text."""
    return web.Response(text=value, status=status, headers=headers)


def taken() -> Answer:
    """What a handler returns after `Call.hijack`."""
    return Taken()


class _body_deadline:
    """The time a client has for the whole of a small body."""

    def __init__(self) -> None:
        self._timeout = asyncio.timeout(BODY_DEADLINE_S)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError:
            raise Refused(408, f"body: not complete after {BODY_DEADLINE_S:.0f} s") from None
