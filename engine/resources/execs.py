"""`/containers/{id}/exec` and `/exec`: further processes in containers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from engine.containers.attach import Manner, converse
from engine.containers.execs import Exec, ExecRequest, Execs, terminal_size, worded
from engine.containers.requests import Docker
from engine.http.call import Answer, Call, empty, json_answer, taken
from engine.http.errors import Refused
from engine.http.hijack import Wire
from engine.http.routing import Route
from shoal.errors import SwarmError
from worker.runtime.interactive import Channel, TerminalSize

EXIT_S = 5.0
"""After its last output a process has this long to end, so that its exit code can be asked for."""


class ExecStart(Docker, frozen=True, kw_only=True):
    """What is asked for at `start`."""

    detach: bool = False
    tty: bool = False
    console_size: list[int] | None = None


def routes(execs: Execs) -> Iterable[Route]:
    """Four operations."""
    resource = _Resource(execs)
    yield Route("POST", "/containers/{id}/exec", resource.create)
    yield Route("POST", "/exec/{id}/start", resource.start)
    yield Route("POST", "/exec/{id}/resize", resource.resize)
    yield Route("GET", "/exec/{id}/json", resource.inspect)


class _Resource:
    def __init__(self, execs: Execs) -> None:
        self._execs = execs

    async def create(self, call: Call) -> Answer:
        made = self._execs.create(call.path["id"], await call.body(ExecRequest))
        return json_answer({"Id": made.id}, 201)

    async def start(self, call: Call) -> Answer:
        """The head goes out before the program runs: what keeps it from running is output."""
        asked = await call.body(ExecStart, optional=True)
        size = terminal_size(asked.console_size)
        one = self._execs.begin(call.path["id"])
        if asked.detach:
            return await self._start_detached(one, size)
        async with call.hijack(tty=one.request.tty) as wire:
            try:
                channel = await self._execs.start(one, size, attached=True)
            except SwarmError as error:
                await wire.output(1, f"{error.message}\r\n".encode())
                return taken()
            try:
                await self._attend(one, wire, channel)
            finally:
                await channel.close()
        return taken()

    async def _start_detached(self, one: Exec, size: TerminalSize | None) -> Answer:
        channel = await self._execs.start(one, size, attached=False)
        await channel.close()
        failure = await self._execs.failure(one)
        if failure:
            raise Refused(400, failure)
        return empty(200)

    async def _attend(self, one: Exec, wire: Wire, channel: Channel) -> None:
        request = one.request
        failure = await self._execs.failure(one)
        if failure:
            await wire.output(1, f"{failure}\r\n".encode())
            return
        manner = Manner(
            stdin=request.attach_stdin,
            stdout=request.attach_stdout,
            stderr=request.attach_stderr,
            ends_stdin=not request.tty,
            detach_keys=one.keys if request.tty else b"",
        )
        end = await converse(wire, channel, manner, one.ended.wait)
        if end == "detached":
            self._execs.note_detached(one)
        elif end == "written":
            with suppress(TimeoutError):
                async with asyncio.timeout(EXIT_S):
                    await one.ended.wait()

    async def resize(self, call: Call) -> Answer:
        await self._execs.resize(call.path["id"], size_of(call))
        return empty(200)

    async def inspect(self, call: Call) -> Answer:
        return json_answer(worded(self._execs.find(call.path["id"])))


def size_of(call: Call) -> TerminalSize:
    """`h` and `w` of a resize. Raises: InvalidArgument."""
    size = terminal_size([call.query.number("h"), call.query.number("w")])
    return size or TerminalSize(height=0, width=0)
