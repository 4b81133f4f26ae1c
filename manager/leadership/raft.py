"""The Raft driver as leader-only work sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from manager.consensus.driver import Leading, RaftDriver
from manager.consensus.roster import Roster
from manager.leadership.interfaces import Leadership, NoLeader
from manager.leadership.router import ELECTING
from manager.store.apply import Commit
from shoal.aio.observed import Observed
from shoal.model.objects import StoreEntry


def why_no_leader(driver: RaftDriver) -> NoLeader:
    """What to tell people while nobody leads."""
    voters = driver.raft.membership.voters
    if not voters:
        return NoLeader(
            "this manager has not joined the others yet: try again in a moment", is_passing=False
        )
    reachable = sum(1 for voter in voters if driver.is_reachable(voter))
    needed = len(voters) // 2 + 1
    if reachable >= needed:
        return ELECTING
    return NoLeader(
        f"The cluster has lost its quorum: {reachable} of {len(voters)} managers"
        f" {'is' if reachable == 1 else 'are'} reachable, {needed} are needed. Containers run on;"
        " nothing can be changed. Start the other managers, or, if they are lost for good, start"
        " one of those left with `swarmd --force-new-cluster`.",
        is_passing=False,
    )


class RaftConsensus:
    """Implements `Consensus`; `followed` keeps its leadership up to date."""

    def __init__(self, driver: RaftDriver, addresses: Mapping[int, str]) -> None:
        """addresses: where members said they can be reached, when the roster lags behind."""
        self.driver = driver
        self._addresses = addresses
        self._leadership = Observed(Leadership())

    @property
    def leadership(self) -> Observed[Leadership]:
        """Who leads now, and a way to follow it."""
        return self._leadership

    @contextmanager
    def followed(self) -> Iterator[RaftConsensus]:
        """Follow the driver for as long as the context is open."""

        def leading_changed(_: Leading) -> None:
            self._update()

        def roster_changed(_: Roster) -> None:
            self._update()

        with (
            self.driver.leading.watched(leading_changed),
            self.driver.replica.roster.watched(roster_changed),
        ):
            self._update()
            yield self

    async def propose(self, entry: StoreEntry, *, term: int | None = None) -> Commit:
        """`RaftDriver.propose`."""
        return await self.driver.propose(entry, term=term)

    async def read_barrier(self) -> None:
        """`RaftDriver.read_barrier`."""
        await self.driver.read_barrier()

    def _update(self) -> None:
        now, me = self.driver.leading.value, self.driver.raft.id
        address = ""
        if now.leader not in (0, me):
            member = self.driver.roster.members.get(now.leader)
            known = "" if member is None else member.address
            address = self._addresses.get(now.leader, known)
        self._leadership.set(Leadership(term=now.term, address=address, here=now.ready))
