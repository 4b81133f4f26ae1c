"""Which manager to open the next session with. Pure: the draw of a random number is an argument.

Those that failed least come first; among them, one is drawn by its weight, which the managers set
(the one that leads has the largest, one that cannot be reached none). One without a weight is
tried when all others have failed twice. The one that failed last is not the next while another can
be reached, whatever that one did long ago: what ended the session may end the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

UNREACHABLE_FAILURES = 2
FAILURES_MAX = 1_000


class Remotes:
    """The managers this node knows; never empty once it knew one."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._weights: dict[str, int] = dict.fromkeys(addresses, 1)
        self._failures: dict[str, int] = {}
        self._last_failed = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """All of them, in the order the managers name them."""
        return tuple(self._weights)

    def learn(self, weights: Mapping[str, int]) -> None:
        """The managers are these from now on; nothing changes if there are none."""
        if weights:
            self._weights = dict(weights)
            known = self._failures.items()
            self._failures = {at: count for at, count in known if at in self._weights}

    def choose(self, draw: float) -> str:
        """The one to try next. draw: 0 up to 1."""
        others = [at for at in self._weights if at != self._last_failed]
        eligible = others if any(self._weights[at] > 0 for at in others) else list(self._weights)
        least = min(map(self._rank, eligible))
        best = [at for at in eligible if self._rank(at) == least]
        left = draw * sum(self._share(at) for at in best)
        for address in best:
            left -= self._share(address)
            if left < 0:
                return address
        return best[-1]

    def failed(self, address: str) -> None:
        """No session, or it was lost."""
        self._last_failed = address
        self._failures[address] = min(self._failures.get(address, 0) + 1, FAILURES_MAX)

    def answers(self, address: str) -> None:
        """It can be reached again: what it failed before, it failed for that."""
        self._failures.pop(address, None)

    def succeeded(self, address: str) -> None:
        """A session was opened."""
        self._failures.pop(address, None)
        self._last_failed = ""

    def _rank(self, address: str) -> int:
        unreachable = 0 if self._weights[address] > 0 else UNREACHABLE_FAILURES
        return self._failures.get(address, 0) + unreachable

    def _share(self, address: str) -> int:
        return max(self._weights[address], 1)
