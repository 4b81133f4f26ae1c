"""One reader of logs and the nodes that publish to it: queues, order, and what is missing.

Without `follow` lines are merged by time: one is passed on when every publisher has shown its next
line or has ended. Queues are bounded: a publisher that is too far ahead waits, and is let go when
the reader leaves.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from shoal.errors import NotFound
from shoal.ids import new_id
from shoal.model.row import Row

LINES_MAX = 512
QUEUED_BYTES_MAX = 1 << 20
"""Lines and bytes a publisher may be ahead of the reader, and one message more."""
LISTENER_QUEUE_MAX = 256
INCOMPLETE_MAX = 1_024


class LogLine(Row, frozen=True):
    """One line of a task. stream: 1 stdout, 2 stderr. details: as `k=v,...`, where asked for."""

    service_id: str
    node_id: str
    task_id: str
    timestamp_ns: int
    stream: int
    data: bytes
    details: str = ""


class LogOptions(Row, frozen=True):
    """What a reader wants of each task. tail: lines from the end; None: all."""

    follow: bool = False
    streams: tuple[int, ...] = ()
    tail: int | None = None
    since_ns: int = 0
    until_ns: int = 0
    details: bool = False

    def after(self, last_ns: int) -> LogOptions:
        """The same for a node whose lines up to then have arrived; 0: none has."""
        if not last_ns:
            return self
        return self.replaced(tail=None, since_ns=max(self.since_ns, last_ns + 1))


class Ask(Row, frozen=True):
    """What a node is asked: publish these tasks under that id, or stop."""

    subscription_id: str
    task_ids: tuple[str, ...] = ()
    options: LogOptions = LogOptions()
    close: bool = False


class Publisher:
    """One node's lines for one subscription."""

    def __init__(
        self, node_id: str, listener: Listener | None, *, before: Publisher | None = None
    ) -> None:
        """Asked through `listener`; goes on where `before`, which it replaces, has stopped."""
        self.node_id = node_id
        self.listener = listener
        self.asked: set[str] = set()
        self.opened = False
        self.closed = False
        self.lines: deque[LogLine] = deque()
        self.queued_bytes = 0
        self.resume_ns = self.last_ns = 0
        if before is not None:
            before.closed = True
            self.lines, self.queued_bytes = before.lines, before.queued_bytes
            self.resume_ns = self.last_ns = before.last_ns

    @property
    def is_full(self) -> bool:
        """Whether it is too far ahead of the reader."""
        return len(self.lines) >= LINES_MAX or self.queued_bytes >= QUEUED_BYTES_MAX

    def add(self, lines: Sequence[LogLine]) -> None:
        """Queue lines."""
        self.lines.extend(lines)
        self.queued_bytes += sum(len(line.data) for line in lines)
        self.last_ns = max(self.last_ns, *(line.timestamp_ns for line in lines), 0)
        self.opened = True

    def pop(self) -> LogLine:
        """The next line."""
        line = self.lines.popleft()
        self.queued_bytes -= len(line.data)
        return line


class Subscription:
    """One reader."""

    def __init__(self, options: LogOptions) -> None:
        self.id = new_id()
        self.options = options
        self.publishers: dict[str, Publisher] = {}
        self.incomplete: deque[str] = deque()
        self.changed = asyncio.Condition()
        self.abandoned = False

    async def put(self, publisher: Publisher, lines: Sequence[LogLine]) -> None:
        """Add a publisher's lines; waits while it is too far ahead.

        Raises: NotFound when the reader has left.
        """
        async with self.changed:
            await self.changed.wait_for(
                lambda: self.abandoned or publisher.closed or not publisher.is_full
            )
            if self.abandoned or publisher.closed:
                raise NotFound("nobody reads these logs any more")
            publisher.add(lines)
            self.changed.notify_all()

    async def end(self, publisher: Publisher, error: str) -> None:
        """The publisher has no more lines."""
        async with self.changed:
            self.lose(publisher, error)
            self.changed.notify_all()

    def lose(self, publisher: Publisher, error: str) -> None:
        """Note the end of a publisher, with what is missing of it ("": nothing)."""
        if error and not publisher.closed and len(self.incomplete) < INCOMPLETE_MAX:
            self.incomplete.append(error)
        publisher.closed = True

    async def give_up_silent(self, names: Callable[[str], str]) -> None:
        """Wait no longer for publishers that never began. names: what to call a node."""
        async with self.changed:
            for publisher in self.publishers.values():
                if not publisher.opened and not publisher.closed:
                    name = names(publisher.node_id)
                    self.lose(publisher, f"node {name} did not answer in time")
            self.changed.notify_all()

    async def abandon(self) -> None:
        """The reader has left: let go of publishers that wait for it."""
        async with self.changed:
            self.abandoned = True
            self.changed.notify_all()

    async def read(self) -> AsyncIterator[list[LogLine] | str]:
        """Lines in order, and the texts of what is missing, until all publishers have ended."""
        while True:
            async with self.changed:
                await self.changed.wait_for(self._has_news)
                news: list[LogLine] | str = (
                    self.incomplete.popleft() if self.incomplete else self._take()
                )
                self.changed.notify_all()
            if not news:
                return
            yield news

    def _has_news(self) -> bool:
        if self.incomplete:
            return True
        if self.options.follow:
            return any(publisher.lines for publisher in self.publishers.values())
        return not any(not p.closed and not p.lines for p in self.publishers.values())

    def _take(self) -> list[LogLine]:
        if self.options.follow:
            taken = [p.pop() for p in self.publishers.values() for _ in range(len(p.lines))]
            return sorted(taken, key=lambda line: line.timestamp_ns)
        return self._merge()

    def _merge(self) -> list[LogLine]:
        """Lines by time, until a publisher has to show its next one first."""
        taken: list[LogLine] = []
        order = [(p.lines[0].timestamp_ns, p.node_id) for p in self.publishers.values() if p.lines]
        heapq.heapify(order)
        while order:
            publisher = self.publishers[order[0][1]]
            taken.append(publisher.pop())
            if publisher.lines:
                heapq.heapreplace(order, (publisher.lines[0].timestamp_ns, publisher.node_id))
            elif publisher.closed:
                heapq.heappop(order)
            else:
                break
        return taken


class Listener:
    """A node's stream of asks; ended by a newer one or when the node is removed."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Ask | None] = asyncio.Queue(LISTENER_QUEUE_MAX)
        self._ended = False

    def offer(self, ask: Ask) -> bool:
        """Hand over an ask; False when the node is too far behind."""
        if self._ended or self._queue.full():
            return False
        self._queue.put_nowait(ask)
        return True

    def end(self) -> None:
        """Nothing more will be asked here."""
        self._ended = True
        if not self._queue.full():
            self._queue.put_nowait(None)

    async def next(self) -> Ask | None:
        """The next ask; None at the end."""
        return None if self._ended else await self._queue.get()
