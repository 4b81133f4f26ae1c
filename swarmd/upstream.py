"""A channel to the socket of one of the node's processes.

A channel to a process that is gone would pause ever longer between its attempts to connect. So
the socket is probed first, and a channel in failure is replaced: a process that is back is reached
within one probe.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import grpc

from shoal.errors import Unavailable
from shoal.security.grpc_tls import local_channel
from shoal.wire.relay import Connecting

WAIT_S = 5.0
_PROBE_PERIOD_S = 0.05


class Upstream:
    """One process's socket. `why_not` explains, when it cannot be reached."""

    def __init__(self, name: str, socket_path: Path, why_not: Callable[[], str]) -> None:
        self.name = name
        self._socket_path = socket_path
        self._why_not = why_not
        self._channel: grpc.aio.Channel | None = None

    @property
    def label(self) -> str:
        """What it is called in errors."""
        return f"the {self.name} process"

    async def channel(self, wait_s: float = WAIT_S) -> grpc.aio.Channel:
        """A channel to a process that listens now. Raises Unavailable after `wait_s` with why."""
        healthy = self._healthy()
        if healthy is not None:
            return healthy
        deadline_s = asyncio.get_running_loop().time() + wait_s
        while not self._listening():
            left_s = deadline_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                raise Unavailable(self._why_not())
            await asyncio.sleep(min(_PROBE_PERIOD_S, left_s))
        return await self._renewed()

    async def connected(self, call: Connecting) -> None:
        """Wait until a `wait_for_ready` call is under way: nothing was sent before that.

        Raises: Unavailable after WAIT_S; the call is then cancelled.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                await call.wait_for_connection()
        except TimeoutError:
            call.cancel()
            raise Unavailable(self._why_not()) from None

    async def close(self) -> None:
        """Close the channel and with it every call."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    def _healthy(self) -> grpc.aio.Channel | None:
        if self._channel is None:
            return None
        ready = self._channel.get_state() is grpc.ChannelConnectivity.READY
        return self._channel if ready else None

    async def _renewed(self) -> grpc.aio.Channel:
        failed = {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}
        old = self._channel
        if old is not None and old.get_state() not in failed:
            return old
        channel = self._channel = local_channel(self._socket_path)
        if old is not None:
            await old.close()  # it is not connected: no call is lost
        return channel

    def _listening(self) -> bool:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.setblocking(False)
            with contextlib.suppress(BlockingIOError):  # the backlog is full: somebody is there
                try:
                    probe.connect(str(self._socket_path))
                except (FileNotFoundError, ConnectionRefusedError):
                    return False
        return True
