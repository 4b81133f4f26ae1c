"""When a call that failed on its way to the leader may be made again, and with what.

Invariant: nothing is done twice that the caller asked for once. A call is made again only when it
cannot have been begun, or when it only shows something and has shown nothing yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import msgspec

from shoal.errors import NotBegun, NotLeader, SwarmError, Unavailable

UNKNOWN = (
    "the leader of the cluster went away while the call was under way: it may or may not have been"
    " carried out; read the state before trying again"
)


class Failure(msgspec.Struct, frozen=True):
    """How a call failed. error: as its caller would see it.

    lost: nobody said so, the connection or the leader was gone. sent: something of the call may
    have come to the leader. answered: the client has been given something of an answer.
    """

    error: SwarmError
    lost: bool
    sent: bool
    answered: bool


def may_repeat(failure: Failure, *, only_shows: bool) -> bool:
    """Whether the call may be made again. only_shows: it changes nothing."""
    if failure.answered:
        return False
    if isinstance(failure.error, NotBegun):
        return True
    if failure.lost:
        return only_shows or not failure.sent
    return only_shows and isinstance(failure.error, NotLeader)


def told(failure: Failure, *, only_shows: bool) -> SwarmError:
    """What the caller is told of a call that is not made again."""
    if failure.lost and failure.sent and not failure.answered and not only_shows:
        return Unavailable(UNKNOWN)
    return failure.error


class Requests:
    """What a client sends, from the beginning again for each attempt.

    One message is kept, so only calls of one message can be repeated once it was taken.
    """

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = aiter(source)
        self._reading: asyncio.Future[bytes | None] | None = None
        self._first: bytes | None = None
        self._taken = 0
        self._ended = False

    @property
    def are_whole(self) -> bool:
        """Whether `each` still begins with the first message."""
        return self._taken <= 1

    async def each(self) -> AsyncGenerator[bytes, None]:
        """The messages. One iteration at a time; a new one may begin when the last was left."""
        if self._first is not None:
            yield self._first
        while not self._ended:
            message = await self._next()
            if message is not None:
                yield message

    async def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if isinstance(self._source, AsyncGenerator):
            await self._source.aclose()

    async def _next(self) -> bytes | None:
        """The next message, None at the end. Whoever stops waiting for it leaves it to the next."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
        message = await asyncio.shield(self._reading)
        self._reading = None
        if message is None:
            self._ended = True
            return None
        self._taken += 1
        self._first = message if self._taken == 1 else None
        return message

    async def _read(self) -> bytes | None:
        return await anext(self._source, None)
