"""The one place where time enters. Decisions take `now` as an argument and never read a clock."""

from __future__ import annotations

import time
from typing import Protocol

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000


class Clock(Protocol):
    """Two clocks: wall time for people and records, monotonic time for intervals."""

    def now_ns(self) -> int:
        """Wall time, nanoseconds since 1970-01-01 UTC."""
        ...

    def monotonic_s(self) -> float:
        """Seconds on a clock that never jumps; only differences mean anything."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        """Wall time, nanoseconds since 1970-01-01 UTC."""
        return time.time_ns()

    def monotonic_s(self) -> float:
        """Seconds on a clock that never jumps."""
        return time.monotonic()


class SteadyClock:
    """Wall time that never goes back: where it would, it goes on at the pace of the other clock.

    For decisions that add a delay to a moment in the record: a clock that is set back must not
    make them wait for as long as it was set back. Set forward, it is followed at once.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_ns = clock.now_ns()
        self._last_s = clock.monotonic_s()

    def now_ns(self) -> int:
        """Wall time, or more, nanoseconds since 1970-01-01 UTC."""
        now_s = self._clock.monotonic_s()
        least_ns = self._last_ns + int((now_s - self._last_s) * NS_PER_S)
        self._last_ns, self._last_s = max(self._clock.now_ns(), least_ns), now_s
        return self._last_ns

    def monotonic_s(self) -> float:
        """Seconds on a clock that never jumps."""
        return self._clock.monotonic_s()
