"""Pauses between attempts: doubling, capped, spread by a caller-given random number."""

from __future__ import annotations


class Backoff:
    """Pauses 0.1, 0.2, 0.4 ... up to `max_s` seconds; `reset` after a success."""

    def __init__(self, *, min_s: float = 0.1, max_s: float = 8.0) -> None:
        self._min_s = min_s
        self._max_s = max_s
        self._next_s = min_s

    def next_s(self, spread: float = 0.5) -> float:
        """The next pause, seconds. spread: 0..1, takes away up to half of the pause."""
        pause_s = self._next_s * (1 - spread / 2)
        self._next_s = min(self._next_s * 2, self._max_s)
        return pause_s

    def reset(self) -> None:
        """Start again with the shortest pause."""
        self._next_s = self._min_s
