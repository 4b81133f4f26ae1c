"""Channels: the standard streams of one process, while somebody is attached.

Bytes are read only when they are asked for, so a slow reader makes the process wait in its own pipe
or terminal, as if it had it in its hands. Closing one never ends the process.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self

from typing_extensions import override

from shoal.errors import FailedPrecondition
from worker.runtime.interactive import Channel, StreamNumber
from worker.runtime.link import Passed, readable, writable

_READ_BYTES = 65536


class PipeChannel(Channel):
    """Streams held as descriptors: those of an `exec`, or of one whose program could not run."""

    def __init__(
        self, passed: Passed, stdin: int, outputs: Mapping[int, StreamNumber], *, tty: bool
    ) -> None:
        """outputs: stream by descriptor; of a terminal the same as `stdin`."""
        self._passed = passed
        self._stdin = stdin
        self._outputs = dict(outputs)
        self._tty = tty
        for fd in passed.fds:
            os.set_blocking(fd, False)

    @property
    @override
    def tty(self) -> bool:
        return self._tty

    @override
    async def output(self) -> AsyncIterator[tuple[StreamNumber, bytes]]:
        open_fds = dict(self._outputs)
        while open_fds:
            await readable(*open_fds)
            for fd in list(open_fds):
                data = _read(fd)
                if data:
                    yield open_fds[fd], data
                elif data is not None:
                    del open_fds[fd]

    @override
    async def write(self, data: bytes) -> None:
        if self._stdin < 0:
            raise FailedPrecondition("standard input is not open")
        await write_all(self._stdin, data)

    @override
    async def close_stdin(self) -> None:
        stdin, self._stdin = self._stdin, -1
        if stdin >= 0 and stdin not in self._outputs:
            self._passed.fds.remove(stdin)
            os.close(stdin)

    @override
    async def close(self) -> None:
        self._stdin = -1
        self._outputs.clear()
        self._passed.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


async def write_all(fd: int, data: bytes) -> None:
    """Write to a non-blocking descriptor; what nobody reads any more is dropped."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            await writable(fd)
        except OSError:
            return  # the process has closed its end, or is gone: its exit tells the rest


def _read(fd: int) -> bytes | None:
    """What is there; b"" at the end, None when there is nothing for now."""
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:  # EIO: nobody has the terminal open any more
        return b""
