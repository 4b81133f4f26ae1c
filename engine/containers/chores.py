"""What the engine does without being asked: ends, restarts, removals. Each in a task of its own.

A chore that fails is logged and hurts nobody else; one that finds an invariant broken ends the
process, through `wait_broken`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from shoal.aio.supervise import find_violation

_log = structlog.get_logger()


class Chores:
    """The chores under way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do it, now."""
        _ = self.begin(name, work)

    def begin(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do it, now; the task is for cancelling it."""
        task = asyncio.create_task(self._do(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait_broken(self) -> None:
        """Wait until a chore broke an invariant, and raise that."""
        await asyncio.shield(self._broken)

    async def close(self) -> None:
        """Leave all of them as they are: the next start goes on with them."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._broken.cancel():
            self._broken.exception()  # it was logged

    async def _do(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - the boundary of a chore
            violation = find_violation(error)
            if violation is not None and not self._broken.done():
                _log.critical("engine.broken", chore=name, exc_info=error)
                self._broken.set_exception(violation)
                return
            _log.error("engine.chore_failed", chore=name, exc_info=error)
