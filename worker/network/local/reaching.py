"""Published ports over IPv6: which of them the relay serves, with the sockets that hold them.

Blocking but for `tend`; all of it belongs to the thread of the networks.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, Literal, cast

import structlog

from shoal.errors import SwarmError
from worker.network.local import plan
from worker.network.local.api import Endpoint, PortBinding
from worker.network.local.holders import Holders, name
from worker.network.relay.client import Relays
from worker.network.relay.wire import Ear

_ADDRESSES: Final = Path("/proc/self/net/if_inet6")
_CHANGE_S: Final = 60.0
_AGAIN_S: Final = 1.0
Run = Callable[[Callable[[], float | None]], Awaitable[float | None]]

_log = structlog.get_logger()


def has_ipv6() -> bool:
    """Whether the node has an address a client could reach it by over IPv6."""
    try:
        return bool(_ADDRESSES.read_text())
    except OSError:
        return False


class Reaching:
    """What the networks tell the relay."""

    def __init__(self, relays: Relays, holders: Holders) -> None:
        self._relays = relays
        self._holders = holders
        self._kept: dict[str, socket.socket] = {}
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def tend(self, run: Run) -> None:
        """See to it that the relay runs and knows everything, for ever. run: in the thread."""
        while True:
            try:
                wait_s = await run(self._relays.tend)
            except SwarmError as error:
                _log.error("relay.not_tended", reason=error.message)
                wait_s = _AGAIN_S
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s or _CHANGE_S)
            except TimeoutError:
                continue
            self._changed.clear()

    def put(self, ports: Iterable[PortBinding], way: Endpoint | None) -> None:
        """Have these ports reached over IPv6, as far as rules do not lead there."""
        for port, address in plan.relayed(ports, way):
            held = self._holders.six(port)
            if held is not None:
                protocol = cast("Literal['tcp', 'udp']", port.protocol)
                ear = Ear(
                    key=name(port), protocol=protocol, address=address, port=port.container_port
                )
                self._relays.put(ear, held)
                self._loop.call_soon_threadsafe(self._changed.set)

    def drop(self, ports: Iterable[PortBinding]) -> None:
        """No longer. Idempotent."""
        self._relays.drop(map(name, ports))

    def adopt(self) -> None:
        """After a restart: what the relay has held all the time."""
        self._kept = dict(self._relays.adopt())

    def hold_again(self, ports: Iterable[PortBinding], way: Endpoint | None) -> list[str]:
        """Hold and serve ports of a container that runs. Result: what could not be held."""
        bindings = list(ports)
        problems = self._holders.hold_again(bindings, self._kept)
        for port in bindings:
            self._kept.pop(name(port), None)
        self.put(bindings, way)
        return problems

    def disown_rest(self) -> None:
        """What the relay has held for containers that are gone."""
        self._relays.disown(self._kept)
        while self._kept:
            self._kept.popitem()[1].close()

    def close(self, *, end: bool) -> None:
        """Let go of it and of every port. end: nobody needs the relay any more."""
        self._relays.close(end=end)
        self._holders.close()


async def cancelled(task: asyncio.Task[None] | None) -> None:
    """End a task that runs for ever."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
