"""Channels: the standard streams of one process, while somebody is attached.

Bytes are read only when they are asked for, so a slow reader makes the process wait in its own pipe
or terminal, as if it had it in its hands. Closing one never ends the process.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Protocol, Self

from typing_extensions import override

from shoal.errors import FailedPrecondition
from worker.runtime.interactive import Attached, Channel, StreamNumber
from worker.runtime.link import Passed, Wakers, readable, wake, writable

_READ_BYTES = 65536


class _Managed(Channel):
    """A channel as an async context manager."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class PipeChannel(_Managed):
    """Streams held as descriptors: those of an `exec`, or of one whose program could not run."""

    def __init__(
        self, passed: Passed, stdin: int, outputs: Mapping[int, StreamNumber], *, tty: bool
    ) -> None:
        """outputs: stream by descriptor; of a terminal the same as `stdin`."""
        self._passed = passed
        self._stdin = stdin
        self._outputs = dict(outputs)
        self._tty = tty
        self._readers: Wakers = set()
        self._writers: Wakers = set()
        for fd in passed.fds:
            os.set_blocking(fd, False)

    @property
    @override
    def tty(self) -> bool:
        return self._tty

    @override
    async def output(self) -> AsyncIterator[tuple[StreamNumber, bytes]]:
        while self._outputs:
            await readable(*self._outputs, wakers=self._readers)
            for fd in list(self._outputs):
                stream = self._outputs.get(fd)
                if stream is None:  # closed meanwhile
                    return
                data = _read(fd)
                if data:
                    yield stream, data
                elif data is not None:
                    self._outputs.pop(fd, None)

    @override
    async def write(self, data: bytes) -> None:
        if self._stdin < 0:
            raise FailedPrecondition("standard input is not open")
        await write_all(self._stdin, data, self._writers, lambda: self._stdin >= 0)

    @override
    async def close_stdin(self) -> None:
        stdin, self._stdin = self._stdin, -1
        if stdin >= 0 and not self._tty:
            await wake(self._writers)
            self._passed.fds.remove(stdin)
            os.close(stdin)

    @override
    async def close(self) -> None:
        self._stdin = -1
        self._outputs.clear()
        await wake(self._readers | self._writers)
        self._passed.close()


class AttachedChannel(_Managed, Attached):
    """A container's own streams: what it writes comes from the logger, what it reads goes to it.

    Input is opened when there is something to write: a terminal is there only while it runs.
    """

    def __init__(self, output: Output, stdin: Input | None, *, tty: bool, log_time_ns: int) -> None:
        """stdin: None when nobody may write. log_time_ns: of the last entry before the output."""
        self._output = output
        self._input = stdin
        self._tty = tty
        self._log_time_ns = log_time_ns

    @property
    @override
    def tty(self) -> bool:
        return self._tty

    @property
    @override
    def log_time_ns(self) -> int:
        return self._log_time_ns

    @override
    async def output(self) -> AsyncIterator[tuple[StreamNumber, bytes]]:
        async for number, data in self._output.chunks():
            yield number, data

    @override
    async def write(self, data: bytes) -> None:
        if self._input is None:
            raise FailedPrecondition("standard input is not open")
        await self._input.write(data)

    @override
    async def close_stdin(self) -> None:
        stdin, self._input = self._input, None
        if stdin is not None:
            await stdin.end()

    @override
    async def close(self) -> None:
        stdin, self._input = self._input, None
        if stdin is not None:
            await stdin.close()
        await self._output.close()


class Output(Protocol):
    """Where what a container writes comes from."""

    def chunks(self) -> AsyncIterator[tuple[StreamNumber, bytes]]:
        """As it is written, until its run ends."""
        ...

    async def close(self) -> None:
        """Let go. Idempotent."""
        ...


class Input(Protocol):
    """Where what a container reads goes to."""

    async def write(self, data: bytes) -> None:
        """All of it; waits while nobody reads."""
        ...

    async def end(self) -> None:
        """End of input, as far as the container has such a thing; let go."""
        ...

    async def close(self) -> None:
        """Let go. Idempotent."""
        ...


class PipeInput(Input):
    """The FIFO of a container with open standard input.

    Opened at once: what is written before the container starts waits for it.
    """

    def __init__(self, path: str, on_end: Callable[[], Awaitable[None]]) -> None:
        """on_end: makes it the end for the container, once we have let go. Raises: OSError."""
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._on_end = on_end
        self._wakers: Wakers = set()

    @override
    async def write(self, data: bytes) -> None:
        await write_all(self._fd, data, self._wakers, lambda: self._fd >= 0)

    @override
    async def end(self) -> None:
        await self.close()
        await self._on_end()

    @override
    async def close(self) -> None:
        fd, self._fd = self._fd, -1
        await wake(self._wakers)
        if fd >= 0:
            os.close(fd)


class TerminalInput(Input):
    """The master of a container's terminal, asked for at the first byte."""

    def __init__(self, ask: Callable[[], Awaitable[Passed]]) -> None:
        """ask: returns once the container runs."""
        self._ask = ask
        self._closed = False
        self._passed: Passed | None = None
        self._wakers: Wakers = set()

    @override
    async def write(self, data: bytes) -> None:
        if self._passed is None:
            self._passed = await self._ask()
        passed = self._passed
        if passed.fds:
            await write_all(passed.fds[0], data, self._wakers, lambda: not self._closed)

    @override
    async def end(self) -> None:
        await self.close()

    @override
    async def close(self) -> None:
        self._closed = True
        await wake(self._wakers)
        if self._passed is not None:
            self._passed.close()


async def write_all(fd: int, data: bytes, wakers: Wakers, is_open: Callable[[], bool]) -> None:
    """Write to a non-blocking descriptor; what nobody reads any more is dropped."""
    rest = memoryview(data)
    while rest and is_open():
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            await writable(fd, wakers=wakers)
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
