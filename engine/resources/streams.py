"""Streams of containers: attach, logs, statistics; and their processes and terminals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing

from engine.containers import detach, top
from engine.containers.attach import Line, Manner, converse
from engine.containers.container import Container
from engine.containers.logs import ContainerLogs, LogWish, parse_tail
from engine.containers.parts import ContainerParts
from engine.containers.stats import StatsReader
from engine.http import stdcopy
from engine.http.call import Answer, Call, empty, json_answer, taken
from engine.http.query import Query
from engine.http.routing import Route
from engine.http.versions import ApiVersion
from engine.resources.execs import size_of
from shoal.errors import FailedPrecondition, InvalidArgument
from worker.runtime.interactive import Channel

Opening = Callable[[Manner, bool], AbstractAsyncContextManager[Line]]
"""From how a session goes, and whether it is a terminal's, to the client's connection."""
BINARY_SINCE = ApiVersion(1, 28)
CHOOSES_SINCE = ApiVersion(1, 42)
"""Which streams a WebSocket is for."""


def routes(parts: ContainerParts) -> Iterable[Route]:
    """Six operations."""
    resource = _Resource(parts)
    yield Route("POST", "/containers/{id}/attach", resource.attach, follows_client=True)
    yield Route("GET", "/containers/{id}/attach/ws", resource.attach_ws, follows_client=True)
    yield Route("POST", "/containers/{id}/resize", resource.resize)
    yield Route("GET", "/containers/{id}/logs", resource.logs, follows_client=True)
    yield Route("GET", "/containers/{id}/stats", resource.stats, follows_client=True)
    yield Route("GET", "/containers/{id}/top", resource.top)


class _Resource:
    def __init__(self, parts: ContainerParts) -> None:
        self._containers = parts.containers
        self._runtime = parts.needs.runtime
        self._clock = parts.needs.clock
        self._logs = ContainerLogs(parts.needs)
        self._stats = StatsReader(parts.needs.runtime)

    async def attach(self, call: Call) -> Answer:
        """What comes before the head is an error with its status; the rest is the stream."""
        return await self._attached(
            call, _AttachWish(call.query), lambda manner, tty: call.hijack(tty=tty)
        )

    async def attach_ws(self, call: Call) -> Answer:
        """The same over a WebSocket; all streams are wished before API 1.42."""
        wish = _AttachWish(call.query, all_streams=call.version < CHOOSES_SINCE)
        text = call.version < BINARY_SINCE
        return await self._attached(
            call, wish, lambda manner, tty: call.websocket(text=text, keeps=manner.stdin)
        )

    async def _attached(self, call: Call, wish: _AttachWish, opened: Opening) -> Answer:
        container = self._containers.find(call.path["id"])
        _check_attachable(container)
        config = container.record.config
        manner = Manner(
            stdin=wish.stdin and config.open_stdin,
            stdout=wish.stdout,
            stderr=wish.stderr,
            ends_stdin=config.stdin_once and not config.tty,
            detach_keys=wish.keys if config.tty else b"",
            alone=not container.record.host.pid_mode,
        )
        if wish.logs:
            self._logs.check_readable(container)
        channel = None
        if wish.stream:
            channel = await self._runtime.attach(
                container.id,
                stdin=manner.stdin,
                stdout=manner.stdout,
                stderr=manner.stderr,
                after_log=wish.logs,
            )
        until_ns = self._clock.now_ns() if channel is None else channel.log_time_ns
        try:
            async with opened(manner, config.tty) as wire:
                if wish.logs and until_ns:
                    await self._replay(container, wire, manner, until_ns)
                if channel is not None:
                    await self._converse(container, wire, channel, manner)
        finally:
            if channel is not None:
                await channel.close()
        return taken()

    async def _replay(
        self, container: Container, wire: Line, manner: Manner, until_ns: int
    ) -> None:
        """What was written before; from then on it comes through the channel."""
        streams = _streams(stdout=manner.stdout, stderr=manner.stderr)
        wish = LogWish(streams, until_ns=until_ns)
        async with aclosing(self._logs.lines(container, wish)) as lines:
            async for stream, text in lines:
                await wire.output(stream, text)

    async def _converse(
        self, container: Container, wire: Line, channel: Channel, manner: Manner
    ) -> None:
        self._containers.publish(container, "attach")
        end = self._containers.watch(container.id, "next-exit").end
        line = _AfterStart(wire, container)
        if await converse(line, channel, manner, end) == "detached":
            self._containers.publish(container, "detach")

    async def resize(self, call: Call) -> Answer:
        container = self._containers.find_running(call.path["id"])
        size = size_of(call)
        await self._runtime.resize(container.id, size)
        told = {"height": str(size.height), "width": str(size.width)}
        self._containers.publish(container, "resize", told)
        return empty(200)

    async def logs(self, call: Call) -> Answer:
        container = self._containers.find(call.path["id"])
        query = call.query
        wish = LogWish(
            streams=_streams(stdout=query.flag("stdout"), stderr=query.flag("stderr")),
            follow=query.flag("follow"),
            tail=parse_tail(query.text("tail", "all")),
            since_ns=query.time_ns("since") or 0,
            until_ns=query.time_ns("until") or 0,
            timestamps=query.flag("timestamps"),
            details=query.flag("details"),
        )
        if not wish.streams:
            raise InvalidArgument("Bad parameters: you must choose at least one stream")
        self._logs.check_readable(container)  # before the head of the answer
        tty = container.record.config.tty
        async with (
            aclosing(self._logs.lines(container, wish)) as lines,
            call.output_stream(tty=tty) as out,
        ):
            with container.followed():
                async for stream, text in lines:
                    await out.write(text if tty else stdcopy.frame(stream, text))
        return out.answer

    async def stats(self, call: Call) -> Answer:
        container = self._containers.find(call.path["id"])
        if not call.query.flag("stream", default=True):
            primed = not call.query.flag("one-shot")
            return json_answer(await self._stats.once(container, primed=primed))
        async with (
            aclosing(self._stats.follow(container)) as samples,
            call.stream("application/json") as out,
        ):
            async for sample in samples:
                await out.write_json(sample)
        return out.answer

    async def top(self, call: Call) -> Answer:
        container = self._containers.find_running(call.path["id"])
        pids = await self._runtime.processes(container.id)
        table = await top.run(call.query.text("ps_args"), pids)
        self._containers.publish(container, "top")
        return json_answer({"Processes": table.rows, "Titles": table.titles})


class _AfterStart:
    """The client's connection; what it sends is passed on once the container runs."""

    def __init__(self, wire: Line, container: Container) -> None:
        self._wire = wire
        self._container = container

    async def input(self) -> AsyncIterator[bytes]:
        container = self._container
        await container.until(lambda: container.has_process or container.removed)
        async for data in self._wire.input():
            yield data

    async def output(self, stream: int, data: bytes) -> None:
        await self._wire.output(stream, data)

    async def wait_gone(self) -> None:
        await self._wire.wait_gone()


class _AttachWish:
    """What a client asks for at attach. Raises: InvalidArgument."""

    def __init__(self, query: Query, *, all_streams: bool = False) -> None:
        self.stream = query.flag("stream")
        self.logs = query.flag("logs")
        self.stdin = all_streams or query.flag("stdin")
        self.stdout = all_streams or query.flag("stdout")
        self.stderr = all_streams or query.flag("stderr")
        self.keys = detach.parse_keys(query.text("detachKeys"))


def _streams(*, stdout: bool, stderr: bool) -> frozenset[str]:
    wished = (("stdout", stdout), ("stderr", stderr))
    return frozenset(name for name, wanted in wished if wanted)


def _check_attachable(container: Container) -> None:
    if container.state == "paused":
        raise FailedPrecondition(
            f"Container {container.id} is paused. Unpause the container before attach."
        )
    if container.state == "restarting":
        raise FailedPrecondition(
            f"Container {container.id} is restarting. Wait until the container is running."
        )
