"""From a request to its handler and from an error to its answer.

A call that changes something runs to its end when its client goes away; one that follows its client
is cancelled with it. A bug in a handler is one 500 and a log entry; a broken invariant ends the
process, through `wait_broken`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from aiohttp import web

from engine.http.call import Answer, Call
from engine.http.errors import INTERNAL_TEXT, body_of, status_of, told_by_the_disk
from engine.http.routing import Route, Table, clean
from engine.http.streams import Taken, skip_rest
from engine.http.versions import NEWEST, TooOld, split_version, strip_version
from shoal.aio.supervise import find_violation
from shoal.errors import SwarmError

DRAIN_S = 5.0

_log = structlog.get_logger()


class Dispatcher:
    """The handler of every request."""

    def __init__(self, table: Table, product: str) -> None:
        """product: what the Server header says, like `Shoal/0.1 (linux)`."""
        self._table = table
        self._headers = {
            "Api-Version": str(NEWEST),
            "Docker-Experimental": "false",
            "Ostype": "linux",
            "Server": product,
        }
        self._running: set[asyncio.Task[Answer]] = set()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait_broken(self) -> None:
        """Wait until a handler broke an invariant, and raise that."""
        await asyncio.shield(self._broken)

    async def close(self) -> None:
        """Let the changes under way end; DRAIN_S later they are cancelled."""
        if self._running:
            await asyncio.wait(self._running, timeout=DRAIN_S)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if not self._broken.cancel():
            self._broken.exception()  # it was logged, whether or not anybody waited

    async def __call__(self, request: web.BaseRequest) -> Answer:
        """Answer one request."""
        path = request.rel_url.raw_path
        if clean(path) != path:
            query = request.rel_url.raw_query_string
            return self._moved(clean(path) + ("?" + query if query else ""))
        if request.method == "OPTIONS":
            return web.Response(headers=self._headers)
        found = self._table.find(request.method, strip_version(path))
        if found is None:
            return self._error(404, "page not found")
        try:
            answer = await self._answered(request, *found)
        except TooOld as error:
            return self._plain(error.message)
        except SwarmError as error:
            await skip_rest(request)
            return self._error(status_of(error), error.message)
        except ConnectionError:
            if request.transport is not None and not request.transport.is_closing():
                raise
            return Taken()  # the client is gone: nobody hears an answer
        if not answer.prepared:
            for name, value in self._headers.items():
                answer.headers.setdefault(name, value)
        return answer

    async def _answered(
        self, request: web.BaseRequest, route: Route, variables: Mapping[str, str]
    ) -> Answer:
        version, _ = split_version(request.rel_url.raw_path)
        call = Call(request, version, variables, self._headers)
        if route.follows_client:
            return await self._guarded(route, call)
        task = asyncio.create_task(self._guarded(route, call), name=f"call {route.template}")
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def _guarded(self, route: Route, call: Call) -> Answer:
        try:
            return await route.handler(call)
        except (SwarmError, ConnectionError):
            raise
        except Exception as error:  # one call fails, not the node
            if isinstance(error, OSError) and (refusal := told_by_the_disk(error)):
                raise refusal from error
            violation = find_violation(error)
            if violation is not None and not self._broken.done():
                self._broken.set_exception(violation)
            _log.error(
                "engine.call_failed", method=route.method, route=route.template, exc_info=error
            )
            return self._error(500, INTERNAL_TEXT)

    def _finished(self, task: asyncio.Task[Answer]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone

    def _error(self, status: int, message: str) -> Answer:
        if status == 304:
            return web.Response(status=304, headers=self._headers)
        return web.Response(
            body=body_of(message),
            status=status,
            content_type="application/json",
            headers=self._headers,
        )

    def _plain(self, message: str) -> Answer:
        headers = {**self._headers, "X-Content-Type-Options": "nosniff"}
        return web.Response(text=message + "\n", status=400, headers=headers)

    def _moved(self, where: str) -> Answer:
        return web.Response(status=301, headers={**self._headers, "Location": where})
