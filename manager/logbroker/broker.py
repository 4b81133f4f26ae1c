"""Joins log readers with the nodes that hold the logs.

A reader subscribes with a selector; the broker asks every node that has tasks of it, and each of
those opens one publishing stream. Without `follow` the streams are merged by time: a line is
passed on when every stream has shown its next line or has ended. With `follow` lines are passed
on as they come, and nodes that get new tasks of the selector are asked as well. Queues are
bounded: a slow reader slows the publishers, through gRPC's flow control.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager

from manager.store.store import Store
from manager.store.view import View
from shoal.errors import NotFound, ResourceExhausted, SwarmError
from shoal.ids import new_id
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from shoal.model.row import Row

LINES_MAX = 512
"""Lines a publisher may be ahead of the reader."""
SUBSCRIPTIONS_MAX = 256
LISTENER_QUEUE_MAX = 256
PUBLISHER_WAIT_S = 5.0
"""How long an asked node may take to open its stream."""


class LogLine(Row, frozen=True):
    """One line of a task. stream: 1 stdout, 2 stderr."""

    service_id: str
    node_id: str
    task_id: str
    timestamp_ns: int
    stream: int
    data: bytes


class LogOptions(Row, frozen=True):
    """What a reader wants of each task. tail: lines from the end; None: all."""

    follow: bool = False
    streams: tuple[int, ...] = ()
    tail: int | None = None
    since_ns: int = 0
    until_ns: int = 0


class Selector(Row, frozen=True):
    """Whose logs: services, nodes and tasks by id or name; OR-ed."""

    services: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()


class Ask(Row, frozen=True):
    """What a node is asked: publish these tasks under that id, or stop."""

    subscription_id: str
    task_ids: tuple[str, ...] = ()
    options: LogOptions = LogOptions()
    close: bool = False


class Publisher:
    """One node's lines for one subscription."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.lines: deque[LogLine] = deque()
        self.opened = False
        self.closed = False


class Subscription:
    """One reader."""

    def __init__(self, options: LogOptions) -> None:
        self.id = new_id()
        self.options = options
        self.publishers: dict[str, Publisher] = {}
        self.asked: set[str] = set()
        self.incomplete: deque[str] = deque()
        self.changed = asyncio.Condition()
        self.abandoned = False

    async def put(self, publisher: Publisher, lines: list[LogLine]) -> None:
        """Add a publisher's lines; waits while it is too far ahead.

        Raises: NotFound when the reader has left.
        """
        async with self.changed:
            await self.changed.wait_for(lambda: self.abandoned or len(publisher.lines) < LINES_MAX)
            if self.abandoned:
                raise NotFound("nobody reads these logs any more")
            publisher.lines.extend(lines)
            publisher.opened = True
            self.changed.notify_all()

    async def end(self, publisher: Publisher, error: str) -> None:
        """The publisher has no more lines."""
        async with self.changed:
            publisher.closed = True
            if error:
                self.incomplete.append(error)
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
        waiting = [p for p in self.publishers.values() if not p.closed and not p.lines]
        if self.options.follow:
            return any(p.lines for p in self.publishers.values())
        return not waiting

    def _take(self) -> list[LogLine]:
        taken: list[LogLine] = []
        if self.options.follow:
            for publisher in self.publishers.values():
                taken.extend(publisher.lines)
                publisher.lines.clear()
            return sorted(taken, key=lambda line: line.timestamp_ns)
        while True:
            heads = [p for p in self.publishers.values() if p.lines]
            if not heads or any(not p.closed and not p.lines for p in self.publishers.values()):
                return taken
            earliest = min(heads, key=lambda p: p.lines[0].timestamp_ns)
            taken.append(earliest.lines.popleft())


