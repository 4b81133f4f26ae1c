"""A cancellation that gets lost, found again.

grpc.aio waits for its own inner task and drops the cancellation that meets it there: a call whose
end arrives at the same moment raises how it ended instead. A loop that tries again after errors
would then go on for ever, and whoever cancelled it would wait for ever.
"""

from __future__ import annotations

import asyncio


def raise_if_cancelled() -> None:
    """Raise CancelledError when somebody wants the running task to end.

    For loops that try again after an error of a call: before they do.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
