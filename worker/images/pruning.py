"""Keep the disk of the image store below its high water mark: the loop around `water`.

First goes what nobody refers to: leftovers and unfinished downloads; then images. What cannot be
removed after all, because somebody has just begun to use it, is passed over until the next round.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog
from prometheus_client import Counter, Gauge

from shoal.clock import NS_PER_S, Clock
from shoal.errors import SwarmError
from shoal.telemetry.metrics import REGISTRY
from worker.images.store import ImageStore, Users
from worker.images.water import Marks, is_too_full, next_victim

PERIOD_S = 60.0
PARTIAL_AGE_S = 24 * 3600.0
"""Unfinished downloads nobody has gone on with for so long go in any case."""

COLLECTED = Counter(
    "shoal_images_collected", "Images removed because the disk was too full", registry=REGISTRY
)
USED = Gauge(
    "shoal_images_disk_used_ratio", "Used share of the image store's disk", registry=REGISTRY
)

_log = structlog.get_logger()


class Space(NamedTuple):
    """Bytes of a file system, as far as this store may use it."""

    used_bytes: int
    usable_bytes: int

    @property
    def used_percent(self) -> float:
        """As `df` shows it."""
        return 100.0 * self.used_bytes / max(self.usable_bytes, 1)


class Collector:
    """users: the containers and tasks that need images, by the image's id."""

    def __init__(
        self, store: ImageStore, users: Callable[[], Awaitable[Users]], marks: Marks, clock: Clock
    ) -> None:
        self._store = store
        self._users = users
        self._marks = marks
        self._clock = clock

    async def run(self) -> None:
        """Look every PERIOD_S, for ever."""
        while True:
            await self.collect()
            await asyncio.sleep(PERIOD_S)

    async def collect(self) -> tuple[str, ...]:
        """One round. Result: ids of the images that went. Raises: OSError."""
        now_ns = self._clock.now_ns()
        await self._store.drop_partials(now_ns / NS_PER_S - PARTIAL_AGE_S)
        gone: list[str] = []
        if not await self._is_too_full(collecting=False):
            return ()
        await self._store.gc()
        await self._store.drop_partials(now_ns / NS_PER_S - PERIOD_S)
        passed_over: set[str] = set()
        while await self._is_too_full(collecting=True):
            users = await self._users()
            needed = {*users, *self._store.leased, *passed_over}
            victim = next_victim(self._store.index, needed, now_ns)
            if victim is None:
                _log.warning("images.disk_too_full", high_percent=self._marks.high)
                break
            try:
                await self._store.remove(victim.id, users=users, force=True)
            except SwarmError as error:
                _log.info("images.not_collected", image=victim.id, reason=error.message)
                passed_over.add(victim.id)
                continue
            COLLECTED.inc()
            gone.append(victim.id)
        return tuple(gone)

    async def _is_too_full(self, *, collecting: bool) -> bool:
        space = await asyncio.to_thread(measure, self._store.root)
        USED.set(space.used_percent / 100.0)
        return is_too_full(space.used_percent, self._marks, collecting=collecting)


def measure(path: os.PathLike[str]) -> Space:
    """How full the file system of `path` is, without what is reserved for root. Blocking."""
    found = os.statvfs(path)
    used = found.f_blocks - found.f_bfree
    return Space(used * found.f_frsize, (used + found.f_bavail) * found.f_frsize)
