"""Following a container's output live, before lines are cut: the client of the logger's copies.

What a terminal or a plain `docker attach` shows. A copy begins where its mode says and ends with
the run. The logger waits for a client that does not read, and so does the container: read, or
close. A logger that was restarted is asked again from where the copy stood: nothing is given twice,
and what it wrote before it was asked is only in the log.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import msgspec

from shoal.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from worker.logs.copies import AFTER_LOG, CONTROL, HEADER, NOW, RESUME

DEADLINE_S = 10.0
_RETRY_S = 0.02
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Word(msgspec.Struct, frozen=True):
    state: Literal["waiting", "joined", "ended", ""] = ""
    places: tuple[int, ...] = ()
    log_time_ns: int = 0
    refused: str = ""


class LiveCopy:
    """One copy; made by `follow`. `log_time_ns`: see there."""

    def __init__(self, run_dir: str, container: str, mode: str) -> None:
        self._path = f"{run_dir}/logger.sock"
        self._container = container
        self._how = mode
        self._places: list[int] = []
        self._connection: _Connection | None = None
        self._ended = False
        self.log_time_ns = 0

    async def connect(self) -> None:
        """Ask the logger. Raises: Unavailable, DeadlineExceeded, ResourceExhausted."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while self._connection is None:
                    await self._try_connect()
        except TimeoutError:
            raise DeadlineExceeded(
                f"logs: {self._container}: the logger gives no live copy"
            ) from None

    async def chunks(self) -> AsyncIterator[tuple[Literal[1, 2], bytes]]:
        """What it writes, as it is written; ends with the container's run, or when it is removed.

        1 is standard output, 2 standard error.
        """
        while not self._ended:
            if self._connection is None:
                await self.connect()
                continue
            kind, payload = await self._frame(self._connection)
            if kind in (1, 2):
                self._places[kind - 1] += len(payload)
                yield (1 if kind == 1 else 2), payload

    async def _frame(self, connection: _Connection) -> tuple[int, bytes]:
        """The next frame; control frames are taken in. A lost logger is a frame of nothing."""
        reader, _ = connection
        try:
            kind, length = HEADER.unpack(await reader.readexactly(HEADER.size))
            payload = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            await self._disconnect()
            return CONTROL, b""
        if kind == CONTROL:
            self._take_in(msgspec.json.decode(payload, type=_Word))
        return kind, payload

    def _take_in(self, word: _Word) -> None:
        if word.refused:
            raise ResourceExhausted(f"logs: {self._container}: {word.refused}")
        self._ended = self._ended or word.state == "ended"
        if word.state == "joined":
            self._places = list(word.places)
        if word.state in {"joined", "waiting"}:
            self.log_time_ns = word.log_time_ns

    async def _try_connect(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            places = " ".join(str(place) for place in self._places)
            how = f"{RESUME} {places}" if places else self._how
            with theirs:
                await self._send(f"{self._container} {how}", theirs.fileno())
            self._connection = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        await self._frame(self._connection)  # says that we are waited for; or that it is gone

    async def _send(self, request: str, fd: int) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as courier:
            courier.setblocking(False)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
            while True:
                try:
                    courier.sendmsg([request.encode()], rights, 0, self._path)
                    return
                except (BlockingIOError, ConnectionError, FileNotFoundError):
                    await asyncio.sleep(_RETRY_S)  # its queue is full, or it is being restarted
                except OSError as error:
                    raise Unavailable(f"logs: {self._path}: {error.strerror}") from None

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection[1].close()

    async def close(self) -> None:
        """Let go; the container need not wait any more. Idempotent."""
        self._ended = True
        await self._disconnect()


@asynccontextmanager
async def follow(
    run_dir: str, container: str, *, after_log: bool = False
) -> AsyncIterator[LiveCopy]:
    """A live copy, ready: whatever is written from now on will be given.

    Of a container that does not run, the next run is waited for and given whole. after_log: begin
    exactly after the last entry of its log, whose time is `log_time_ns` (0: there is none):
    reading the log up to and including that time and then the copy shows everything once. A run
    that has just ended is waited for until its log is complete. Raises: Unavailable,
    DeadlineExceeded, ResourceExhausted.
    """
    copy = LiveCopy(run_dir, container, AFTER_LOG if after_log else NOW)
    try:
        await copy.connect()
        yield copy
    finally:
        await copy.close()
