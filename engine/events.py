"""The node's events: a bounded history, and a bounded queue for each reader.

On a manager the cluster's are among them. Of tasks there are so many that they are not kept, and
told only to those who ask.
Publishing never waits. A reader that does not keep up loses its stream, as one that reads on with a
hole in it would be wrong for longer. Times strictly increase, so a time is a cursor.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.ports import Event
from shoal.clock import NS_PER_S, Clock
from shoal.docker.events import TASK

HISTORY_MAX = 1024
QUEUE_MAX = 1024


class EventBus:
    """Implements `engine.ports.Events`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._history: deque[Event] = deque(maxlen=HISTORY_MAX)
        self._readers: set[_Reader] = set()
        self._last_ns = 0

    @property
    def readers(self) -> int:
        """How many streams are open."""
        return len(self._readers)

    def publish(self, event: Event) -> None:
        """Keep it and tell every reader."""
        self._last_ns = max(event.time_ns or self._clock.now_ns(), self._last_ns + 1)
        event = event.replaced(time_ns=self._last_ns)
        if event.type != TASK:
            self._history.append(event)
        for reader in self._readers:
            if event.type != TASK or reader.tasks:
                reader.put(event)

    @asynccontextmanager
    async def subscribe(
        self, *, since_ns: int | None = None, until_ns: int | None = None, tasks: bool = False
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """As `Events.subscribe`."""
        reader = _Reader(self._clock, until_ns, tasks=tasks)
        kept = [] if since_ns is None else [e for e in self._history if e.time_ns >= since_ns]
        self._readers.add(reader)
        try:
            yield reader.events(kept)
        finally:
            self._readers.discard(reader)


class _Reader:
    def __init__(self, clock: Clock, until_ns: int | None, *, tasks: bool) -> None:
        self._clock = clock
        self.tasks = tasks
        self._until_ns = until_ns
        self._queue: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._lost = False

    def put(self, event: Event) -> None:
        if len(self._queue) < QUEUE_MAX:
            self._queue.append(event)
        else:
            self._lost = True
        self._arrived.set()

    async def events(self, kept: list[Event]) -> AsyncIterator[Event]:
        pending = deque(kept)
        while True:
            while pending or self._queue:
                event = pending.popleft() if pending else self._queue.popleft()
                if self._until_ns is not None and event.time_ns > self._until_ns:
                    return
                yield event
            if self._lost or not await self._arrival():
                return

    async def _arrival(self) -> bool:
        """Wait for the next event; False when `until_ns` comes first."""
        self._arrived.clear()
        try:
            async with asyncio.timeout(self._remaining_s()):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def _remaining_s(self) -> float | None:
        if self._until_ns is None:
            return None
        return (self._until_ns - self._clock.now_ns()) / NS_PER_S
