"""A client at the standard streams of a process: bytes both ways until one side is done.

Used by attach and exec. Both directions end independently: a client that ends its side goes on
reading. The session is over when the process has written all it will, when the client types the
detach keys or is gone, and when the end of its input cannot be passed on, as in Docker. The process
is never ended by it. Nothing is held but the piece in hand: who does not read makes the other wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Literal, Protocol

from engine.containers.detach import DetachWatch
from shoal.errors import FailedPrecondition
from shoal.model.row import Row
from worker.runtime.interactive import Channel

End = Literal["written", "detached", "let go", "gone"]
LAST_WORDS_S = 2.0
"""What is still written once the process has ended, by others that hold its streams."""
LAST_OF_ALL_S = 60.0
"""The same where nobody can hold them: it is a busy node whose last pieces are late."""


class Line(Protocol):
    """The client's connection: `engine.http.hijack.Wire`."""

    def input(self) -> AsyncIterator[bytes]:
        """What the client sends, until it ends its side or is gone."""
        ...

    async def output(self, stream: int, data: bytes) -> None:
        """Send output of a stream. Raises: ConnectionResetError when the client is gone."""
        ...

    async def wait_gone(self) -> None:
        """Return when the client is gone."""
        ...


class Manner(Row, frozen=True):
    """How a session goes.

    stdin: the client's input is passed on. ends_stdin: so is its end. detach_keys: looked for in
    it; empty for none. alone: its processes end with it, so its streams do.
    """

    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    ends_stdin: bool = False
    detach_keys: bytes = b""
    alone: bool = False

    @property
    def sees_output(self) -> bool:
        """Whether the client sees any output."""
        return self.stdout or self.stderr

    def wants(self, stream: int) -> bool:
        """Whether the client sees a stream."""
        return self.stdout if stream == 1 else self.stderr


async def converse(
    line: Line, channel: Channel, manner: Manner, ended: Callable[[], Awaitable[object]]
) -> End:
    """Run a session. ended: returns when the process has ended, or is gone for good."""
    progress = _Progress()
    work: list[Coroutine[Any, Any, End]] = [
        _pass_output(line, channel, manner, progress),
        _end_after(
            ended,
            progress if manner.sees_output else None,
            LAST_OF_ALL_S if manner.alone else LAST_WORDS_S,
        ),
        _wait_gone(line),
    ]
    if manner.stdin:
        work.append(_pass_input(line, channel, manner))
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Progress:
    """Of the output: how many pieces there were, and whether the next is being waited for."""

    pieces = 0
    waiting = True


async def _pass_output(line: Line, channel: Channel, manner: Manner, progress: _Progress) -> End:
    """Also what nobody wants to see is read: it would make the process wait."""
    try:
        async with aclosing(channel.output()) as pieces:  # type: ignore[type-var]
            async for stream, data in pieces:
                progress.waiting = False
                if manner.wants(stream):
                    await line.output(stream, data)
                progress.pieces += 1
                progress.waiting = True
    except ConnectionResetError:
        return "gone"
    return "written" if manner.sees_output else await _never()


async def _pass_input(line: Line, channel: Channel, manner: Manner) -> End:
    watch = DetachWatch(manner.detach_keys) if manner.detach_keys else None
    async with aclosing(line.input()) as pieces:  # type: ignore[type-var]
        async for data in pieces:
            passed, detached = watch.feed(data) if watch else (data, False)
            with suppress(FailedPrecondition):  # it reads no more: its end is told by the output
                await channel.write(passed)
            if detached:
                return "detached"
    if not manner.ends_stdin:
        return "let go"
    await channel.close_stdin()
    if not manner.sees_output:
        return "let go"
    return await _never()


async def _end_after(
    ended: Callable[[], Awaitable[object]], progress: _Progress | None, quiet_s: float
) -> End:
    """Over when the process has ended and nothing more comes; a slow client is waited for.

    progress: of the output; None when nobody sees any.
    """
    await ended()
    while progress is not None:
        before = progress.pieces
        await asyncio.sleep(quiet_s)
        if progress.waiting and progress.pieces == before:
            break
    return "written"


async def _wait_gone(line: Line) -> End:
    await line.wait_gone()
    return "gone"


async def _never() -> End:
    await asyncio.get_running_loop().create_future()
    return "gone"
