"""Steps in a thread that nobody may overtake: a cancelled wait does not end a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def in_thread(step: Callable[[], Result]) -> Result:
    """Run it in a thread, to its end also when cancelled: what comes next must find it done."""
    work = asyncio.ensure_future(asyncio.to_thread(step))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        work.exception()  # seen, if nobody's any more
        raise
