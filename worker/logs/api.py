"""Reading logs of any driver: data and one Protocol.

`worker.logs.reader.read` is the reader of json-file; others arrive beside it. A driver that cannot
be read says so (`none`, `syslog`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import msgspec

from worker.logs.model import LogLine
from worker.logs.reader import STREAMS_ALL

READABLE_DRIVERS = ("json-file", "local", "journald")


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines. Times are exclusive at `since_ns`, inclusive at `until_ns`; 0: no bound."""

    follow: bool = False
    tail: int | None = None
    since_ns: int = 0
    until_ns: int = 0
    streams: frozenset[str] = STREAMS_ALL


class LogDriver(msgspec.Struct, frozen=True, kw_only=True):
    """A driver and its options, checked. Part of a container's configuration."""

    name: str = "json-file"
    options: dict[str, str] = {}


class Logs(Protocol):
    """Logs of the node's containers. Every method raises `shoal.errors.SwarmError`s."""

    def check(self, driver: LogDriver) -> LogDriver:
        """Fill in defaults.

        Raises: InvalidArgument `logger: no log driver named 'x' is registered`, `unknown log opt
        'x' for json-file log driver`; Unimplemented: what the machine lacks.
        """
        ...

    def drivers(self) -> tuple[str, ...]:
        """Names this machine offers, sorted, for `/info`."""
        ...

    def read(self, container: str, driver: LogDriver, query: LogQuery) -> AsyncIterator[LogLine]:
        """Lines, oldest first. Raises: NotFound, Unimplemented (a driver that cannot be read)."""
        ...

    def attributes(self, labels: Mapping[str, str], env: tuple[str, ...], driver: LogDriver) -> str:
        """The `k=v,k2=v2` of `details=1`, from the labels and env the driver's options name."""
        ...
