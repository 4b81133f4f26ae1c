"""Who waits for what: proposals for their entry to be applied, reads for their index.

A proposal is known by the place of its entry, (index, term): no other entry ever has both.
Invariant: everybody who waits gets an answer, once: the result, or why it may never come.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from manager.store.apply import Commit
from shoal.errors import SwarmError, Unavailable
from shoal.model.objects import StoreEntry

GATHER_BYTES = 64 << 10
"""From this size on a group is worth an append of its own, whatever else is under way."""
UNKNOWN = (
    "this manager lost leadership while the change was under way: it may or may not have been"
    " committed; read the state before trying again"
)


class Proposal:
    """A transaction on its way. term: the only one it may be proposed in, None = any."""

    __slots__ = ("data", "done", "entry", "index", "since_s", "term")

    def __init__(
        self,
        entry: StoreEntry,
        data: bytes,
        term: int | None,
        since_s: float,
        done: asyncio.Future[Commit],
    ) -> None:
        self.entry = entry
        self.data = data
        self.term = term
        self.since_s = since_s
        self.index = 0
        self.done = done

    def refuse(self, error: SwarmError) -> None:
        """Answer with an error; each waiter gets its own object, which collects tracebacks."""
        if not self.done.done():
            self.done.set_exception(type(error)(error.message, **error.context))


class Proposals:
    """Queued, then in the log in order of their index, all of one term."""

    def __init__(self) -> None:
        self._queued: deque[Proposal] = deque()
        self._queued_bytes = 0
        self._logged: deque[Proposal] = deque()
        self._term = 0

    def __len__(self) -> int:
        return len(self._queued) + len(self._logged)

    def should_go(self, committed: int) -> bool:
        """Whether some are queued that should enter the log now. committed: the newest index.

        A few that come while others are on their way to a quorum wait for those, and then go
        together: a round of consensus costs much more than one more entry in it.
        """
        if self._queued_bytes >= GATHER_BYTES:
            return True
        return bool(self._queued) and (not self._logged or self._logged[-1].index <= committed)

    @property
    def oldest_since_s(self) -> float | None:
        """Since when the oldest one waits, on the loop's clock."""
        first = self._logged or self._queued
        return first[0].since_s if first else None

    def queue(self, proposal: Proposal) -> None:
        """It waits to enter the log."""
        self._queued.append(proposal)
        self._queued_bytes += len(proposal.data)

    def take_queued(self, size_bytes_max: int) -> list[Proposal]:
        """Those that enter the log next: at least one, if there is one."""
        group: list[Proposal] = []
        size_bytes = 0
        while self._queued and size_bytes < size_bytes_max:
            proposal = self._queued.popleft()
            size_bytes += len(proposal.data)
            group.append(proposal)
        self._queued_bytes -= size_bytes
        return group

    def logged(self, group: Sequence[Proposal], *, first_index: int, term: int) -> None:
        """These have their places in the log."""
        if term != self._term:
            self.lose(Unavailable(UNKNOWN))
            self._term = term
        for offset, proposal in enumerate(group):
            proposal.index = first_index + offset
        self._logged.extend(group)

    def take(self, index: int, term: int) -> Proposal | None:
        """The proposal whose entry this is, if it was made here."""
        logged = self._logged
        while logged and logged[0].index < index:
            logged.popleft().refuse(Unavailable(UNKNOWN))  # its place was never applied here
        if term != self._term or not logged or logged[0].index != index:
            return None
        return logged.popleft()

    def lose(self, error: SwarmError) -> None:
        """Those in the log will not be answered by it."""
        while self._logged:
            self._logged.popleft().refuse(error)

    def refuse_queued(self, error: SwarmError) -> None:
        """Those that are in no log yet: they are certainly not committed."""
        while self._queued:
            self._queued.popleft().refuse(error)
        self._queued_bytes = 0


class _Reading(NamedTuple):
    at: int
    done: asyncio.Future[None]


class Reads:
    """Reads by the state they are in: new, asked for under a context, waiting for an index."""

    def __init__(self) -> None:
        self.new: list[asyncio.Future[None]] = []
        self._asked: dict[bytes, list[asyncio.Future[None]]] = {}
        self._confirmed: list[_Reading] = []
        self._count = 0

    def __len__(self) -> int:
        asked = sum(len(group) for group in self._asked.values())
        return len(self.new) + asked + len(self._confirmed)

    def ask(self, read_index: Callable[[bytes], None]) -> None:
        """Ask for an index once for all that are new. Raises: what `read_index` raises."""
        self.new = [done for done in self.new if not done.done()]
        if not self.new:
            return
        self._count += 1
        context = self._count.to_bytes(8, "big")
        read_index(context)
        self._asked[context] = self.new
        self.new = []

    def confirm(self, context: bytes, index: int) -> None:
        """These may be served once `index` is applied."""
        self._confirmed.extend(_Reading(index, done) for done in self._asked.pop(context, ()))

    def serve(self, applied: int) -> None:
        """Everything up to `applied` is applied."""
        if not self._confirmed:
            return
        for reading in self._confirmed:
            if reading.at <= applied and not reading.done.done():
                reading.done.set_result(None)
        self._confirmed = [one for one in self._confirmed if not one.done.done()]

    def expire(self) -> None:
        """Forget those that nobody waits for any more."""
        for context, group in list(self._asked.items()):
            if all(done.done() for done in group):
                del self._asked[context]

    def ask_again(self) -> None:
        """The leader changed: those asked for may never be answered."""
        for group in self._asked.values():
            self.new.extend(group)
        self._asked.clear()

    def refuse(self, error: SwarmError) -> None:
        """Nobody is left waiting."""
        self.ask_again()
        waiting = [*self.new, *(reading.done for reading in self._confirmed)]
        self.new, self._confirmed = [], []
        for done in waiting:
            if not done.done():
                done.set_exception(type(error)(error.message, **error.context))
