"""A value that others follow: callbacks for those who must act at once, `until` for the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class Observed(Generic[ValueT]):
    """One owner sets it, on the event loop; equal values tell nobody anything."""

    def __init__(self, value: ValueT) -> None:
        self._value = value
        self._callbacks: list[Callable[[ValueT], None]] = []
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def value(self) -> ValueT:
        """The value now."""
        return self._value

    def set(self, value: ValueT) -> None:
        """Replace the value; the callbacks have run when this returns."""
        if value == self._value:
            return
        self._value = value
        for callback in tuple(self._callbacks):
            callback(value)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    @contextmanager
    def watched(self, callback: Callable[[ValueT], None]) -> Iterator[None]:
        """Call back with every new value, at once, for as long as the context is open."""
        self._callbacks.append(callback)
        try:
            yield
        finally:
            self._callbacks.remove(callback)

    async def until(self, wanted: Callable[[ValueT], bool]) -> ValueT:
        """Wait until the value is a wanted one; values in between may be missed."""
        while not wanted(self._value):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self._value
