"""Joins log readers with the nodes that hold the logs.

A reader subscribes with a selector; the broker asks every node that has tasks of it, and each of
those opens one publishing stream. With `follow` nodes that get new tasks of the selector are asked
as well, and nodes that come back are asked for what came after their last line. A slow reader
slows the publishers, through gRPC's flow control.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager

from manager.logbroker.subscription import (
    Ask,
    Listener,
    LogLine,
    LogOptions,
    Publisher,
    Subscription,
)
from manager.store.store import Store
from manager.store.view import View
from shoal.aio.signal import Signal
from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SwarmError,
)
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from shoal.model.row import Row

SUBSCRIPTIONS_MAX = 256
SELECTED_MAX = 256
PUBLISHER_WAIT_S = 5.0
"""How long an asked node may take to open its stream."""
FOLLOW_PAUSE_S = 0.2
"""Changes of tasks within this time are looked at together."""


class Selector(Row, frozen=True):
    """Whose logs: services, nodes and tasks by id or name; OR-ed."""

    services: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()


class LogBroker:
    """All subscriptions and listening nodes of this manager."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._subscriptions: dict[str, Subscription] = {}
        self._listeners: dict[str, Listener] = {}
        self._arrived: dict[str, Signal] = {}

    @contextmanager
    def listen(self, node_id: str) -> Iterator[Listener]:
        """Register a node, in place of its older stream; it is asked through the listener."""
        listener = Listener()
        previous = self._listeners.get(node_id)
        self._listeners[node_id] = listener
        if previous is not None:
            previous.end()
        for arrived in self._arrived.values():
            arrived.set()
        try:
            yield listener
        finally:
            if self._listeners.get(node_id) is listener:
                del self._listeners[node_id]

    def forget(self, node_id: str) -> None:
        """The node was removed from the cluster: its stream ends."""
        listener = self._listeners.pop(node_id, None)
        if listener is not None:
            listener.end()

    async def subscribe(
        self, selector: Selector, options: LogOptions
    ) -> AsyncGenerator[list[LogLine] | str, None]:
        """Read logs. Raises NotFound for a selector that names nothing; ResourceExhausted."""
        if len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise ResourceExhausted(
                f"{SUBSCRIPTIONS_MAX} log readers are connected already: try again later"
            )
        _check(self._store.view, selector)
        subscription = Subscription(options)
        self._subscriptions[subscription.id] = subscription
        self._arrived[subscription.id] = Signal()
        self._ask(subscription, selector)
        asking = [asyncio.create_task(self._give_up(subscription), name="log patience")]
        if options.follow:
            follow = self._follow(subscription, selector)
            asking.append(asyncio.create_task(follow, name="log asks"))
        try:
            async for news in subscription.read():
                yield news
        finally:
            del self._subscriptions[subscription.id]
            del self._arrived[subscription.id]
            for task in asking:
                task.cancel()
            self._close(subscription)
            await subscription.abandon()
            await asyncio.gather(*asking, return_exceptions=True)

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

    async def _give_up(self, subscription: Subscription) -> None:
        await asyncio.sleep(PUBLISHER_WAIT_S)
        await subscription.give_up_silent(lambda node_id: _hostname(self._store.view, node_id))

    async def _follow(self, subscription: Subscription, selector: Selector) -> None:
        """Ask nodes that get tasks of the selector, and those that come back."""
        arrived = self._arrived[subscription.id]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_tasks(arrived))
            while True:
                await arrived.wait()
                self._ask(subscription, selector)
                async with subscription.changed:
                    subscription.changed.notify_all()
                await asyncio.sleep(FOLLOW_PAUSE_S)

    async def _watch_tasks(self, changed: Signal) -> None:
        while True:
            with self._store.watch() as watcher:
                try:
                    async for commit in watcher:
                        if any(isinstance(event.subject, Task) for event in commit.events):
                            changed.set()
                except FailedPrecondition:
                    changed.set()  # commits were missed: look at all tasks, and watch anew

    def _ask(self, subscription: Subscription, selector: Selector) -> None:
        """Ask nodes for tasks they have not been asked for since they last came back."""
        for node_id, task_ids in _wanted(self._store.view, selector).items():
            listener = self._listeners.get(node_id)
            publisher = subscription.publishers.get(node_id)
            if publisher is None or (listener is not None and listener is not publisher.listener):
                publisher = Publisher(node_id, listener, before=publisher)
                subscription.publishers[node_id] = publisher
            new = tuple(sorted(task_ids - publisher.asked))
            if not new or publisher.closed:
                continue
            publisher.asked.update(new)
            options = subscription.options.after(publisher.resume_ns)
            if listener is None or not listener.offer(Ask(subscription.id, new, options)):
                name = _hostname(self._store.view, node_id)
                subscription.lose(publisher, f"node {name} is not available")

    def _close(self, subscription: Subscription) -> None:
        for publisher in subscription.publishers.values():
            if publisher.listener is not None:
                publisher.listener.offer(Ask(subscription.id, close=True))


def _check(view: View, selector: Selector) -> None:
    selected = len(selector.services) + len(selector.nodes) + len(selector.tasks)
    if not selected:
        raise InvalidArgument("logs: name a service, a node or a task")
    if selected > SELECTED_MAX:
        raise InvalidArgument(f"logs: {selected} names, at most {SELECTED_MAX}")
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
