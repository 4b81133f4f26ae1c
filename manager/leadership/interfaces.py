"""What leader-only work needs of a consensus backend."""

from __future__ import annotations

from typing import Protocol

import msgspec

from manager.store.apply import Commit
from shoal.aio.observed import Observed
from shoal.model.objects import StoreEntry


class Leadership(msgspec.Struct, frozen=True):
    """Who leads, as one manager knows it.

    term: rises with every change of the leader. address: HOST:PORT of another manager that leads,
    "" when there is none. here: this manager leads, and its state holds all that was ever
    acknowledged.
    """

    term: int = 0
    address: str = ""
    here: bool = False


class NoLeader(msgspec.Struct, frozen=True):
    """Why nobody leads, for people. is_passing: one is being chosen, so waiting may help."""

    reason: str
    is_passing: bool


class Consensus(Protocol):
    """Raft, or what stands for it."""

    @property
    def leadership(self) -> Observed[Leadership]:
        """Who leads now, and a way to follow it."""
        ...

    async def propose(self, entry: StoreEntry, *, term: int | None = None) -> Commit:
        """Commit an entry; with a term, only while this manager leads that one."""
        ...

    async def read_barrier(self) -> None:
        """Return when the state holds everything acknowledged before. Raises: Unavailable."""
        ...
