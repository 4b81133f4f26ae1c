"""Progress of pulls, pushes and loads: from steps as they happen to what a client reads.

A client that reads slowly must not slow the work down: of the steps between two states only as many
wait as fit, the rest is dropped. The words and bars are Docker's (moby pkg/jsonmessage).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from worker.images.registry.api import Step

STEPS_MAX = 1024
BAR_WIDTH = 50

T = TypeVar("T")


class Sink(Protocol):
    """Where lines of progress go: an answer, or a build's output."""

    async def put(self, value: Mapping[str, Any]) -> None:
        """One more; waits while the client does not read."""
        ...


async def relayed(out: Sink, work: Callable[[Callable[[Step], None]], Awaitable[T]]) -> T:
    """Do the work and tell its steps. Cancelled with the client, the work is cancelled, too."""
    steps: asyncio.Queue[Step | None] = asyncio.Queue(STEPS_MAX)

    def tell(step: Step) -> None:
        if steps.qsize() < STEPS_MAX - 1:
            steps.put_nowait(step)

    async def worked() -> T:
        try:
            return await work(tell)
        finally:
            steps.put_nowait(None)

    task = asyncio.ensure_future(worked())
    try:
        while (step := await steps.get()) is not None:
            await out.put(worded(step))
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def worded(step: Step) -> dict[str, Any]:
    """One line of progress. Those of a layer always have `progressDetail`."""
    words: dict[str, Any] = {"status": step.status}
    if step.current or step.total:
        words["progressDetail"] = {"current": step.current, "total": step.total}
        words["progress"] = bar(step.current, step.total)
    elif step.id and not step.whole:
        words["progressDetail"] = {}
    if step.id:
        words["id"] = step.id
    return words


def bar(current: int, total: int) -> str:
    """`[====>    ]  1.2MB/5MB`."""
    if total <= 0:
        return f"{size(current):>8}"
    done = min(int(current / total * 100) // 2, BAR_WIDTH)
    box = f"[{'=' * done}>{' ' * (BAR_WIDTH - done)}] "
    if current > total:
        return f"{box}{size(current):>8}"
    return f"{box}{size(current):>8}/{size(total)}"


def size(count: int) -> str:
    """Bytes with four digits, in powers of a thousand."""
    value, units = float(count), iter(("B", "kB", "MB", "GB", "TB", "PB", "EB"))
    unit = next(units)
    while value >= 1000.0:
        value, unit = value / 1000.0, next(units)
    return f"{value:.4g}{unit}"
