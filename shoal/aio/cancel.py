"""A cancellation that gets lost, found again.

grpc.aio waits for its own inner task and drops the cancellation that meets it there: a call whose
end arrives at the same moment raises how it ended instead. A loop that tries again after errors
would then go on for ever, and whoever cancelled it would wait for ever.

Up to Python 3.12 a TaskGroup that one of its tasks ends leaves the task it is in looking cancelled.
Where an attempt may hold one, it is made `apart`, so that only true cancellations are found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

ResultT = TypeVar("ResultT")


async def apart(work: Awaitable[ResultT]) -> ResultT:
    """Await in a task of its own, which ends before this does; a cancellation goes on to it."""

    async def run() -> ResultT:
        return await work

    return await asyncio.create_task(run())


def raise_if_cancelled() -> None:
    """Raise CancelledError when somebody wants the running task to end.

    For loops that try again after an error of a call: before they do.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
