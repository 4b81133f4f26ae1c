"""One Ready at a time: what `manager.raft.ready.Ready` asks for, in the order it asks for it.

The batch is written by the log's thread while what was committed earlier is applied here. A full
disk holds the round until there is space again; nothing was acknowledged, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence

import structlog

from manager.consensus.replica import Replica
from manager.consensus.snapshots import Snapshots, hard_to_disk, to_disk
from manager.consensus.waiting import Reads
from manager.raft.entries import HardState
from manager.raft.messages import Message
from manager.raft.node import Raft
from manager.raft.ready import Ready
from manager.storage.driver import AsyncWal
from manager.storage.errors import StorageFailed
from shoal.errors import InvariantViolation, ResourceExhausted

DISK_FULL_PAUSE_S = 0.5

Send = Callable[[Sequence[Message]], None]

_log = structlog.get_logger()


class Rounds:
    """The only one that calls `ready` and `advance`."""

    def __init__(
        self, raft: Raft, wal: AsyncWal, replica: Replica, snapshots: Snapshots, reads: Reads
    ) -> None:
        self.disk_full: ResourceExhausted | None = None
        self._raft = raft
        self._wal = wal
        self._replica = replica
        self._snapshots = snapshots
        self._reads = reads
        self._hard_state: HardState | None = None
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be a Ready."""
        self._wake.set()

    async def one(self, send: Send) -> None:
        """Wait for a Ready and do what it asks for.

        Raises: InvariantViolation when the disk failed.
        """
        while not self._raft.has_ready():
            self._wake.clear()
            await self._wake.wait()
        ready = self._raft.ready()
        send(ready.messages)
        self._hard_state = ready.hard_state or self._hard_state
        if ready.snapshot is not None:
            await self._install(ready)
            send(ready.messages_after_sync)
        elif ready.must_sync:
            await self._keep_and_apply(ready, send)
        else:  # a commit index alone is written with what is written next
            send(ready.messages_after_sync)
            await self._replica.apply(ready.committed_entries)
        self._raft.advance(ready)
        for read in ready.read_states:
            self._reads.confirm(read.context, read.index)
        self._reads.serve(self._replica.applied)
        if self._snapshots.is_due:
            self._snapshots.begin(self._replica.store.rows(), self._replica.roster.value)

    async def finish(self) -> None:
        """Write what was left for later."""
        if self._hard_state is not None:
            try:
                await self._wal.append(hard_state=hard_to_disk(self._hard_state))
            except (ResourceExhausted, StorageFailed, InvariantViolation) as error:
                _log.warning("log.not_finished", reason=str(error))

    async def _keep_and_apply(self, ready: Ready, send: Send) -> None:
        async def keep() -> None:
            await self._write(ready)
            send(ready.messages_after_sync)

        if not ready.committed_entries:
            await keep()
            return
        writing = asyncio.create_task(keep(), name="raft write")
        try:
            await self._replica.apply(ready.committed_entries)
        finally:
            await writing

    async def _write(self, ready: Ready) -> None:
        entries, hard_state = to_disk(ready), hard_to_disk(self._hard_state)
        while True:
            try:
                await self._wal.append(entries, hard_state)
            except StorageFailed as error:
                raise InvariantViolation(error.message) from error
            except ResourceExhausted as error:
                if self.disk_full is None:
                    _log.error("log.disk_full", reason=error.message)
                self.disk_full = error
                self._replica.proposals.refuse_queued(error)
                # The others stay in the log of this leader, and maybe in that of others.
                self._replica.proposals.lose(
                    ResourceExhausted(
                        f"{error.message}; the change may still be committed when there is space:"
                        " read the state before trying again"
                    )
                )
                await asyncio.sleep(DISK_FULL_PAUSE_S)
            else:
                break
        if self.disk_full is not None:
            self.disk_full = None
            _log.info("log.writes_again")
        self._hard_state = None

    async def _install(self, ready: Ready) -> None:
        try:
            tables, roster = await self._snapshots.install(ready, self._hard_state)
        except StorageFailed as error:
            raise InvariantViolation(error.message) from error
        self._hard_state = None
        index = ready.snapshot.index if ready.snapshot is not None else 0
        self._replica.replace(tables, roster, index)
        gc.freeze()  # as after the first load: rows that live long are kept out of collections
