"""Consensus of one manager: an entry is committed when this manager's log holds it durably.

The Proposer that a cluster with a single manager needs, and the seam that Raft fills: entries get
their place in the log when they are written, are applied in that order, and only then answered.
Whatever waits while a write is under way goes out together in the next one (group commit). A full
disk refuses the entries it hit and nothing more; a disk that fails a sync ends the process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import structlog

from manager.consensus.metrics import SNAPSHOT_LATENCY, TRANSACTION_LATENCY
from manager.storage.driver import AsyncWal
from manager.storage.entries import Entry, SnapshotMark
from manager.storage.errors import StorageFailed
from manager.storage.keyring import KeyRing
from manager.storage.member import Opening, open_member
from manager.storage.snapshot_dir import SnapshotDir
from manager.storage.snapshot_file import SnapshotRecord
from manager.storage.upkeep import tend_keys
from manager.storage.wal import SEGMENT_BYTES, Wal
from manager.store.apply import Commit
from manager.store.store import Store, TransactionTooLarge
from manager.store.tables import Tables
from shoal.errors import InvariantViolation, SwarmError, Unavailable
from shoal.model.defaults import SNAPSHOT_INTERVAL
from shoal.model.objects import AnyObject, StoreEntry
from shoal.security.unlock import UnlockKey
from shoal.wire.objects import (
    entry_from_bytes,
    entry_to_bytes,
    object_from_bytes,
    object_to_bytes,
)

ENTRY_BYTES_MAX = 1_572_864
"""1.5 MiB; a larger transaction is refused (Swarm's MaxTransactionBytes)."""
QUEUE_MAX = 4096
"""Proposals under way; further ones wait for a place."""
GROUP_ENTRIES_MAX = 512
GROUP_BYTES_MAX = 4 << 20
APPLY_SLICE_S = 0.01
"""Applying yields to the event loop after this long."""
RETRY_FRACTION = 10
"""A snapshot that failed is tried again after this fraction of the snapshot interval."""
TERM = 1
KIND_STORE = 1
"""Entry and snapshot record kind: a StoreEntry, an Object."""

_log = structlog.get_logger()


class _Proposal(NamedTuple):
    entry: StoreEntry
    data: bytes
    done: asyncio.Future[Commit]


class Recovery(NamedTuple):
    """What a state directory held. keys: what its log and snapshots are encrypted with."""

    tables: Tables
    wal: Wal
    snapshots: SnapshotDir
    keys: KeyRing | None = None


def recover(
    directory: Path,
    cluster_id: str,
    *,
    segment_bytes: int = SEGMENT_BYTES,
    unlock_key: UnlockKey | None = None,
) -> Recovery:
    """Load the newest snapshot and replay the log after it; begins an empty log when there is none.

    What is written is encrypted, also where an older log is not. unlock_key: for locked keys.
    Blocking: call it before the event loop has work, or in a thread.
    Raises: Locked without the unlock key it needs, InvalidArgument with a wrong one; CorruptLog,
    CorruptSnapshot, FailedPrecondition (in use, foreign or newer; snapshots without a log, a log
    without its keys), ResourceExhausted when there is no space for a log.
    """
    opening = Opening(cluster_id, unlock_key=unlock_key, segment_bytes=segment_bytes)
    member = open_member(directory, opening)
    try:
        snapshot = member.snapshots.load(member.recovered.mark)
        records = () if snapshot is None else snapshot.records()
        version = 0 if snapshot is None else snapshot.index
        tables = load_tables(records, member.recovered.entries_after(version), version=version)
    except BaseException:
        member.wal.close()
        raise
    return Recovery(tables, member.wal, member.snapshots, member.keys)


def load_tables(
    records: Iterable[SnapshotRecord], entries: Iterable[Entry], *, version: int
) -> Tables:
    """The tables of a snapshot after entry `version`, with the entries that follow applied.

    Raises: InvalidArgument for bytes that are none of ours.
    """
    rows = (object_from_bytes(record.data) for record in records)
    tables = Tables(rows, version=version)
    store = Store(tables, _NoClock())
    for entry in entries:
        store.apply(entry_from_bytes(entry.data), entry.index)
    return tables


class LocalConsensus:
    """Implements `manager.store.store.Proposer`; `async with` it for as long as it may propose."""

    def __init__(
        self,
        recovery: Recovery,
        store: Store,
        *,
        snapshot_interval: int = SNAPSHOT_INTERVAL,
    ) -> None:
        self._store = store
        self._wal = recovery.wal
        self._snapshots = recovery.snapshots
        self._keys = recovery.keys
        self._snapshot_interval = snapshot_interval
        self._last_index = recovery.wal.last_index
        mark = recovery.wal.mark
        self._snapshot_due = (0 if mark is None else mark.index) + snapshot_interval
        self._room = asyncio.Semaphore(QUEUE_MAX)
        self._queue: deque[_Proposal] = deque()
        self._wake = asyncio.Event()
        self._stack = AsyncExitStack()
        self._task: asyncio.Task[None] | None = None
        self._snapshot_task: asyncio.Task[None] | None = None
        self._refusal: str | None = None

    async def __aenter__(self) -> Self:
        """Start writing."""
        self._log_file = await self._stack.enter_async_context(AsyncWal(self._wal))
        self._task = asyncio.create_task(self._run(), name="consensus")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish what is queued and close the log."""
        self._refusal = self._refusal or "the manager is stopping: try again later"
        self._wake.set()
        try:
            if self._task is not None:
                await asyncio.gather(self._task, return_exceptions=True)
            if self._snapshot_task is not None:
                await asyncio.gather(self._snapshot_task, return_exceptions=True)
        finally:
            await self._stack.aclose()

    async def propose(self, entry: StoreEntry) -> Commit:
        """Make an entry durable, apply it, and return what it changed."""
        data = entry_to_bytes(entry)
        if len(data) > ENTRY_BYTES_MAX:
            raise TransactionTooLarge(
                f"transaction: {len(data)} bytes, at most {ENTRY_BYTES_MAX}: make it smaller"
            )
        with TRANSACTION_LATENCY.time():
            async with self._room:
                if self._refusal is not None:
                    raise Unavailable(self._refusal)
                done: asyncio.Future[Commit] = asyncio.get_running_loop().create_future()
                self._queue.append(_Proposal(entry, data, done))
                self._wake.set()
                return await done

    async def wait_failed(self) -> None:
        """Wait until the log can take no more, and raise why. Ends the process."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        group: list[_Proposal] = []
        try:
            while group := await self._gather():
                await self._write(group)
                self._begin_snapshot()
        except BaseException as error:
            self._refusal = f"the manager's log has failed ({error}): restart the manager"
            raise
        finally:
            # Nobody is left waiting; who waits for a place finds the refusal when it gets one.
            reason = Unavailable(
                self._refusal or "the manager's log has ended: restart the manager"
            )
            _refuse((*group, *self._queue), reason)
            self._queue.clear()

    async def _write(self, group: Sequence[_Proposal]) -> None:
        """Make a group durable and apply it; raises only what ends the process."""
        first = self._last_index + 1
        entries = [
            Entry(index=first + offset, term=TERM, kind=KIND_STORE, data=proposal.data)
            for offset, proposal in enumerate(group)
        ]
        try:
            await self._log_file.append(entries)
        except StorageFailed as error:
            raise InvariantViolation(error.message) from error
        except SwarmError as error:
            _log.error("log.refused", reason=error.message)
            _refuse(group, error)
            return
        self._last_index = first + len(entries) - 1
        await self._apply(group, first)

    async def _gather(self) -> list[_Proposal]:
        """What waits, up to the limits of one write; empty when it is time to stop."""
        while not self._queue:
            if self._refusal is not None:
                return []
            self._wake.clear()
            await self._wake.wait()
        group: list[_Proposal] = []
        size = 0
        while self._queue and len(group) < GROUP_ENTRIES_MAX and size < GROUP_BYTES_MAX:
            group.append(self._queue.popleft())
            size += len(group[-1].data)
        return group

    async def _apply(self, group: Sequence[_Proposal], first_index: int) -> None:
        loop = asyncio.get_running_loop()
        slice_end_s = loop.time() + APPLY_SLICE_S
        for offset, proposal in enumerate(group):
            result = self._store.apply(proposal.entry, first_index + offset)
            if not proposal.done.done():
                if isinstance(result, SwarmError):
                    proposal.done.set_exception(result)
                else:
                    proposal.done.set_result(result)
            if loop.time() > slice_end_s:
                await asyncio.sleep(0)
                slice_end_s = loop.time() + APPLY_SLICE_S

    def _begin_snapshot(self) -> None:
        due = self._last_index >= self._snapshot_due
        if due and (self._snapshot_task is None or self._snapshot_task.done()):
            rows, index = self._store.rows(), self._last_index
            self._snapshot_task = asyncio.create_task(self._snapshot(rows, index), name="snapshot")

    async def _snapshot(self, rows: tuple[AnyObject, ...], index: int) -> None:
        """Write a snapshot beside the log; on any failure the log simply stays longer."""
        mark = SnapshotMark(index=index, term=TERM)
        # Also after a failure the next one is some way off: a full disk is not written to for ever.
        self._snapshot_due = index + max(1, self._snapshot_interval // RETRY_FRACTION)
        try:
            with SNAPSHOT_LATENCY.time():
                await asyncio.to_thread(self._snapshots.save, index, TERM, _records(rows))
                await self._log_file.append(mark=mark)
                oldest = await asyncio.to_thread(self._snapshots.prune, mark)
                await self._log_file.release(oldest)
                if self._keys is not None:
                    await tend_keys(self._keys, self._log_file, self._snapshots, index)
        except SwarmError as error:
            _log.error("snapshot.failed", index=index, reason=error.message)
            return
        self._snapshot_due = index + self._snapshot_interval
        _log.info("snapshot.written", index=index, objects=len(rows))


class _NoClock:
    """Replay must not read a clock; times come from the entries."""

    def now_ns(self) -> int:
        raise InvariantViolation("replay read a clock")

    def monotonic_s(self) -> float:
        raise InvariantViolation("replay read a clock")


def _records(rows: Sequence[AnyObject]) -> Iterator[SnapshotRecord]:
    for row in rows:
        yield SnapshotRecord(kind=KIND_STORE, data=object_to_bytes(row))


def _refuse(group: Sequence[_Proposal], error: SwarmError) -> None:
    for proposal in group:
        if not proposal.done.done():
            # One object each: a raised exception collects the tracebacks of all who raise it.
            proposal.done.set_exception(type(error)(error.message, **error.context))
