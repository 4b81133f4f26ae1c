"""Writes what agents report: merged, in batches, never backwards.

While one batch is being committed the next gathers, so the log sees few entries under load and a
single report waits for nothing. Callers resume when their reports are in the store; what cannot be
written fails the callers who reported it and nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from manager.store.store import Store, TransactionTooLarge
from manager.store.view import View
from shoal.aio.signal import Signal
from shoal.clock import Clock
from shoal.errors import NotFound, ResourceExhausted, SequenceConflict, SwarmError, Unavailable
from shoal.model.objects import Task
from shoal.model.plan import CHANGES_MAX, Change, update
from shoal.model.types import TaskStatus

PENDING_MAX = 20_000
ATTEMPTS_MAX = 20


class _Key(NamedTuple):
    node_id: str
    task_id: str


class _Caller(NamedTuple):
    keys: frozenset[_Key]
    done: asyncio.Future[None]


class StatusWriter:
    """The one writer of task statuses on this manager; `run` must be running."""

    def __init__(
        self, store: Store, clock: Clock, *, manager_id: str, changes_max: int = CHANGES_MAX
    ) -> None:
        """changes_max: more are not put into one transaction."""
        self._changes_max = changes_max
        self._store = store
        self._clock = clock
        self._manager_id = manager_id
        self._pending: dict[_Key, TaskStatus] = {}
        self._callers: list[_Caller] = []
        self._signal = Signal()

    async def write(self, node_id: str, statuses: Mapping[str, TaskStatus]) -> None:
        """Write a node's reports; returns when they are committed.

        Reports of tasks that are not on the node, or below what is known, are dropped.
        Raises: ResourceExhausted when too much waits; what the store raises.
        """
        if not statuses:
            return
        if len(self._pending) + len(statuses) > PENDING_MAX:
            raise ResourceExhausted(f"{PENDING_MAX} task reports wait already: report again later")
        for task_id, status in statuses.items():
            waiting = self._pending.get(_Key(node_id, task_id))
            if waiting is None or waiting.state <= status.state:
                self._pending[_Key(node_id, task_id)] = status
        keys = frozenset(_Key(node_id, task_id) for task_id in statuses)
        caller = _Caller(keys, asyncio.get_running_loop().create_future())
        self._callers.append(caller)
        self._signal.set()
        await caller.done

    async def run(self) -> None:
        """Write what is reported, for ever."""
        while True:
            await self._signal.wait()
            batch, callers = self._pending, self._callers
            self._pending, self._callers = {}, []
            errors: dict[_Key, SwarmError] = {}
            try:
                items = list(batch.items())
                size = self._changes_max
                parts = [items[at : at + size] for at in range(0, len(items), size)]
                for failed in await asyncio.gather(*map(self._commit, parts)):
                    errors.update(failed)
            except BaseException:
                errors = dict.fromkeys(batch, Unavailable("the manager could not write reports"))
                raise
            finally:
                _answer(callers, errors)

    async def _commit(self, items: Sequence[tuple[_Key, TaskStatus]]) -> dict[_Key, SwarmError]:
        """Write some reports. Result: those that could not be written, and why."""
        attempt = 1
        while True:
            try:
                await self._store.commit(self._changes(self._store.view, items))
            except TransactionTooLarge as error:
                if len(items) == 1:
                    return {items[0][0]: error}
                half = len(items) // 2
                return await self._commit(items[:half]) | await self._commit(items[half:])
            except (SequenceConflict, NotFound) as error:
                # Written or removed in between; a task that is gone is left out the next time.
                if attempt == ATTEMPTS_MAX:
                    return dict.fromkeys((key for key, _ in items), error)
                attempt += 1
            except SwarmError as error:
                return dict.fromkeys((key for key, _ in items), error)
            else:
                return {}

    def _changes(self, view: View, items: Sequence[tuple[_Key, TaskStatus]]) -> list[Change]:
        changes: list[Change] = []
        for key, status in items:
            task = view.tasks.get(key.task_id)
            if task is None or task.node_id != key.node_id or not _is_news(task, status):
                continue
            same = status.state is task.status.state and task.status.applied_at_ns
            written = status.replaced(
                applied_at_ns=same or self._clock.now_ns(), applied_by=self._manager_id
            )
            changes.append(update(task.with_status(written)))
        return changes


def _answer(callers: Sequence[_Caller], errors: Mapping[_Key, SwarmError]) -> None:
    for caller in callers:
        if caller.done.done():
            continue  # it went away
        error = next((errors[key] for key in caller.keys if key in errors), None)
        if error is None:
            caller.done.set_result(None)
        else:
            caller.done.set_exception(type(error)(error.message, **error.context))


def _is_news(task: Task, status: TaskStatus) -> bool:
    old = task.status
    if status.state != old.state:
        return status.state > old.state
    return _said(status) != _said(old)


def _said(status: TaskStatus) -> tuple[object, ...]:
    """What may change while the state stays."""
    return status.message, status.error, status.container, status.address, status.file_ids
