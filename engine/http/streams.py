"""Answers that are written piece by piece.

`Stream` sends its head at once: clients wait for it before they go on. `Progress` sends its head
with the first object, so that what fails before is an ordinary error; what fails after is told
inside the stream, as its status has been sent already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog
from aiohttp import web
from typing_extensions import override

from engine.http.errors import INTERNAL_TEXT, stream_error
from shoal.aio.supervise import find_violation
from shoal.errors import SwarmError

_log = structlog.get_logger()

SKIPPED_BYTES_MAX = 1 << 20
SKIPPED_FOR_S = 1.0


class Stream:
    """A body of bytes, chunked. `async with` it; `answer` is what the handler returns."""

    def __init__(
        self, request: web.BaseRequest, headers: Mapping[str, str], content_type: str
    ) -> None:
        self._request = request
        self.answer = web.StreamResponse(headers={**headers, "Content-Type": content_type})

    async def __aenter__(self) -> Self:
        await self.answer.prepare(self._request)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """The end of the body; after an error none, so that the client sees that it is cut."""
        if error is None:
            await self.answer.write_eof()
            return
        transport = self._request.transport
        if transport is not None:
            transport.abort()

    async def write(self, data: bytes) -> None:
        """Send a piece; waits while the client does not read."""
        if data:
            await self.answer.write(data)

    async def write_json(self, value: object) -> None:
        """Send one object and a newline: events, statistics."""
        await self.answer.write(msgspec.json.encode(value) + b"\n")


class Progress:
    """JSON objects, one a chunk: pull, push, build, load. `async with` it."""

    def __init__(self, request: web.BaseRequest, headers: Mapping[str, str]) -> None:
        self._request = request
        self.answer = web.StreamResponse(headers={**headers, "Content-Type": "application/json"})

    @property
    def started(self) -> bool:
        """Whether the status has been sent."""
        return self.answer.prepared

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """End the stream; an error after its start is told inside."""
        if error is None:
            await self._start()
        elif self.started and isinstance(error, Exception) and not isinstance(error, OSError):
            await self._tell(error)
        else:
            return False
        await self.answer.write_eof()
        return True

    async def put(self, value: Mapping[str, Any] | msgspec.Struct) -> None:
        """Send one object; waits while the client does not read."""
        await self._start()
        await self.answer.write(msgspec.json.encode(value) + b"\r\n")

    async def _start(self) -> None:
        if not self.started:
            await self.answer.prepare(self._request)

    async def _tell(self, error: Exception) -> None:
        if find_violation(error) is not None:
            raise error
        if isinstance(error, SwarmError):
            await self.put(stream_error(error.message, int(str(error.context.get("code", 0)))))
            return
        _log.error("engine.stream_failed", path=self._request.path, exc_info=error)
        await self.put(stream_error(INTERNAL_TEXT))


class Taken(web.StreamResponse):
    """The answer of a hijacked connection: everything was written already."""

    @override
    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing to send."""
        del request
        self.force_close()

    @override
    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing to send."""
        del data


async def drain_body(request: web.BaseRequest, deadline_s: float) -> None:
    """Pass over what is left of a request's body, before the connection changes hands."""
    async with asyncio.timeout(deadline_s):
        while not request.content.at_eof():
            await request.content.readany()


async def skip_rest(request: web.BaseRequest) -> None:
    """Pass over a refused request's body if it is short and comes at once.

    A client that is answered while it still writes may report that instead of the answer.
    """
    skipped = 0
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(SKIPPED_FOR_S):
            while not request.content.at_eof() and skipped < SKIPPED_BYTES_MAX:
                skipped += len(await request.content.readany())
