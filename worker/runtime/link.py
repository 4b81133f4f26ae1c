"""The wire to the supervisor: one JSON line each way, and descriptors beside it.

Ordinary requests share a few connections. A request that is answered with descriptors has one of
its own, which stays open as long as they are used: its end tells the supervisor that nobody does.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from shoal.errors import ERROR_BY_CODE, Code, DeadlineExceeded, Unavailable

REQUEST_DEADLINE_S = 20.0
RECONNECT_S = 0.05
LINE_BYTES_MAX = 64 << 20
_IDLE_CONNECTIONS_MAX = 8
_REPLY_BYTES_MAX = 65536
_DESCRIPTORS_MAX = 4
_REPEATABLE = frozenset((
    "status", "list", "stats", "ping", "wait", "exec-status", "exec-wait", "processes",
    "counters", "terminal", "resize", "exec-resize", "end-input", "update",
))  # fmt: skip

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Broken(Exception):
    """The connection ended before the reply."""


class deadline:
    """`asyncio.timeout` that raises our own error."""

    def __init__(self, delay_s: float | None, message: str) -> None:
        self._timeout = asyncio.timeout(delay_s)
        self._message = message

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError:
            raise DeadlineExceeded(self._message) from None


class Passed:
    """Descriptors that came with a reply, and the connection that keeps them ours."""

    def __init__(self, result: Any, fds: list[int], connection: socket.socket) -> None:
        self.result = result
        self.fds = fds
        self.connection = connection

    def close(self) -> None:
        """Let go of all of it. Idempotent."""
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)
        self.connection.close()


class SupervisorLink:
    """Requests to one supervisor; all methods are concurrent."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._idle: list[_Connection] = []
        self._sequence = 0

    async def close(self) -> None:
        """Let go of idle connections."""
        while self._idle:
            _, writer = self._idle.pop()
            writer.close()

    async def request(
        self, operation: str, fields: dict[str, Any], deadline_s: float | None = REQUEST_DEADLINE_S
    ) -> Any:
        """The result. Raises: SwarmError; Unavailable if it is not known whether it was done."""
        async with deadline(deadline_s, f"runtime: {operation}: no answer in time"):
            while True:
                try:
                    return _result(await self.exchange(operation, fields))
                except (OSError, Broken) as error:
                    if operation not in _REPEATABLE:
                        raise _restarting(operation) from error
                    await asyncio.sleep(RECONNECT_S)

    async def exchange(self, operation: str, fields: dict[str, Any]) -> Any:
        """One try. Raises: OSError, Broken."""
        request = self._encoded(operation, fields)
        reader, writer = await self._connect()
        try:
            writer.write(request)
            await writer.drain()
            line = await reader.readline()
        except BaseException:
            writer.close()
            raise
        if not line.endswith(b"\n"):
            writer.close()
            raise Broken
        if len(self._idle) < _IDLE_CONNECTIONS_MAX:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return msgspec.json.decode(line)

    async def passing(
        self, operation: str, fields: dict[str, Any], deadline_s: float | None = REQUEST_DEADLINE_S
    ) -> Passed:
        """A request that is answered with descriptors. Raises: as `request`."""
        async with deadline(deadline_s, f"runtime: {operation}: no answer in time"):
            while True:
                connection = await self._connect_alone()
                fds: list[int] = []
                try:
                    request = self._encoded(operation, fields)
                    await asyncio.get_running_loop().sock_sendall(connection, request)
                    result = _result(msgspec.json.decode(await _receive(connection, fds)))
                except (OSError, Broken) as error:
                    Passed(None, fds, connection).close()
                    if operation not in _REPEATABLE:
                        raise _restarting(operation) from error
                    await asyncio.sleep(RECONNECT_S)
                except BaseException:
                    Passed(None, fds, connection).close()
                    raise
                else:
                    return Passed(result, fds, connection)

    async def _connect_alone(self) -> socket.socket:
        """A connection for one request; waits for a supervisor that is being restarted."""
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                await asyncio.get_running_loop().sock_connect(connection, self.path)
            except OSError:
                connection.close()
                await asyncio.sleep(RECONNECT_S)
            except BaseException:
                connection.close()
                raise
            else:
                return connection

    def _encoded(self, operation: str, fields: dict[str, Any]) -> bytes:
        self._sequence += 1
        request = {"op": operation, "seq": self._sequence, **fields}
        return msgspec.json.encode(request) + b"\n"

    async def _connect(self) -> _Connection:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_unix_connection(self.path, limit=LINE_BYTES_MAX)

    async def lines(self, operation: str) -> AsyncIterator[bytes]:
        """What is sent until the connection ends. Raises: OSError."""
        reader, writer = await asyncio.open_unix_connection(self.path, limit=LINE_BYTES_MAX)
        try:
            writer.write(self._encoded(operation, {}))
            while line := await reader.readline():
                yield line
        finally:
            writer.close()


async def _receive(connection: socket.socket, fds: list[int]) -> bytes:
    """One line; the descriptors that come along are put into `fds` at once."""
    received = b""
    while not received.endswith(b"\n"):
        await readable(connection.fileno())
        room = socket.CMSG_SPACE(_DESCRIPTORS_MAX * array.array("i").itemsize)
        with contextlib.suppress(BlockingIOError):
            piece, ancillary, _, _ = connection.recvmsg(
                _REPLY_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC
            )
            for _, _, rights in ancillary:
                fds += array.array("i", rights)
            received += piece
            if not piece:
                raise Broken
    return received


Wakers = set[asyncio.Future[None]]
"""Who waits for descriptors now: woken before they are closed."""


async def readable(*fds: int, wakers: Wakers | None = None) -> None:
    """Return once one of `fds` can be read, or is at its end."""
    loop = asyncio.get_running_loop()
    await _ready(loop.add_reader, loop.remove_reader, fds, wakers)


async def writable(fd: int, *, wakers: Wakers | None = None) -> None:
    """Return once `fd` can be written to, or nobody reads it any more."""
    loop = asyncio.get_running_loop()
    await _ready(loop.add_writer, loop.remove_writer, (fd,), wakers)


async def wake(wakers: Wakers) -> None:
    """Let everybody who waits go on; returns when none of them has a descriptor watched."""
    for ready in wakers:
        if not ready.done():
            ready.set_result(None)
    await asyncio.sleep(0)  # one turn: they were woken before us


async def _ready(
    add: Callable[..., None],
    remove: Callable[[int], bool],
    fds: tuple[int, ...],
    wakers: Wakers | None,
) -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    wakers = set() if wakers is None else wakers
    wakers.add(ready)

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    for fd in fds:
        add(fd, tell)
    try:
        await ready
    finally:
        wakers.discard(ready)
        for fd in fds:
            remove(fd)


def _result(reply: dict[str, Any]) -> Any:
    if "code" in reply:
        raise ERROR_BY_CODE[Code(reply["code"])](reply["error"])
    return reply["result"]


def _restarting(operation: str) -> Unavailable:
    return Unavailable(f"runtime: {operation}: the supervisor is restarting; try again")
