"""`docker container prune`: removes what has ended, as far as the filters want."""

from __future__ import annotations

from typing import NamedTuple

from engine.containers import selection
from engine.containers.directory import Directory
from engine.containers.lifecycle import Lifecycle
from engine.containers.service import Containers
from engine.http.errors import Refused
from engine.http.filters import Filters
from engine.ports import Event, Events
from shoal.clock import Clock
from shoal.errors import NotFound

ACCEPTED = frozenset(("label", "label!", "until"))


class Pruned(NamedTuple):
    """What was removed, and the bytes its writable layers took."""

    ids: list[str]
    bytes: int


class Pruner:
    """Removes one container after the other; those that start meanwhile are passed over."""

    def __init__(
        self,
        containers: Containers,
        lifecycle: Lifecycle,
        directory: Directory,
        events: Events,
        clock: Clock,
    ) -> None:
        self._containers = containers
        self._lifecycle = lifecycle
        self._directory = directory
        self._events = events
        self._clock = clock

    async def prune(self, filters: Filters) -> Pruned:
        """Raises: InvalidArgument."""
        until_ns = selection.until_ns(filters, self._clock.now_ns())
        removed, freed = [], 0
        for container in self._containers.all():
            record = container.record
            labels = record.config.labels or {}
            if container.running or container.task or record.removing:
                continue
            if until_ns is not None and record.created_at_ns > until_ns:
                continue
            if not filters.matches_labels(labels) or not filters.lacks_labels(labels):
                continue
            try:
                size, _ = await self._directory.sizes(container.id)
                await self._lifecycle.remove(container.id)
            except (NotFound, Refused):
                continue
            removed.append(container.id)
            freed += size
        self._events.publish(Event("container", "prune", "", {"reclaimed": str(freed)}))
        return Pruned(removed, freed)
