"""What `bench.store` measures of our side, each in a process of its own so that memory is its own.

One manager without others: log, snapshots and store are the product's own, all of it encrypted.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from bench.raft_member import VALUE_BYTES, a_task, watch_loop
from manager.consensus.driver import RaftDriver
from manager.consensus.interfaces import Receiver
from manager.consensus.recovery import Place, recover
from manager.consensus.roster import Roster
from manager.raft.messages import Message
from manager.storage.member import Opening
from manager.store.apply import apply_entry
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.clock import SystemClock
from shoal.errors import violated
from shoal.model.defaults import SNAPSHOT_INTERVAL
from shoal.model.enums import ActionKind, TaskState
from shoal.model.objects import Config, StoreAction, StoreEntry
from shoal.model.plan import CHANGES_MAX, create, update
from shoal.model.specs import ConfigSpec
from shoal.model.types import Annotations
from shoal.telemetry.logs import configure
from shoal.wire.objects import entry_from_bytes, entry_to_bytes, object_to_bytes

CLUSTER = "b" * 25
CALLERS = 64
CONFIGS = 1_000
WRITES_BEFORE_SNAPSHOT = 20_000
SNAPSHOT_TIMEOUT_S = 120.0
POLL_S = 0.001
BASE_PROBES = 100


class Memory(msgspec.Struct, frozen=True):
    """Of a store with tasks. collection_ms: of one full garbage collection, all rows looked at."""

    bytes_per_task: float
    record_bytes: float
    changes_per_s: float
    collection_ms: float


class Snapshot(msgspec.Struct, frozen=True):
    """One written at rest, and one while clients wrote. late: of the event loop, the worst.

    base_late_ms: while clients wrote and no snapshot was written.
    """

    base_late_ms: float
    idle_s: float
    idle_late_ms: float
    busy_s: float
    busy_late_ms: float
    size_bytes: int


class Replayed(msgspec.Struct, frozen=True):
    """A manager found its state again."""

    snapshot_s: float
    entries_per_s: float


class Alone:
    """Implements `Transport`: there is nobody else."""

    def attach(self, receiver: Receiver) -> None:
        """Nothing will arrive."""

    def send(self, messages: Sequence[Message]) -> None:
        """Nobody is there to be sent anything."""
        if messages:
            violated("a message to nobody", count=len(messages))

    def send_snapshot(self, message: Message) -> None:
        """See `send`."""
        self.send([message])

    def follow(self, roster: Roster) -> None:
        """The one member."""


def memory(tasks: int) -> Memory:
    """Apply entries of new tasks, as they come from the log."""
    rows = [a_task(f"{number}", TaskState.RUNNING) for number in range(CHANGES_MAX)]
    record_bytes = sum(len(object_to_bytes(row)) for row in rows) / len(rows)
    tables = Tables()
    gc.collect()
    before, spent_s = rss_bytes(), 0.0
    for first in range(0, tasks, CHANGES_MAX):
        data = creation(first)
        began = time.perf_counter()
        apply_entry(tables, entry_from_bytes(data), first // CHANGES_MAX + 1)
        spent_s += time.perf_counter() - began
    gc.collect()
    used = rss_bytes() - before
    began = time.perf_counter()
    gc.collect()
    took = time.perf_counter() - began
    return Memory(used / tasks, record_bytes, tasks / spent_s, took * 1000)


def creation(first: int) -> bytes:
    """The data of an entry that makes as many tasks as one may."""
    actions = tuple(
        StoreAction(object=a_task(f"{number}", TaskState.RUNNING), kind=ActionKind.CREATE)
        for number in range(first, first + CHANGES_MAX)
    )
    return entry_to_bytes(StoreEntry(actions=actions, proposed_at_ns=time.time_ns()))


def snapshot(directory: Path, tasks: int) -> Snapshot:
    """Fill a store, then have a snapshot written: once at rest, once while clients write."""
    return asyncio.run(_snapshot(directory, tasks))


async def _snapshot(directory: Path, tasks: int) -> Snapshot:
    filling = tasks // CHANGES_MAX
    async with manager(directory, snapshot_interval=filling + 1) as (store, driver):
        for first in range(0, tasks, CHANGES_MAX):
            await store.commit(
                [
                    create(a_task(f"{number}", TaskState.RUNNING))
                    for number in range(first, first + CHANGES_MAX)
                ]
            )
        gc.collect()
        gc.freeze()  # as after a start
        driver.snapshots.interval = WRITES_BEFORE_SNAPSHOT
        base_late_s = await _base(store)
        idle_s, idle_late_s = await _written(store, driver, callers=1)
        busy_s, late_s = await _written(store, driver, callers=CALLERS)
        newest = max(directory.rglob("*.snap"), key=lambda path: path.stat().st_mtime_ns)
        print(f"  snapshot at rest {idle_s:.2f} s, while {CALLERS} write {busy_s:.2f} s")
        return Snapshot(
            base_late_s * 1000,
            idle_s,
            idle_late_s * 1000,
            busy_s,
            late_s * 1000,
            newest.stat().st_size,
        )


async def _base(store: Store) -> float:
    """By how much the event loop is late at worst while clients write, without a snapshot."""
    late: list[float] = []
    works = [asyncio.create_task(_write(store, caller)) for caller in range(CALLERS)]
    works.append(asyncio.create_task(watch_loop(late)))
    while len(late) < BASE_PROBES:
        await asyncio.sleep(POLL_S)
    for work in works:
        work.cancel()
    await asyncio.gather(*works, return_exceptions=True)
    return max(late)


async def _written(store: Store, driver: RaftDriver, callers: int) -> tuple[float, float]:
    """Seconds that a snapshot took, and by how much the event loop was late at worst meanwhile.

    callers: write until it has begun, and if there are several, until it is done.
    """
    writing = [asyncio.create_task(_write(store, caller)) for caller in range(callers)]
    late: list[float] = []
    try:
        async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
            await _until(lambda: driver.snapshots.is_being_written, POLL_S)
            began = time.perf_counter()
            watch = asyncio.create_task(watch_loop(late))
            if callers == 1:
                writing[0].cancel()
            await _until(lambda: not driver.snapshots.is_being_written, POLL_S)
        watch.cancel()
        return time.perf_counter() - began, max(late)
    finally:
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)


async def _until(is_so: Callable[[], bool], poll_s: float) -> None:
    while not is_so():
        await asyncio.sleep(poll_s)


async def _write(store: Store, caller: int) -> None:
    """1 KB at a time, for ever."""
    turn = 0
    while True:
        name = f"config-{(caller + turn * CALLERS) % CONFIGS}"
        spec = ConfigSpec(Annotations(name=name), data=os.urandom(8) * (VALUE_BYTES // 8))
        row = Config(id=name, spec=spec)
        known = store.view.configs.get(name) is not None
        await store.commit([update(row) if known else create(row)])
        turn += 1


def puts(directory: Path, count: int) -> float:
    """MiB of a manager after so many puts of 1 KB to a thousand names."""
    return asyncio.run(_puts(directory, count))


async def _puts(directory: Path, count: int) -> float:
    async with manager(directory) as (store, driver):
        writing = [asyncio.create_task(_write(store, caller)) for caller in range(CALLERS)]
        while driver.replica.applied < count:
            await asyncio.sleep(0.05)
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
    return rss_bytes() / (1 << 20)


def replay(directory: Path) -> Replayed:
    """Start again: a snapshot, then the log after it."""
    began = time.perf_counter()
    recovery = recover(place(directory))
    took = time.perf_counter() - began
    start = recovery.start
    entries = start.applied - start.storage.snapshot.index
    recovery.opened.wal.close()
    print(f"  replay of {len(recovery.tables.tasks)} tasks and {entries} entries: {took:.2f} s")
    return Replayed(took, entries / took)


def place(directory: Path) -> Place:
    """Where the manager keeps what it has."""
    return Place(directory, Opening(CLUSTER), "node", "127.0.0.1:2377")


@asynccontextmanager
async def manager(
    directory: Path, *, snapshot_interval: int = SNAPSHOT_INTERVAL
) -> AsyncIterator[tuple[Store, RaftDriver]]:
    """A store and its driver, leading."""
    configure("bench", "warning")
    recovery = recover(place(directory), StoreEntry())
    store = Store(recovery.tables, SystemClock())
    driver = RaftDriver(recovery, store, Alone(), snapshot_interval=snapshot_interval)
    store.attach(driver)
    async with driver:
        await driver.leading.until(lambda now: now.ready)
        yield store, driver


def rss_bytes() -> int:
    """Memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