class LogBroker:
    """All subscriptions and listening nodes of this manager."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._subscriptions: dict[str, Subscription] = {}
        self._listeners: dict[str, asyncio.Queue[Ask]] = {}

    @contextmanager
    def listen(self, node_id: str) -> Iterator[asyncio.Queue[Ask]]:
        """Register a node; it is asked through the queue."""
        queue: asyncio.Queue[Ask] = asyncio.Queue(LISTENER_QUEUE_MAX)
        self._listeners[node_id] = queue
        try:
            yield queue
        finally:
            if self._listeners.get(node_id) is queue:
                del self._listeners[node_id]

    async def subscribe(
        self, selector: Selector, options: LogOptions
    ) -> AsyncIterator[list[LogLine] | str]:
        """Read logs. Raises NotFound for a selector that names nothing; ResourceExhausted."""
        if len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise ResourceExhausted(f"{SUBSCRIPTIONS_MAX} log readers are connected already")
        _check(self._store.view, selector)
        subscription = Subscription(options)
        self._subscriptions[subscription.id] = subscription
        watch = asyncio.create_task(self._ask_nodes(subscription, selector), name="log asks")
        self._ask(subscription, selector)
        try:
            async for news in subscription.read():
                yield news
        finally:
            watch.cancel()
            del self._subscriptions[subscription.id]
            await subscription.abandon()
            self._close(subscription)

    def publisher(self, subscription_id: str, node_id: str) -> tuple[Subscription, Publisher]:
        """The place for a node's lines. Raises NotFound when nobody reads any more."""
        subscription = self._subscriptions.get(subscription_id)
        publisher = None if subscription is None else subscription.publishers.get(node_id)
        if subscription is None or publisher is None:
            raise NotFound("nobody reads these logs any more")
        return subscription, publisher

    def service_of(self, task_id: str, node_id: str) -> str:
        """The service of a task; "" when the task is not on that node."""
        task = self._store.view.tasks.get(task_id)
        return task.service_id if task is not None and task.node_id == node_id else ""

    async def _ask_nodes(self, subscription: Subscription, selector: Selector) -> None:
        """Give up on nodes that never open their stream, and follow new tasks."""
        with self._store.watch() as watcher:
            loop = asyncio.get_running_loop()
            deadline_s = loop.time() + PUBLISHER_WAIT_S
            while subscription.options.follow or loop.time() < deadline_s:
                try:
                    async with asyncio.timeout(0.5):
                        await watcher.next()
                    watcher.take_ready()
                except TimeoutError:
                    pass
                if subscription.options.follow:
                    self._ask(subscription, selector)
                    async with subscription.changed:
                        subscription.changed.notify_all()
        for publisher in subscription.publishers.values():
            if not publisher.opened and not publisher.closed:
                name = _hostname(self._store.view, publisher.node_id)
                await subscription.end(publisher, f"node {name} did not answer in time")

    def _ask(self, subscription: Subscription, selector: Selector) -> None:
        wanted = _wanted(self._store.view, selector)
        for node_id, task_ids in wanted.items():
            new = tuple(sorted(task_ids - subscription.asked))
            if not new:
                continue
            subscription.asked.update(new)
            publisher = subscription.publishers.setdefault(node_id, Publisher(node_id))
            ask = Ask(subscription.id, new, subscription.options)
            if not self._offer(node_id, ask):
                publisher.closed = not subscription.options.follow or publisher.closed
                name = _hostname(self._store.view, node_id)
                subscription.incomplete.append(f"node {name} is not available")

    def _close(self, subscription: Subscription) -> None:
        for node_id in subscription.publishers:
            self._offer(node_id, Ask(subscription.id, close=True))

    def _offer(self, node_id: str, ask: Ask) -> bool:
        queue = self._listeners.get(node_id)
        if queue is None or queue.full():
            return False
        queue.put_nowait(ask)
        return True


def _check(view: View, selector: Selector) -> None:
    if not (selector.services or selector.nodes or selector.tasks):
        raise NotFound("logs: name a service, a node or a task")
    for service in selector.services:
        view.services.resolve(service)
    for node in selector.nodes:
        view.nodes.resolve(node)
    for task in selector.tasks:
        view.tasks.resolve(task)


def _wanted(view: View, selector: Selector) -> Mapping[str, set[str]]:
    """Tasks of the selector that may have logs, by node."""
    tasks: dict[str, Task] = {}
    for reference in selector.services:
        try:
            tasks.update(view.tasks_of_service(view.services.resolve(reference).id))
        except SwarmError:
            continue  # removed while its logs are read
    for reference in selector.nodes:
        try:
            tasks.update(view.tasks_of_node(view.nodes.resolve(reference).id))
        except SwarmError:
            continue
    for reference in selector.tasks:
        try:
            task = view.tasks.resolve(reference)
        except SwarmError:
            continue
        tasks[task.id] = task
    by_node: dict[str, set[str]] = {}
    for task in tasks.values():
        if task.node_id and task.status.state >= TaskState.ASSIGNED:
            by_node.setdefault(task.node_id, set()).add(task.id)
    return by_node


def _hostname(view: View, node_id: str) -> str:
    node = view.nodes.get(node_id)
    return node_id if node is None else node.description.hostname or node_id
