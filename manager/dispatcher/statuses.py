"""Writes what agents report: merged, in batches, never backwards.

While one batch is being committed the next gathers, so the log sees few entries under load and a
single report waits for nothing. Callers resume when their reports are in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from manager.store.store import Store
from manager.store.view import View
from shoal.clock import Clock
from shoal.errors import ResourceExhausted, SequenceConflict, SwarmError
from shoal.model.objects import Task
from shoal.model.plan import CHANGES_MAX, Change, update
from shoal.model.types import TaskStatus

PENDING_MAX = 20_000
ATTEMPTS_MAX = 20


class StatusWriter:
    """The one writer of task statuses on this manager."""

    def __init__(self, store: Store, clock: Clock, *, manager_id: str) -> None:
        self._store = store
        self._clock = clock
        self._manager_id = manager_id
        self._pending: dict[str, tuple[str, TaskStatus]] = {}
        self._flushed: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None

    async def write(self, node_id: str, statuses: Mapping[str, TaskStatus]) -> None:
        """Write a node's reports; returns when they are committed.

        Raises: ResourceExhausted when too much waits; what the store raises.
        """
        if not statuses:
            return
        if len(self._pending) + len(statuses) > PENDING_MAX:
            raise ResourceExhausted(f"{PENDING_MAX} task reports wait already: report again later")
        for task_id, status in statuses.items():
            waiting = self._pending.get(task_id)
            if waiting is None or waiting[1].state <= status.state:
                self._pending[task_id] = (node_id, status)
        if self._flushed is None:
            self._flushed = asyncio.get_running_loop().create_future()
        flushed = self._flushed
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="task statuses")
        await asyncio.shield(flushed)

    async def _write_all(self) -> None:
        while self._pending and self._flushed is not None:
            batch, flushed = self._pending, self._flushed
            self._pending, self._flushed = {}, None
            try:
                items = list(batch.items())
                for start in range(0, len(items), CHANGES_MAX):
                    await self._commit(items[start : start + CHANGES_MAX])
            except Exception as error:  # noqa: BLE001 - the callers get it
                flushed.set_exception(error)
                flushed.exception()  # a caller may have gone away; that is no warning
            else:
                flushed.set_result(None)

    async def _commit(self, items: Sequence[tuple[str, tuple[str, TaskStatus]]]) -> None:
        for attempt in range(ATTEMPTS_MAX):
            try:
                await self._store.commit(self._changes(self._store.view, items))
            except SequenceConflict:
                if attempt == ATTEMPTS_MAX - 1:
                    raise
            except SwarmError as error:
                if error.retryable or attempt == ATTEMPTS_MAX - 1:
                    raise  # a task that is gone in between is left out of the next attempt
            else:
                return

    def _changes(
        self, view: View, items: Sequence[tuple[str, tuple[str, TaskStatus]]]
    ) -> list[Change]:
        changes: list[Change] = []
        for task_id, (node_id, status) in items:
            task = view.tasks.get(task_id)
            if task is None or task.node_id != node_id or not _is_news(task, status):
                continue
            written = status.replaced(
                applied_at_ns=self._clock.now_ns(), applied_by=self._manager_id
            )
            changes.append(update(task.with_status(written)))
        return changes


def _is_news(task: Task, status: TaskStatus) -> bool:
    old = task.status
    if status.state != old.state:
        return status.state > old.state
    return (status.message, status.error, status.container, status.address) != (
        old.message,
        old.error,
        old.container,
        old.address,
    )
