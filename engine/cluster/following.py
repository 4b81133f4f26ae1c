"""Events of the cluster for the node's readers, while the node is a manager.

The store's changes are followed and told as events. A watch that breaks goes on where it was, at
whichever manager leads by then, so nothing is missed or told twice; where that cannot be, it goes
on from now and says so in the log. Tasks are watched only while a reader wants them: in a large
cluster they are most of what happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import structlog

from engine.cluster.watch_calls import WatchCalls
from engine.ports import Event, Events
from shoal.aio.backoff import Backoff
from shoal.aio.observed import Observed
from shoal.api.v1 import watch_pb2
from shoal.docker.events import KINDS, TASK, cluster_event
from shoal.errors import FailedPrecondition, SwarmError
from shoal.model.enums import ActionKind
from shoal.wire.objects import object_from_pb

ASK_PERIOD_S = 1.0
"""Between looks whether the node has become a manager."""
IN_PLACE_WITHIN_S = 5.0
"""How long a reader of tasks waits for their watch; without one its stream begins all the same."""

_log = structlog.get_logger()


class ClusterEvents:
    """Give `run` to a supervisor."""

    def __init__(self, cluster: WatchCalls, events: Events) -> None:
        self._objects = _Follower(cluster, events, tuple(kind for kind in KINDS if kind != TASK))
        self._tasks = _Follower(cluster, events, (TASK,))
        self._readers = Observed(0)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._objects.run(), name="cluster events")
            group.create_task(self._tell_of_tasks(), name="events of tasks")

    @asynccontextmanager
    async def telling_of_tasks(self) -> AsyncIterator[None]:
        """Tasks are watched while inside."""
        self._readers.set(self._readers.value + 1)
        try:
            await self._tasks.wait_in_place()
            yield
        finally:
            self._readers.set(self._readers.value - 1)

    async def _tell_of_tasks(self) -> None:
        while True:
            await self._readers.until(lambda count: count > 0)
            follow = asyncio.create_task(self._tasks.run(), name="watch of tasks")
            unread = asyncio.create_task(self._readers.until(lambda count: not count))
            try:
                await asyncio.wait((follow, unread), return_when=asyncio.FIRST_COMPLETED)
                if follow.done():
                    follow.result()
            finally:
                follow.cancel()
                unread.cancel()
                await asyncio.gather(follow, unread, return_exceptions=True)
                self._tasks.forget()


class _Follower:
    """Tells of some kinds."""

    def __init__(self, cluster: WatchCalls, events: Events, kinds: tuple[str, ...]) -> None:
        self._cluster = cluster
        self._events = events
        self._kinds = kinds
        self._version = 0  # told up to here; 0: to be told from now on
        self._in_place = Observed(False)

    def forget(self) -> None:
        """What comes next begins with what happens from then on."""
        self._version = 0
        self._in_place.set(False)

    async def wait_in_place(self) -> None:
        """Wait for the watch, for as long as that is worth it."""
        try:
            if not await self._is_manager():
                return
            async with asyncio.timeout(IN_PLACE_WITHIN_S):
                await self._in_place.until(bool)
        except (TimeoutError, SwarmError):
            return

    async def run(self) -> None:
        """Until cancelled."""
        backoff = Backoff()
        while True:
            try:
                if await self._is_manager():
                    await self._follow(backoff)
                else:
                    self.forget()
            except FailedPrecondition as error:
                if self._version:
                    _log.warning(
                        "cluster_events.lost", after=self._version, reason=error.message,
                        remedy="read again what events had told of",
                    )  # fmt: skip
                self.forget()
            except SwarmError as error:
                _log.debug("cluster_events.interrupted", reason=error.message)
            await asyncio.sleep(backoff.next_s() if self._version else ASK_PERIOD_S)

    async def _is_manager(self) -> bool:
        return not (await self._cluster.standing()).refusal

    async def _follow(self, backoff: Backoff) -> None:
        async with aclosing(self._cluster.watch(self._kinds, self._version)) as messages:
            async for message in messages:
                backoff.reset()
                for event in message.events:
                    self._tell(event)
                self._version = message.version.index
                self._in_place.set(True)

    def _tell(self, change: watch_pb2.WatchEvent) -> None:
        old = object_from_pb(change.old_object) if change.HasField("old_object") else None
        found = cluster_event(ActionKind(change.action), object_from_pb(change.object), old)
        if found is not None:
            self._events.publish(
                Event(
                    type=found.type,
                    action=found.action,
                    actor=found.actor,
                    attributes=found.attributes,
                    time_ns=found.time_ns,
                    scope="swarm",
                )
            )
