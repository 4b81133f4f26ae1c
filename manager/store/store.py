"""The store: transactions in, committed state and a watch out.

`commit` proposes a transaction and returns when it is applied; conflicts are decided at apply.
`view` is the committed state. `watch` gives every commit after the moment it was called, or after
a version that the history still reaches, whole and in order; a watcher that falls behind is closed
with an error and must start again from a fresh view (queues are bounded). What is durable, and in
what order, is the Proposer's business.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, Self

from manager.store.apply import Commit, StoreEvent, apply_entry
from manager.store.history import History
from manager.store.tables import Tables
from manager.store.view import View
from shoal.clock import Clock, SteadyClock
from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    SequenceConflict,
    SwarmError,
    violated,
)
from shoal.model.enums import ActionKind
from shoal.model.objects import AnyObject, StoreAction, StoreEntry
from shoal.model.plan import CHANGES_MAX, Change

WATCH_QUEUE_MAX = 4096
"""Commits a watcher may lag behind before it is told to resync."""


class TransactionTooLarge(ResourceExhausted):
    """More bytes than one log entry may hold; whoever can, commits it in several parts."""


class Proposer(Protocol):
    """Makes an entry durable and decides its place in the log (the seam that Raft fills)."""

    async def propose(self, entry: StoreEntry) -> Commit:
        """Return when the entry is durable and applied.

        Raises: what `apply_entry` raised; TransactionTooLarge; Unavailable or ResourceExhausted
        when the entry could not be made durable. A cancelled caller's entry may still commit.
        """
        ...


class Watcher:
    """Commits in order. Iterate it, or ask for the next one; close it by leaving its context."""

    def __init__(self, queue_max: int, past: Iterable[Commit] = ()) -> None:
        """past: commits of before, which come first."""
        self._past = deque(past)
        self._queue: asyncio.Queue[Commit | None] = asyncio.Queue(queue_max)
        self._lost = False

    def offer(self, commit: Commit) -> None:
        """Hand over a commit; a full queue marks the watcher as lost."""
        if self._lost:
            return
        try:
            self._queue.put_nowait(commit)
        except asyncio.QueueFull:
            self._lost = True

    def lose(self) -> None:
        """Commits are missing from here on: the watcher must resync."""
        self._lost = True
        if self._queue.empty():
            self._queue.put_nowait(None)  # wakes whoever waits

    async def next(self) -> Commit:
        """The next commit. Raises FailedPrecondition when commits were missed: resync."""
        if self._past:
            return self._past.popleft()
        if not self._lost or not self._queue.empty():
            commit = await self._queue.get()
            if commit is not None:
                return commit
        raise FailedPrecondition("the watch fell behind: read the state again and watch anew")

    def take_ready(self) -> list[Commit]:
        """The commits that are there already, without waiting."""
        ready = list(self._past)
        self._past.clear()
        while not self._queue.empty():
            commit = self._queue.get_nowait()
            if commit is not None:
                ready.append(commit)
        return ready

    def __aiter__(self) -> AsyncIterator[Commit]:
        """All commits from here on."""
        return self._commits()

    async def _commits(self) -> AsyncIterator[Commit]:
        while True:
            yield await self.next()


class _Committed:
    """What stores with different proposers share: tables, their history, and who follows them."""

    __slots__ = ("history", "tables", "watchers")

    def __init__(self, tables: Tables, history: History) -> None:
        self.tables = tables
        self.history = history
        self.watchers: set[Watcher] = set()


class Store:
    """One owner of the tables; everybody else reads views and proposes changes."""

    def __init__(self, tables: Tables, clock: Clock, history: History | None = None) -> None:
        """history: the commits that led to the tables, as far as they are known."""
        if history is None:
            history = History(tables.version)
        self._committed = _Committed(tables, history)
        self._clock = clock
        self._proposer: Proposer | None = None

    def through(self, proposer: Proposer) -> Store:
        """The same committed state, whose commits go through another proposer.

        What a leader does goes through one that proposes in its term only; the times that it
        writes never go back.
        """
        clock = SteadyClock(self._clock)
        other = Store(self._committed.tables, clock, self._committed.history)
        other._committed = self._committed
        return other.attach(proposer)

    def attach(self, proposer: Proposer) -> Self:
        """Name the proposer; before that the store is read-only."""
        self._proposer = proposer
        return self

    @property
    def clock(self) -> Clock:
        """The one that its commits are stamped by."""
        return self._clock

    @property
    def view(self) -> View:
        """The committed state; valid until the caller awaits."""
        return self._committed.tables

    @property
    def history(self) -> History:
        """The last commits; where a watch can go on."""
        return self._committed.history

    @contextmanager
    def watch(
        self, *, after: int | None = None, queue_max: int = WATCH_QUEUE_MAX
    ) -> Iterator[Watcher]:
        """Every commit after a version, or after this call, for as long as the context is open.

        Raises: VersionCompacted, VersionUnknown when there would be a gap.
        """
        now = self._committed.tables.version
        past = () if after is None else self._committed.history.after(after, now=now)
        watcher = Watcher(queue_max, past)
        self._committed.watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._committed.watchers.discard(watcher)

    async def commit(self, changes: Sequence[Change]) -> Commit:
        """Propose a transaction: all changes or none, as one entry.

        Raises: InvalidArgument above CHANGES_MAX changes; SequenceConflict, NotFound,
        AlreadyExists, NameConflict as decided at apply; TransactionTooLarge, Unavailable,
        ResourceExhausted.
        """
        if len(changes) > CHANGES_MAX:
            raise InvalidArgument(f"transaction: {len(changes)} changes, at most {CHANGES_MAX}")
        if self._proposer is None:
            violated("commit before a proposer is attached")
        if not changes:
            return Commit(version=self._committed.tables.version, events=())
        entry = StoreEntry(
            actions=tuple(_action(change) for change in changes),
            proposed_at_ns=self._clock.now_ns(),
        )
        return await self._proposer.propose(entry)

    def apply(self, entry: StoreEntry, index: int, size_bytes: int) -> Commit | SwarmError:
        """Apply a durable entry and tell the watchers. For the Proposer alone, in log order.

        size_bytes: of the entry in the log. Result: the commit, or the reason why the entry is
        refused (which every manager finds alike). Anything else that is raised is fatal: state
        machines would part.
        """
        try:
            commit = apply_entry(self._committed.tables, entry, index)
        except SwarmError as refused:
            return refused
        self._offer(commit, size_bytes)
        return commit

    def install(self, commit: Commit, size_bytes: int) -> None:
        """Take over a commit that was decided outside (etcd). For the Proposer alone, in order."""
        for event in commit.events:
            if event.object is None:
                self._committed.tables.remove(event.subject)
            else:
                self._committed.tables.put(event.object)
        self._committed.tables.version = commit.version
        if commit.events:
            self._offer(commit, size_bytes)

    def reset(self, tables: Tables) -> None:
        """Start again from another state; every watcher must resync. For the Proposer alone."""
        self._committed.tables = tables
        self._committed.history = History(tables.version)
        for watcher in self._committed.watchers:
            watcher.lose()

    def _offer(self, commit: Commit, size_bytes: int) -> None:
        self._committed.history.add(commit, size_bytes)
        for watcher in self._committed.watchers:
            watcher.offer(commit)

    def copy(self) -> Tables:
        """The committed state in tables of the caller's own, for work off the event loop."""
        return self._committed.tables.copy()

    def rows(self) -> tuple[AnyObject, ...]:
        """Every object of the committed state, for a snapshot."""
        return tuple(self._committed.tables.all_rows())


async def commit_with_retry(
    store: Store, build: Callable[[View], Sequence[Change]], *, attempts_max: int = 10
) -> Commit:
    """Build changes from the newest view and commit them; again when something else came first.

    Raises: SequenceConflict after `attempts_max` tries; what `build` and `commit` raise.
    """
    attempt = 1
    while True:
        try:
            return await store.commit(build(store.view))
        except SequenceConflict:
            if attempt == attempts_max:
                raise
            attempt += 1


def _action(change: Change) -> StoreAction:
    expected = 0 if change.kind is ActionKind.CREATE else change.object.meta.version.index
    return StoreAction(kind=change.kind, object=change.object, expected_version=expected)


__all__ = [
    "Commit",
    "Proposer",
    "Store",
    "StoreEvent",
    "TransactionTooLarge",
    "Watcher",
    "commit_with_retry",
]
