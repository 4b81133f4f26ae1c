"""Reading logs of any driver: data and one Protocol.

What a driver is and which options it takes is decided in `worker.logs.drivers`. One that keeps
nothing on this node (`none`, `cache-disabled`) cannot be read and says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import msgspec

from worker.logs.model import LogLine
from worker.logs.reader import STREAMS_ALL


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


class LogSubject(msgspec.Struct, frozen=True, kw_only=True):
    """The container whose log it is. env: `name=value` each."""

    id: str
    name: str = ""
    image: str = ""
    image_id: str = ""
    labels: Mapping[str, str] = {}
    env: tuple[str, ...] = ()


class Logs(Protocol):
    """Logs of the node's containers. Every method raises `shoal.errors.SwarmError`s."""

    def check(self, driver: LogDriver) -> None:
        """Refuse what is not possible.

        Raises: InvalidArgument `logger: no log driver named 'x' is registered`, `unknown log opt
        'x' for json-file log driver`; Unimplemented: what the machine lacks.
        """
        ...

    def check_readable(self, driver: LogDriver) -> None:
        """Raises: Unimplemented: what it was given is nowhere on this node."""
        ...

    def drivers(self) -> tuple[str, ...]:
        """Names this machine offers, sorted, for `/info`."""
        ...

    def read(self, container: str, driver: LogDriver, query: LogQuery) -> AsyncIterator[LogLine]:
        """Lines, oldest first. Raises: NotFound, Unimplemented (a driver that cannot be read)."""
        ...

    def attributes(self, driver: LogDriver, subject: LogSubject) -> str:
        """The `k=v,k2=v2` of `details=1`: what the driver's options name."""
        ...
