"""Group commit: many callers, one thread, one fdatasync for all that waited.

Invariant: a caller resumes only after its batch is durable, and batches reach the log in the
order in which `append` was entered. While one sync runs, later batches gather (bounded) and go
out together. Refuses everything after StorageFailed; a full disk fails the batches it hit and
those already queued behind them, which may build on them, and nothing after.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import msgspec

from manager.storage.entries import Batch, Entry, HardState, SnapshotMark
from manager.storage.wal import Wal
from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    InvariantViolation,
    ResourceExhausted,
    SwarmError,
    violated,
)

QUEUE_MAX = 1024
MERGED_BYTES_MAX = 4 << 20
_RECORD_OVERHEAD_BYTES = 48

Result = int | frozenset[bytes]
Outcome = Result | SwarmError | InvariantViolation


class _Call(msgspec.Struct, frozen=True):
    """A call of the log that is not a batch, queued among the batches."""

    run: Callable[[Wal], Result]


class _Waiting:
    """Work for the log and the caller that waits for it."""

    __slots__ = ("done", "size_bytes", "work")

    def __init__(self, work: Batch | _Call, done: asyncio.Future[Result]) -> None:
        self.work = work
        self.done = done
        self.size_bytes = 0
        if isinstance(work, Batch):
            for entry in work.entries:
                self.size_bytes += len(entry.data) + _RECORD_OVERHEAD_BYTES


class AsyncWal:
    """The async owner of a Wal: `async with AsyncWal(wal) as log: await log.append(...)`.

    Leaving the block finishes what is queued and closes the Wal. A cancelled caller's batch may
    still be written, as with any interrupted write. No task runs here: a group is handed to the
    thread by whoever queues first, or by the answer to the one before.
    """

    def __init__(
        self, wal: Wal, *, queue_max: int = QUEUE_MAX, merged_bytes_max: int = MERGED_BYTES_MAX
    ) -> None:
        self._wal = wal
        self._merged_bytes_max = merged_bytes_max
        self._room = asyncio.Semaphore(queue_max)
        self._queue: deque[_Waiting] = deque()
        self._group: list[_Waiting] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wal")
        self._closed = True

    async def __aenter__(self) -> Self:
        """Take batches from now on."""
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.Future[None] = self._loop.create_future()
        self._closed = False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Commit what is queued, then close the log."""
        self._closed = True
        try:
            if self._group:
                await self._idle
            elif self._idle.done():
                self._idle.result()  # the thread failed: this says how
        finally:
            self._refuse_queued()  # there are some when this exit is cancelled
            # Submitted, not awaited first: also a cancelled exit closes the log behind the sync.
            closing = self._thread.submit(self._wal.close)
            self._thread.shutdown(wait=False)
            await asyncio.wrap_future(closing)

    async def append(
        self,
        entries: Sequence[Entry] = (),
        hard_state: HardState | None = None,
        mark: SnapshotMark | None = None,
    ) -> None:
        """Return once the batch is durable; waits for a place when the queue is full.

        Raises: as `Wal.append_all`; FailedPrecondition when closing.
        """
        await self._submit(Batch(tuple(entries), hard_state, mark))

    def put(
        self, entries: Sequence[Entry] = (), hard_state: HardState | None = None
    ) -> asyncio.Future[Result]:
        """`append` for a caller that has one batch under way at most: it never waits for a place.

        The future is done when the batch is durable. Raises, also in the future: as `append`.
        """
        return self._queued(Batch(tuple(entries), hard_state))

    async def mark_snapshot(self, index: int, term: int) -> None:
        """`Wal.mark_snapshot`, in order with the batches."""
        await self._submit(Batch((), None, SnapshotMark(index, term)))

    async def release(self, index: int) -> int:
        """`Wal.release`, in order with the batches; how many segments were deleted."""
        released = await self._submit(_Call(lambda wal: wal.release(index)))
        if not isinstance(released, int):
            violated("release counts segments", result=released)
        return released

    async def key_ids(self) -> frozenset[bytes]:
        """`Wal.key_ids`, in order with the batches: none of them is under way meanwhile."""
        ids = await self._submit(_Call(lambda wal: wal.key_ids()))
        if not isinstance(ids, frozenset):
            violated("key ids are a set", result=ids)
        return ids

    async def _submit(self, work: Batch | _Call) -> Result:
        async with self._room:
            return await self._queued(work)

    def _queued(self, work: Batch | _Call) -> asyncio.Future[Result]:
        if self._closed:
            raise FailedPrecondition(f"{self._wal.directory}: the log is closed")
        waiting = _Waiting(work, self._loop.create_future())
        self._queue.append(waiting)
        if not self._group:
            self._begin()
        return waiting.done

    def _begin(self) -> None:
        """Hand the next group to the thread: batches up to the bytes limit, or one call."""
        group = self._group = [self._queue.popleft()]
        size = group[0].size_bytes
        while self._queue and isinstance(group[0].work, Batch):
            size += self._queue[0].size_bytes
            if size > self._merged_bytes_max or not isinstance(self._queue[0].work, Batch):
                break
            group.append(self._queue.popleft())
        self._thread.submit(self._run, [waiting.work for waiting in group])

    def _run(self, works: Sequence[Batch | _Call]) -> None:
        """In the thread. A loop that has ended meanwhile has nobody who waits."""
        try:
            outcomes = _commit(self._wal, works)
        except BaseException as error:  # noqa: BLE001 - told to the loop, which refuses the rest
            self._loop.call_soon_threadsafe(self._break, error)
        else:
            self._loop.call_soon_threadsafe(self._answer, outcomes)

    def _answer(self, outcomes: list[Outcome]) -> None:
        group, self._group = self._group, []
        if isinstance(outcomes[-1], ResourceExhausted):
            # What is queued may follow on the batch that found no space.
            outcomes += [outcomes[-1]] * len(self._queue)
            group += self._queue
            self._queue.clear()
        if self._queue:
            self._begin()
        elif self._closed and not self._idle.done():
            self._idle.set_result(None)
        for waiting, outcome in zip(group, outcomes, strict=True):
            _resolve(waiting, outcome)

    def _break(self, error: BaseException) -> None:
        """A bug of ours in the thread: nothing more is taken, and who leaves is told."""
        self._closed = True
        self._queue.extendleft(reversed(self._group))
        self._group = []
        self._refuse_queued()
        if not self._idle.done():
            self._idle.set_exception(error)

    def _refuse_queued(self) -> None:
        while self._queue:
            closed = FailedPrecondition(f"{self._wal.directory}: the log is closed")
            _resolve(self._queue.popleft(), closed)


def _commit(wal: Wal, works: Sequence[Batch | _Call]) -> list[Outcome]:
    """In the thread: one sync for all; only if one of them is refused, each on its own."""
    batches = [work for work in works if isinstance(work, Batch)]
    try:
        if len(batches) < len(works):
            return [_attempt(wal, work) for work in works]
        wal.append_all(batches)
    except (FailedPrecondition, InvalidArgument, InvariantViolation):
        # Refused before anything was written: the others must not pay for one caller's mistake.
        return [_attempt(wal, work) for work in works]
    except SwarmError as error:
        return [error] * len(works)
    return [0] * len(works)


def _attempt(wal: Wal, work: Batch | _Call) -> Outcome:
    try:
        if isinstance(work, _Call):
            return work.run(wal)
        wal.append_all([work])
    except (SwarmError, InvariantViolation) as error:
        return error
    return 0


def _resolve(waiting: _Waiting, outcome: Outcome) -> None:
    if waiting.done.done():  # its caller was cancelled
        return
    if isinstance(outcome, int | frozenset):
        waiting.done.set_result(outcome)
    else:
        waiting.done.set_exception(outcome)
