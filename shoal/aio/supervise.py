"""Long-lived tasks that are named, watched and stopped in order.

A Supervisor owns the eternal tasks of one process. A task that fails is logged and started again
after a growing pause, so that one bad input cannot take the daemon down; a broken invariant is
never survived: it ends the whole group, and the process with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from shoal.errors import InvariantViolation

_log = structlog.get_logger()

Result = TypeVar("Result")

RESTART_PAUSE_MIN_S = 0.1
RESTART_PAUSE_MAX_S = 5.0


class Supervisor:
    """Async context that keeps named tasks running until it is left.

    Tasks are cancelled in the reverse order of their start, each awaited before the next.
    """

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving = False
        self._failed: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Open the group."""
        self._failed = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel every task, newest first."""
        self._leaving = True
        try:
            while self._tasks:
                task = self._tasks[-1]
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                del self._tasks[-1]
        finally:  # whoever waits is cancelled as well: the rest is not waited for
            for task in self._tasks:
                task.cancel()
            if self._failed is not None and not self._failed.cancel():
                self._failed.exception()  # it has been logged, whether or not anybody waited

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run `run` for ever under that name; it returns when cancelled or done for good."""
        self._tasks.append(asyncio.create_task(self._keep(name, run), name=name))

    async def wait_failed(self) -> None:
        """Wait until a task broke an invariant, and raise that."""
        if self._failed is not None:
            await asyncio.shield(self._failed)

    async def guard(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await `work`; a broken invariant of a task of the group ends it, and is raised."""
        task = asyncio.ensure_future(work)
        broken = asyncio.ensure_future(self.wait_failed())
        try:
            await asyncio.wait({task, broken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            unfinished = [one for one in (task, broken) if not one.done()]
            for one in unfinished:
                one.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)
        if not broken.cancelled():
            broken.result()
        return task.result()

    async def _keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        pause_s = RESTART_PAUSE_MIN_S
        while True:
            started_s = asyncio.get_running_loop().time()
            try:
                await run()
            except Exception as error:  # noqa: BLE001 - the boundary of a component
                violation = find_violation(error)
                if violation is not None:
                    _log.critical("component.broken", component=name, exc_info=error)
                    if self._failed is not None and not self._failed.done():
                        self._failed.set_exception(violation)
                    return
                _log.error("component.failed", component=name, exc_info=error)
            else:
                return
            if self._leaving:
                return  # its cancellation was lost in what failed
            if asyncio.get_running_loop().time() - started_s > RESTART_PAUSE_MAX_S:
                pause_s = RESTART_PAUSE_MIN_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RESTART_PAUSE_MAX_S)


def find_violation(error: BaseException) -> InvariantViolation | None:
    """The broken invariant that `error` is, or that a task group has wrapped; None without one."""
    if isinstance(error, InvariantViolation):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = (find_violation(one) for one in error.exceptions)
        return next((one for one in found if one is not None), None)
    return None
