"""One Ready at a time: what `manager.raft.ready.Ready` asks for, in the order it asks for it.

A leader applies what was committed earlier while the log's thread writes the batch: proposers wait
for it. Anybody else first passes the disk's answer on: the leader waits for that, and applying
meanwhile would keep the log's thread from the interpreter. Most rounds wait for nothing else, so
they are no task: the answer of the disk goes on with what is left. A full disk holds the round
until there is space again; nothing was acknowledged, and nothing is lost. After `stop` nothing is
said any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from manager.consensus.replica import Replica
from manager.consensus.snapshots import Snapshots, hard_to_disk, to_disk
from manager.consensus.waiting import Reads
from manager.raft.entries import Entry, HardState, Role
from manager.raft.messages import Message
from manager.raft.node import Raft
from manager.raft.ready import Ready
from manager.storage.driver import AsyncWal
from manager.storage.errors import StorageFailed
from shoal import heap
from shoal.errors import InvariantViolation, ResourceExhausted

DISK_FULL_PAUSE_S = 0.5

Send = Callable[[Sequence[Message]], None]

_log = structlog.get_logger()


class Rounds:
    """The only one that calls `ready` and `advance`.

    send: takes messages. turn: called when a round has ended that `go_on` left under way; it calls
    `go_on` again. fail: called with what ends this member: InvariantViolation when the disk failed.
    """

    def __init__(
        self,
        raft: Raft,
        wal: AsyncWal,
        replica: Replica,
        snapshots: Snapshots,
        reads: Reads,
        *,
        send: Send,
        turn: Callable[[], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.disk_full: ResourceExhausted | None = None
        self._raft = raft
        self._wal = wal
        self._replica = replica
        self._snapshots = snapshots
        self._reads = reads
        self._send = send
        self._turn = turn
        self._fail = fail
        self._ready: Ready | None = None
        self._parts = 0
        self._deferred: tuple[Entry, ...] | None = None
        self._hard_state: HardState | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def go_on(self) -> None:
        """Do what there is to do, until a round has to wait for the disk."""
        while self._ready is None and self._raft.has_ready():
            self._begin(self._raft.ready())

    def stop(self) -> None:
        """Leave the round that is under way as it is."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()

    async def finish(self) -> None:
        """After `stop`: wait for what was under way, and write what was left for later."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._hard_state is not None:
            try:
                await self._wal.append(hard_state=hard_to_disk(self._hard_state))
            except (ResourceExhausted, StorageFailed, InvariantViolation) as error:
                _log.warning("log.not_finished", reason=str(error))

    def _begin(self, ready: Ready) -> None:
        self._ready = ready
        self._parts = 2
        self._send(ready.messages)
        self._hard_state = ready.hard_state or self._hard_state
        if ready.snapshot is not None:
            self._parts = 1
            self._start(self._install, ready)
            return
        if ready.must_sync:
            batch = self._wal.put(to_disk(ready), hard_to_disk(self._hard_state))
            batch.add_done_callback(self._written)
            if self._raft.role is not Role.LEADER:
                self._deferred = ready.committed_entries
                return
        else:  # a commit index alone is written with what is written next
            self._kept(ready)
        self._apply(ready.committed_entries)

    def _written(self, batch: asyncio.Future[Any]) -> None:
        """The disk has answered."""
        ready = self._ready
        if self._stopped or ready is None or batch.cancelled():
            return
        error = batch.exception()
        try:
            if isinstance(error, ResourceExhausted):
                self._start(self._write_again, ready, error)
            elif error is not None:
                self._fail(_as_broken(error))
            else:
                self._hard_state = None
                self._kept(ready)
                self._turn()
        except Exception as failure:  # noqa: BLE001 - told to the driver, which ends this member
            self._fail(failure)

    def _kept(self, ready: Ready) -> None:
        """What the round had to keep is durable."""
        self._send(ready.messages_after_sync)
        self._done()
        if self._deferred is not None:
            asyncio.get_running_loop().call_soon(self._apply_deferred)  # behind what sends

    def _apply_deferred(self) -> None:
        entries, self._deferred = self._deferred or (), None
        if self._stopped:
            return
        try:
            self._apply(entries)
            self._turn()
        except Exception as failure:  # noqa: BLE001 - told to the driver, which ends this member
            self._fail(failure)

    def _apply(self, entries: Sequence[Entry]) -> None:
        left = self._replica.apply(entries)
        if left:
            self._start(self._apply_on, left)
        else:
            self._done()

    async def _apply_on(self, entries: Sequence[Entry]) -> None:
        while entries:
            await asyncio.sleep(0)
            entries = self._replica.apply(entries)
        self._done()

    def _done(self) -> None:
        """A part of the round is; after the last one the round has ended."""
        self._parts -= 1
        if self._parts or self._ready is None:
            return
        ready, self._ready = self._ready, None
        self._raft.advance(ready)
        for read in ready.read_states:
            self._reads.confirm(read.context, read.index)
        self._reads.serve(self._replica.applied)
        if self._snapshots.is_due:
            self._snapshots.begin(self._replica.store.rows(), self._replica.roster.value)

    async def _write_again(self, ready: Ready, full: ResourceExhausted) -> None:
        """The disk is full: wait for space."""
        while True:
            self._refuse(full)
            await asyncio.sleep(DISK_FULL_PAUSE_S)
            try:
                await self._wal.append(to_disk(ready), hard_to_disk(self._hard_state))
            except ResourceExhausted as error:
                full = error
            else:
                break
        self.disk_full = None
        _log.info("log.writes_again")
        self._hard_state = None
        self._kept(ready)

    def _refuse(self, full: ResourceExhausted) -> None:
        if self.disk_full is None:
            _log.error("log.disk_full", reason=full.message)
        self.disk_full = full
        self._replica.proposals.refuse_queued(full)
        # The others stay in the log of this leader, and maybe in that of others.
        self._replica.proposals.lose(
            ResourceExhausted(
                f"{full.message}; the change may still be committed when there is space:"
                " read the state before trying again"
            )
        )

    async def _install(self, ready: Ready) -> None:
        tables, roster = await self._snapshots.install(ready, self._hard_state)
        self._hard_state = None
        index = ready.snapshot.index if ready.snapshot is not None else 0
        self._replica.replace(tables, roster, index)
        heap.settle()  # as after the first load
        self._kept(ready)

    def _start(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """What is left of the round takes its time."""
        task = asyncio.create_task(self._guard(work, *arguments), name=f"raft {work.__name__}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        try:
            await work(*arguments)
            self._turn()
        except Exception as error:  # noqa: BLE001 - told to the driver, which ends this member
            self._fail(_as_broken(error))


def _as_broken(error: BaseException) -> Exception:
    """What the driver is told."""
    if isinstance(error, StorageFailed):
        broken = InvariantViolation(error.message)
        broken.__cause__ = error
        return broken
    if isinstance(error, Exception):
        return error
    return InvariantViolation(f"the log's thread has ended: {error}")
