"""Writes task records in a thread: a file costs up to a millisecond, a batch of 200 too much.

The newest state of each task wins, and one batch at a time is on its way. `flush` is for moments
at which a crash must find the record: before a task's container is made. A record that cannot be
written (a full disk) is said in the log, and written again with the task's next state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from shoal.model.objects import Task
from worker.agent.records import Records

_log = structlog.get_logger()


class RecordWriter:
    """The way of a NodeTasks to its records; holds at most one state per task."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._pending: dict[str, Task | None] = {}
        self._begun = self._ended = 0
        self._progress = asyncio.Condition()
        self._work: asyncio.Task[None] | None = None

    def save(self, task: Task) -> None:
        """Remember a task's newest state, soon."""
        self._put(task.id, task)

    def forget(self, task_id: str) -> None:
        """The task is no longer this node's."""
        self._put(task_id, None)

    async def flush(self) -> None:
        """Wait until everything that was saved before is on disk, or could not be written."""
        turn = self._begun + 1 if self._pending else self._begun
        async with self._progress:
            await self._progress.wait_for(lambda: self._ended >= turn)

    def _put(self, task_id: str, task: Task | None) -> None:
        self._pending[task_id] = task
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._write_out(), name="task records")

    async def _write_out(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, {}
            self._begun += 1
            try:
                await asyncio.to_thread(self._write, batch)
            finally:
                async with self._progress:
                    self._ended = self._begun
                    self._progress.notify_all()

    def _write(self, batch: Mapping[str, Task | None]) -> None:
        for task_id, task in batch.items():
            try:
                if task is None:
                    self._records.forget_task(task_id)
                else:
                    self._records.save_task(task)
            except OSError as error:
                _log.error("task.not_recorded", task_id=task_id, reason=str(error))
