"""What the reconcile loop has to look at, and when: its only memory.

Timers belong to services: a round that did not examine a service says nothing about its timers, so
they are kept here until they are due or the service is examined again. Losing an agenda is
harmless: a new one starts with everything dirty.
"""

from __future__ import annotations

from manager.reconcile.dirty import EVERYTHING, NOTHING, Dirty
from manager.reconcile.plan import Round


class Agenda:
    """Dirty keys and timers. Call `take`, plan, commit, then `finish` or, on conflict, `add`."""

    def __init__(self) -> None:
        self._dirty = EVERYTHING
        self._wake_by_service: dict[str, int] = {}

    @property
    def wake_at_ns(self) -> int | None:
        """The earliest timer, wall time in nanoseconds."""
        return min(self._wake_by_service.values(), default=None)

    def add(self, dirty: Dirty) -> None:
        """Something changed, or could not be committed."""
        self._dirty = self._dirty.union(dirty)

    def take(self, now_ns: int) -> Dirty:
        """Everything to look at now; empty when there is nothing."""
        due = frozenset(
            service_id for service_id, at_ns in self._wake_by_service.items() if at_ns <= now_ns
        )
        dirty = self._dirty.union(Dirty(services=due))
        self._dirty = NOTHING
        return dirty

    def finish(self, taken: Dirty, done: Round) -> None:
        """A round is committed (or had nothing to commit): note its timers and what it left."""
        if taken.everything:
            self._wake_by_service.clear()
        for service_id in taken.services:
            self._wake_by_service.pop(service_id, None)
        self._wake_by_service.update(done.wakes)
        self.add(done.rest)
