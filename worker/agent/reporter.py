"""Task reports on their way to the managers: the newest of each task, merged, never lost.

Reports below RUNNING wait a moment for the next one of the same task, since a fast start passes
four states in a few milliseconds; RUNNING and the end of a task go out at once. What was not
acknowledged is sent again, in this session or the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from shoal.aio.signal import Signal
from shoal.model.enums import TaskState
from shoal.model.types import TaskStatus

UPDATES_MAX = 1024
MERGE_S = 0.05

Send = Callable[[Mapping[str, TaskStatus]], Awaitable[None]]


class Reporter:
    """Holds at most one report per task of this node."""

    def __init__(self) -> None:
        self._pending: dict[str, TaskStatus] = {}
        self._signal = Signal()
        self._urgent = asyncio.Event()

    def report(self, task_id: str, status: TaskStatus) -> None:
        """A task has a new status."""
        self._pending[task_id] = status
        if status.state >= TaskState.RUNNING or status.error:
            self._urgent.set()
        self._signal.set()

    def forget(self, task_id: str) -> None:
        """The task is no longer this node's."""
        self._pending.pop(task_id, None)

    async def run(self, send: Send) -> None:
        """Send reports with `send` for ever; what it raises ends the run and loses nothing."""
        while True:
            if not self._pending:
                await self._signal.wait()
                await self._merge()
            self._urgent.clear()
            batch = dict(list(self._pending.items())[:UPDATES_MAX])
            if batch:
                await send(batch)
            for task_id, status in batch.items():
                if self._pending.get(task_id) is status:
                    del self._pending[task_id]

    async def _merge(self) -> None:
        try:
            async with asyncio.timeout(MERGE_S):
                await self._urgent.wait()
        except TimeoutError:
            pass
