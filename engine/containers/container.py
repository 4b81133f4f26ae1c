"""One container as the engine sees it: its record, what the runtime says of it, who waits for it.

Mutable; owned by `Containers`, changed on the event loop only. Changes that take more than one step
hold `lock`, so that a start never meets a removal half-way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.containers.records import Record
from engine.ports import ContainerState
from worker.health.core import Health
from worker.runtime.api import ContainerStatus

_RANKS = {"created": 0, "running": 1, "exited": 2}


class Container:
    """Whoever must know of a change waits with `until`."""

    def __init__(
        self, record: Record, status: ContainerStatus | None = None, *, task: bool = False
    ) -> None:
        """task: made by the agent; the engine only shows it."""
        self.record = record
        self.status = status
        self.task = task
        self.lock = asyncio.Lock()
        self.writing = asyncio.Lock()
        """Held while its record is written."""
        self.health: Health | None = None
        self.restarting = False
        self.ending = False
        """Its process is gone, its end is not dealt with yet."""
        self.restarts_in_a_row = 0
        self.pause_s = 0.0
        self.removed = False
        self.exec_ids: tuple[str, ...] = ()
        self.ends = 0
        """How often it has come to an end it was not started again from."""
        self.followers = 0
        """Who follows its log: they get its last lines before it is removed."""
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def id(self) -> str:
        """64 hexadecimal digits, or a task's id."""
        return self.record.id

    @property
    def name(self) -> str:
        """Without a slash."""
        return self.record.name

    @property
    def state(self) -> ContainerState:
        """Docker's word for what it is doing."""
        status, record = self.status, self.record
        if record.removing:
            return "removing"
        if record.dead:
            return "dead"
        if self.restarting:
            return "restarting"
        if status is not None and status.state == "running":
            return "paused" if status.paused else "running"
        return "exited" if self.has_run else "created"

    @property
    def has_run(self) -> bool:
        """Whether its program has ever run."""
        status = self.status
        return self.record.started or (
            self.task and status is not None and status.started_at_ns > 0
        )

    @property
    def has_process(self) -> bool:
        """Whether its first process lives."""
        return self.status is not None and self.status.state == "running"

    @property
    def running(self) -> bool:
        """As Docker counts: also while it ends, and while it waits to be started again."""
        return self.has_process or self.restarting or self.ending

    @property
    def is_unsettled(self) -> bool:
        """Whether it has ended and nobody has dealt with that."""
        status = self.status
        return (
            status is not None
            and status.state == "exited"
            and status.started_at_ns != self.record.settled_ns
        )

    @property
    def exit_code(self) -> int:
        """Of its last end or failed start; 0 while it runs."""
        if self.record.failure:
            return self.record.failure_code
        return 0 if self.status is None else self.status.exit_code

    def take(self, status: ContainerStatus) -> bool:
        """Believe the runtime, unless it is old news. Result: whether the state has changed."""
        before = self.status
        after = self.status = newer(before, status)
        return before is None or before.state != after.state

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Somebody follows its log."""
        self.followers += 1
        try:
            yield
        finally:
            self.followers -= 1
            self.wake()

    def wake(self) -> None:
        """Something has changed: those who wait look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, wanted: Callable[[], bool]) -> None:
        """Return when `wanted` holds."""
        while not wanted():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)


def newer(known: ContainerStatus | None, told: ContainerStatus) -> ContainerStatus:
    """The later of two, as answers and events may overtake each other."""
    if known is None:
        return told
    ours = known.started_at_ns, _RANKS[known.state]
    theirs = told.started_at_ns, _RANKS[told.state]
    return known if ours > theirs else told
