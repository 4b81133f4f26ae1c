"""Which indexes and terms the log holds, by Raft's rules of overwriting. Pure.

One owner keeps it in step with the records: replay and the running log use the same rules, so
they cannot disagree. Terms are kept as runs, a few bytes however long the log is.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Self

from shoal.errors import FailedPrecondition


class LogShape:
    """Entries `first` to `last` (none when `last == first - 1`) and the term of each."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.last = first - 1
        self._runs: list[tuple[int, int]] = []  # (first index of the run, term), ascending

    def copy(self) -> Self:
        """An independent copy."""
        other = type(self)(self.first)
        other.last = self.last
        other._runs = list(self._runs)
        return other

    def term(self, index: int) -> int | None:
        """The term of entry `index`; None when the log does not hold it."""
        if not self.first <= index <= self.last:
            return None
        return self._runs[bisect_right(self._runs, index, key=lambda run: run[0]) - 1][1]

    def append(self, index: int, term: int) -> None:
        """Add an entry; one at or before `last` first drops the entries from there on.

        Raises: FailedPrecondition when entries before it are missing.
        """
        if index > self.last + 1:
            raise FailedPrecondition(
                f"entry {index}: the log ends at {self.last}; entries must follow one another"
            )
        if index <= self.last:
            self._truncate(index)
        self.last = index
        if not self._runs or self._runs[-1][1] != term:
            self._runs.append((index, term))

    def mark(self, index: int, term: int) -> bool:
        """Note a snapshot; True when its log conflicts, so that all entries were dropped."""
        if index < self.first or self.term(index) == term:
            return False
        self.first, self.last, self._runs = index + 1, index, []
        return True

    def _truncate(self, index: int) -> None:
        self.first = min(self.first, index)
        while self._runs and self._runs[-1][0] >= index:
            self._runs.pop()
