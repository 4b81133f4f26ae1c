"""A signal that wakes one waiter: many `set`s before a `wait` count as one."""

from __future__ import annotations

import asyncio


class Signal:
    """Level-triggered wake-up for a loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the waiter, now or when it next waits."""
        self._event.set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a `set` since the last wait. Result: False when the time ran out first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True
