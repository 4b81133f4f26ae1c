"""The store's tables as a mirror of what is in etcd: read once, then followed by a watch.

A revision is applied whole or not at all, in order, each once; whoever waits for one sees the store
at it or later. What the watch shows must fit what we hold (created where nothing was, changed from
the version we have): if not, or when etcd has dropped the history we need, everything is read anew
and every watcher of the store is told to resync. Values that are not ours end the process.
"""

from __future__ import annotations

import asyncio
import heapq
from itertools import count

import structlog

from manager.etcd.client import EtcdClient, Watch
from manager.etcd.core import make_event, table
from manager.etcd.errors import Compacted
from manager.etcd.keys import Keys
from manager.etcd.metrics import RESYNCS
from manager.etcd.watching import Revision
from manager.store.apply import Commit, StoreEvent
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.aio.backoff import Backoff
from shoal.aio.cancel import raise_if_cancelled
from shoal.errors import DeadlineExceeded, Unavailable
from shoal.etcd.v1 import rpc_pb2 as pb
from shoal.model.objects import AnyObject

APPLY_SLICE_S = 0.01
"""Applying yields to the event loop after this long."""
LOADS_MAX = 5
"""Tries to read everything within etcd's history, one after the other."""
RETRY_PAUSE_MAX_S = 1.0

_log = structlog.get_logger()


class _Gap(Exception):
    """The watch does not continue what we hold."""


class Mirror:
    """Owns the store's tables. `load` once, then `follow` for ever."""

    def __init__(self, client: EtcdClient, keys: Keys, store: Store) -> None:
        self._client = client
        self._keys = keys
        self._store = store
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = count()
        self._slice_end_s = 0.0

    async def load(self) -> None:
        """Read everything at one revision. Raises Unavailable, Compacted, FailedPrecondition."""
        attempt = 1
        while True:
            try:
                self._store.reset(await self._read())
            except Compacted:
                if attempt == LOADS_MAX:
                    raise
                attempt += 1
            else:
                break
        self._wake()
        _log.info("mirror.loaded", revision=self._applied)

    async def follow(self) -> None:
        """Apply what comes, for ever. Raises what makes following impossible."""
        backoff = Backoff(max_s=RETRY_PAUSE_MAX_S)
        while True:
            try:
                await self._watch(backoff)
            except (Compacted, _Gap) as error:
                RESYNCS.inc()
                _log.warning("mirror.resync", reason=str(error), revision=self._applied)
                await self._reload(backoff)
            except (Unavailable, DeadlineExceeded) as error:
                raise_if_cancelled()
                _log.warning("mirror.interrupted", reason=error.message, revision=self._applied)
                await asyncio.sleep(backoff.next_s(0))

    async def wait_applied(self, revision: int, timeout_s: float) -> None:
        """Return when the store is at that revision or later. Raises DeadlineExceeded."""
        if self._applied >= revision:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (revision, next(self._order), done))
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"etcd: revision {revision} was not seen within {timeout_s:g} s: it is written, "
                f"but this manager is at {self._applied}"
            ) from error

    def fail(self, reason: str) -> None:
        """Nothing more will be applied: tell those who wait."""
        for _, _, done in self._waiting:
            if not done.done():
                done.set_exception(Unavailable(reason))
        self._waiting.clear()

    @property
    def _applied(self) -> int:
        return self._store.view.version

    async def _read(self) -> Tables:
        tables = Tables()
        async for page in self._client.pages(self._keys.store, self._keys.store_end):
            tables.version = page.revision
            for kv in page.kvs:
                if kv.key != self._keys.barrier:
                    tables.put(self._keys.decode(kv))
                    await self._breathe()
        return tables

    async def _reload(self, backoff: Backoff) -> None:
        while True:
            try:
                await self.load()
            except (Unavailable, DeadlineExceeded, Compacted) as error:
                raise_if_cancelled()
                _log.warning("mirror.interrupted", reason=error.message, revision=self._applied)
                await asyncio.sleep(backoff.next_s(0))
            else:
                return

    async def _watch(self, backoff: Backoff) -> None:
        async with self._client.watch(
            self._keys.store,
            self._keys.store_end,
            start_revision=self._applied + 1,
            prev_kv=True,
        ) as watch:
            backoff.reset()
            await self._apply_all(watch)

    async def _apply_all(self, watch: Watch) -> None:
        while True:
            for revision in await watch.read():
                self._apply(revision)
                await self._breathe()

    def _apply(self, revision: Revision) -> None:
        if not revision.events:
            return  # progress: on older servers it may overtake events, so it moves nothing
        events = tuple(
            self._event(one) for one in revision.events if one.kv.key != self._keys.barrier
        )
        size_bytes = sum(one.ByteSize() for one in revision.events)
        self._store.install(Commit(version=revision.revision, events=events), size_bytes)
        self._wake()

    def _event(self, event: pb.Event) -> StoreEvent:
        if event.type == pb.Event.DELETE:
            old = self._held(event)
            if old is None:
                raise _Gap(f"{event.kv.key.decode()} removed, but it is not here")
            return make_event(old, None)
        new = self._keys.decode(event.kv)
        old = self._held(event)
        if (old is None) != (event.kv.create_revision == event.kv.mod_revision):
            raise _Gap(f"{event.kv.key.decode()} is {'not ' if old is None else ''}here already")
        return make_event(old, new)

    def _held(self, event: pb.Event) -> AnyObject | None:
        """What we hold at an event's key, which must be what etcd held."""
        kind, object_id = self._keys.parse(event.kv.key)
        old = table(self._store.view, kind).get(object_id)
        if event.HasField("prev_kv"):
            held = 0 if old is None else old.meta.version.index
            if held != event.prev_kv.mod_revision:
                raise _Gap(
                    f"{event.kv.key.decode()} was at revision {event.prev_kv.mod_revision}, "
                    f"here at {held}"
                )
        return old

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._applied:
            _, _, done = heapq.heappop(self._waiting)
            if not done.done():
                done.set_result(None)

    async def _breathe(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() > self._slice_end_s:
            await asyncio.sleep(0)
            self._slice_end_s = loop.time() + APPLY_SLICE_S
