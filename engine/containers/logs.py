"""What containers have written, as `docker logs` and `attach --logs` show it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime

from engine.containers.container import Container
from engine.containers.defaults import LOG_DRIVER
from engine.containers.parts import Needs
from engine.containers.records import Record
from shoal.clock import NS_PER_S, Clock
from shoal.errors import InvalidArgument
from shoal.model.row import Row
from worker.logs import reader
from worker.logs.api import LogDriver, LogQuery, Logs, LogSubject
from worker.logs.model import LogLine

STREAMS: Mapping[str, int] = {"stdout": 1, "stderr": 2}


class LogWish(Row, frozen=True):
    """Which lines, and how they are shown."""

    streams: frozenset[str]
    follow: bool = False
    tail: int | None = None
    since_ns: int = 0
    until_ns: int = 0
    timestamps: bool = False
    details: bool = False


def parse_tail(text: str) -> int | None:
    """`all`, or how many lines; what is neither is all, as in Docker."""
    return int(text) if text.isdecimal() and len(text) <= 9 else None


class ContainerLogs:
    """Reads through the drivers of the node."""

    def __init__(self, needs: Needs) -> None:
        self._logs: Logs | None = needs.logs
        self._plain = _PlainFiles(needs.container_dir, needs.clock)

    async def lines(
        self, container: Container, wish: LogWish
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Stream and text of each line, newline included. Raises: SwarmError."""
        if not wish.streams:
            raise InvalidArgument("Bad parameters: you must choose at least one stream")
        driver = _driver(container)
        query = LogQuery(
            follow=wish.follow,
            tail=wish.tail,
            since_ns=wish.since_ns,
            until_ns=wish.until_ns,
            streams=wish.streams,
        )
        source = self._plain if self._logs is None else self._logs
        details = f"{self._attributes(container, driver)} " if wish.details else ""
        async with aclosing(source.read(container.id, driver, query)) as lines:  # type: ignore[type-var]
            async for line in lines:
                time = f"{_time_text(line.time_ns)} " if wish.timestamps else ""
                yield STREAMS[line.stream], f"{time}{details}{line.text}".encode()

    def _attributes(self, container: Container, driver: LogDriver) -> str:
        if self._logs is None:
            return ""
        return self._logs.attributes(driver, log_subject(container.record))


def log_subject(record: Record) -> LogSubject:
    """The container, as log drivers name it."""
    config = record.config
    return LogSubject(
        id=record.id,
        name=record.name,
        image=record.image,
        image_id=record.image_id,
        labels=config.labels or {},
        env=tuple(config.env or ()),
    )


def _driver(container: Container) -> LogDriver:
    asked = container.record.host.log_config
    return LogDriver(name=asked.type or LOG_DRIVER, options=asked.config or {})


def _time_text(moment_ns: int) -> str:
    """RFC 3339 with all nine digits: times of lines stand below each other."""
    seconds, rest_ns = divmod(moment_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"


class _PlainFiles:
    """Log files of the default driver, on a node that has no others."""

    def __init__(self, container_dir: Callable[[str], str], clock: Clock) -> None:
        self._container_dir = container_dir
        self._clock = clock

    async def read(
        self, container: str, driver: LogDriver, query: LogQuery
    ) -> AsyncIterator[LogLine]:
        """As `worker.logs.api.Logs`."""
        del driver
        tail = query.tail
        with_end = bool(query.until_ns)
        lines = reader.read(
            self._container_dir(container),
            follow=query.follow,
            tail=None if with_end else tail,
            since_ns=query.since_ns,
            streams=query.streams,
        )
        if not with_end:
            async for line in lines:
                yield line
            return
        kept: deque[LogLine] = deque(maxlen=tail)
        try:
            async with asyncio.timeout(self._left_s(query) if query.follow else None):
                async for line in lines:
                    if line.time_ns > query.until_ns:
                        break
                    kept.append(line)
        except TimeoutError:
            pass
        for line in kept:
            yield line

    def _left_s(self, query: LogQuery) -> float:
        return max(0.0, (query.until_ns - self._clock.now_ns()) / NS_PER_S)
