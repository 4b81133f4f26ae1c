"""Snapshots of this member's own state, and those a leader sends.

Invariants: the mark in the log never goes back; a snapshot is offered to others only when it is
durable here; a received one replaces the state only when Raft takes it. One is written at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import structlog

from manager.consensus.metrics import SNAPSHOT_LATENCY
from manager.consensus.recovery import ENTRIES_KEPT, read_membership, read_tables, records
from manager.consensus.roster import Roster, decode_membership, encode_membership
from manager.raft.entries import HardState, Snapshot
from manager.raft.messages import Message
from manager.raft.node import Raft
from manager.raft.ready import Ready
from manager.storage import entries as disk
from manager.storage.driver import AsyncWal
from manager.storage.member import Member as Opened
from manager.storage.snapshot_dir import SnapshotFile
from manager.storage.snapshot_file import SnapshotRecord
from manager.storage.upkeep import tend_keys
from manager.store.tables import Tables
from shoal.errors import InvalidArgument, SwarmError, invariant
from shoal.model.objects import AnyObject

RETRY_FRACTION = 10
"""A snapshot that failed is tried again after this fraction of the snapshot interval."""

_log = structlog.get_logger()


class Snapshots:
    """Owner of the snapshot directory while the driver runs."""

    def __init__(self, opened: Opened, wal: AsyncWal, raft: Raft, *, interval: int) -> None:
        """interval: entries between two snapshots."""
        self._directory = opened.snapshots
        self._keys = opened.keys
        self._wal = wal
        self._raft = raft
        self.interval = interval
        self._marked = raft.core.log.storage.snapshot.index
        self._due = self._marked + interval
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_due(self) -> bool:
        """Whether enough was applied since the last one, and none is being written."""
        idle = not (self.is_being_written or self._writing.locked())
        return idle and self._raft.applied >= self._due

    @property
    def is_being_written(self) -> bool:
        """Whether one of this member's own state is under way."""
        return self._task is not None and not self._task.done()

    def begin(self, rows: tuple[AnyObject, ...], roster: Roster) -> None:
        """Write one of the state after the entry Raft has confirmed as applied."""
        snapshot = self._raft.snapshot_now()
        # Also after a failure the next one is some way off: a full disk is not written to for ever.
        self._due = snapshot.index + max(1, self.interval // RETRY_FRACTION)
        membership = encode_membership(snapshot.conf_state, roster)
        self._task = asyncio.create_task(
            self._write(snapshot, rows, membership), name="raft snapshot"
        )

    async def finish(self) -> None:
        """Wait for the one that is being written."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def open(self, index: int, term: int) -> SnapshotFile | None:
        """A snapshot to send, verified; None when it is gone. Blocking."""
        try:
            found = self._directory.load(disk.SnapshotMark(index, term))
        except SwarmError:
            return None
        return found if found is not None and (found.index, found.term) == (index, term) else None

    async def keep(
        self, message: Message, membership: bytes, content: Iterator[SnapshotRecord]
    ) -> None:
        """Write a received snapshot; Raft decides whether it is used."""
        snapshot = message.snapshot
        if snapshot is None or snapshot.index <= 0:
            raise InvalidArgument("snapshot: the message names none")
        if decode_membership(membership).conf_state != snapshot.conf_state:
            raise InvalidArgument("snapshot: its membership is not that of the message")
        async with self._writing:
            await asyncio.to_thread(
                self._directory.save, snapshot.index, snapshot.term, content, metadata=membership
            )

    async def install(self, ready: Ready, hard_state: HardState | None) -> tuple[Tables, Roster]:
        """Make a received snapshot the beginning of the log; the state and roster in it."""
        snapshot = ready.snapshot
        invariant(snapshot is not None, "no snapshot to install")
        index, term = (snapshot.index, snapshot.term) if snapshot is not None else (0, 0)
        found = await asyncio.to_thread(self.open, index, term)
        invariant(found is not None, "the snapshot Raft took is not on disk", index=index)
        tables = await asyncio.to_thread(read_tables, found) if found is not None else Tables()
        roster = read_membership(found).roster if found is not None else Roster()
        self._marked = max(self._marked, index)
        self._due = index + self.interval
        await self._wal.append(
            to_disk(ready), hard_to_disk(hard_state), disk.SnapshotMark(index, term)
        )
        await self._release(disk.SnapshotMark(index, term))
        return tables, roster

    async def _write(
        self, snapshot: Snapshot, rows: Sequence[AnyObject], membership: bytes
    ) -> None:
        """Write a snapshot beside the log; on any failure the log simply stays longer."""
        index, mark = snapshot.index, disk.SnapshotMark(snapshot.index, snapshot.term)
        try:
            async with self._writing:
                with SNAPSHOT_LATENCY.time():
                    await asyncio.to_thread(
                        self._directory.save,
                        index,
                        snapshot.term,
                        records(rows),
                        metadata=membership,
                    )
                if index <= self._marked:
                    return  # a leader's newer one came meanwhile
                self._marked = index
                await self._wal.append(mark=mark)
                await self._release(mark)
        except SwarmError as error:
            _log.error("snapshot.failed", index=index, reason=error.message)
            return
        self._raft.offer_snapshot(snapshot)
        self._raft.compact(max(0, min(index, self._raft.applied) - ENTRIES_KEPT))
        self._due = max(self._due, index + self.interval)
        _log.info("snapshot.written", index=index, objects=len(rows))

    async def _release(self, mark: disk.SnapshotMark) -> None:
        oldest = await asyncio.to_thread(self._directory.prune, mark)
        await self._wal.release(oldest)
        await tend_keys(self._keys, self._wal, self._directory, mark.index)


def to_disk(ready: Ready) -> list[disk.Entry]:
    """The entries of a Ready as the log takes them."""
    return [disk.Entry(entry.index, entry.term, entry.kind, entry.data) for entry in ready.entries]


def hard_to_disk(hard: HardState | None) -> disk.HardState | None:
    """The hard state as the log takes it."""
    return None if hard is None else disk.HardState(hard.term, hard.vote, hard.commit)
