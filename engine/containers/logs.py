"""What containers have written, as `docker logs` and `attach --logs` show it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime

from engine.containers.config import log_driver, log_subject
from engine.containers.container import Container
from engine.containers.parts import Needs
from shoal.clock import NS_PER_S
from shoal.errors import InvalidArgument
from shoal.model.row import Row
from worker.logs.api import LogQuery, Logs
from worker.logs.service import NodeLogs

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
        self._logs: Logs = needs.logs or NodeLogs(needs.container_dir)

    def check_readable(self, container: Container) -> None:
        """Raises: Unimplemented: its driver keeps nothing on this node."""
        self._logs.check_readable(log_driver(container.record.host))

    async def lines(
        self, container: Container, wish: LogWish
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Stream and text of each line, newline included. Raises: SwarmError."""
        if not wish.streams:
            raise InvalidArgument("Bad parameters: you must choose at least one stream")
        driver = log_driver(container.record.host)
        query = LogQuery(
            follow=wish.follow,
            tail=wish.tail,
            since_ns=wish.since_ns,
            until_ns=wish.until_ns,
            streams=wish.streams,
        )
        details = ""
        if wish.details:
            details = f"{self._logs.attributes(driver, log_subject(container.record))} "
        async with aclosing(self._logs.read(container.id, driver, query)) as lines:  # type: ignore[type-var]
            async for line in lines:
                time = f"{_time_text(line.time_ns)} " if wish.timestamps else ""
                yield STREAMS[line.stream], f"{time}{details}{line.text}".encode()


def _time_text(moment_ns: int) -> str:
    """RFC 3339 with all nine digits: times of lines stand below each other."""
    seconds, rest_ns = divmod(moment_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"
