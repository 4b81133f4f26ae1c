"""The newest news of the session, for those who follow them: swarmd, over the worker's socket.

Followers get the newest at once and then every change; one that is slow misses what was replaced
in between, never the newest. News end with the node's membership.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from shoal.aio.signal import Signal
from worker.agent.client import SessionNews


class NewsBoard:
    """One value, replaced by each message of a session."""

    def __init__(self) -> None:
        self._newest: SessionNews | None = None
        self._signals: set[Signal] = set()

    def put(self, news: SessionNews) -> None:
        """Replace the news."""
        self._newest = news
        for signal in self._signals:
            signal.set()

    def clear(self) -> None:
        """The node is in no cluster any more: there is nothing to say."""
        self._newest = None

    async def follow(self) -> AsyncGenerator[SessionNews, None]:
        """The newest, if there is one, then each that replaces it, until closed."""
        signal = Signal()
        self._signals.add(signal)
        last: SessionNews | None = None
        try:
            while True:
                newest = self._newest
                if newest is not None and newest is not last:
                    last = newest
                    yield newest
                    await asyncio.sleep(0)
                    continue
                await signal.wait()
        finally:
            self._signals.discard(signal)
