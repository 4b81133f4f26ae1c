"""The etcd backend as leader-only work sees it: a leadership's fence is its term."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from manager.etcd.backend import EtcdConsensus
from manager.etcd.election import Leadership as Election
from manager.leadership.interfaces import Leadership
from manager.store.apply import Commit
from shoal.aio.observed import Observed
from shoal.model.objects import StoreEntry


class EtcdLeadership:
    """Implements `Consensus`; `followed` keeps its leadership up to date."""

    def __init__(self, backend: EtcdConsensus) -> None:
        self.backend = backend
        self._leadership = Observed(Leadership())

    @property
    def leadership(self) -> Observed[Leadership]:
        """Who leads now, and a way to follow it."""
        return self._leadership

    @contextmanager
    def followed(self) -> Iterator[EtcdLeadership]:
        """Follow the elections for as long as the context is open."""
        with self.backend.leading.watched(self._update):
            self._update(self.backend.leading.value)
            yield self

    async def propose(self, entry: StoreEntry, *, term: int | None = None) -> Commit:
        """`EtcdConsensus.propose`."""
        return await self.backend.propose(entry, term=term)

    async def read_barrier(self) -> None:
        """`EtcdConsensus.barrier`."""
        await self.backend.barrier()

    def _update(self, now: Election) -> None:
        address = "" if now.leader else now.leader_address
        self._leadership.set(Leadership(term=now.fence, address=address, here=now.leader))
