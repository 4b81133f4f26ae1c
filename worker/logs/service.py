"""The logs of the node's containers, of any driver. Implements `worker.logs.api.Logs`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import msgspec

from shoal.errors import Unimplemented
from worker.logs import drivers, reader
from worker.logs.api import LogDriver, LogQuery, LogSubject
from worker.logs.model import LogLine
from worker.logs.sinks import LOCAL_SYSLOG

_UNREADABLE = "configured logging driver does not support reading"


class NodeLogs:
    """container_dir: where the runtime keeps a container, by its id."""

    def __init__(self, container_dir: Callable[[str], str]) -> None:
        self._container_dir = container_dir

    def check(self, driver: LogDriver) -> None:
        """Raises: InvalidArgument; Unimplemented: what the machine lacks."""
        check_driver(driver)

    def check_readable(self, driver: LogDriver) -> None:
        """Raises: Unimplemented."""
        if not drivers.readable(driver):
            raise Unimplemented(_UNREADABLE)

    def drivers(self) -> tuple[str, ...]:
        """Names this machine offers, sorted."""
        lacks = set() if drivers.JOURNAL_SOCKET in _sockets() else {"journald"}
        return tuple(name for name in drivers.NAMES if name not in lacks)

    async def read(
        self, container: str, driver: LogDriver, query: LogQuery
    ) -> AsyncIterator[LogLine]:
        """Lines, oldest first. Raises: NotFound, Unimplemented (a driver that cannot be read)."""
        self.check_readable(driver)
        lines = reader.read(
            self._container_dir(container),
            follow=query.follow,
            tail=query.tail,
            since_ns=query.since_ns,
            until_ns=query.until_ns,
            streams=query.streams,
        )
        async with aclosing(lines) as found:  # type: ignore[type-var]
            async for line in found:
                yield line

    def attributes(self, driver: LogDriver, subject: LogSubject) -> str:
        """The `k=v,k2=v2` of `details=1`."""
        return drivers.attributes_text(drivers.attributes(driver, subject))


def check_driver(driver: LogDriver) -> None:
    """Raises: InvalidArgument; Unimplemented: what the machine lacks."""
    drivers.check(driver, _sockets())


def check_kept(container_dir: str) -> None:
    """Raises: Unimplemented: this container's output is nowhere on this node. Blocking."""
    try:
        with open(f"{container_dir}/log.conf", "rb") as file:
            kept = msgspec.json.decode(file.read(), type=_Conf).files
    except (OSError, msgspec.MsgspecError):
        return  # what it does not say is the default
    if not kept:
        raise Unimplemented(_UNREADABLE)


def details_of(container_dir: str) -> str:
    """What the driver's options say of each line of a container, as `k=v,...`. Blocking."""
    try:
        with open(f"{container_dir}/log.conf", "rb") as file:
            found = msgspec.json.decode(file.read(), type=_Conf).attrs
    except (OSError, msgspec.MsgspecError):
        return ""  # what it does not say is the default
    return drivers.attributes_text(found)


class _Conf(msgspec.Struct, frozen=True):
    files: bool = True
    attrs: dict[str, str] = {}


def _sockets() -> frozenset[str]:
    known = (drivers.JOURNAL_SOCKET, *LOCAL_SYSLOG)
    return frozenset(path for path in known if os.path.exists(path))
