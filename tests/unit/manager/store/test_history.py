"""Watches that go on from a version, against a list of every commit there ever was."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from manager.store.apply import Commit
from manager.store.history import History, VersionCompacted, VersionUnknown
from manager.store.store import Store, Watcher
from manager.store.tables import Tables
from shoal.errors import InvariantViolation, SwarmError
from shoal.model.enums import ActionKind
from shoal.model.objects import StoreAction, StoreEntry
from tests.support.managing import HandClock
from tests.support.planning import a_task

COMMITS_MAX, BYTES_MAX = 7, 50


def an_entry(*actions: tuple[ActionKind, str]) -> StoreEntry:
    return StoreEntry(
        actions=tuple(StoreAction(kind=kind, object=a_task(name)) for kind, name in actions)
    )


class WatchMachine(RuleBasedStateMachine):
    """Commits, refusals, other entries of the log, resets; watches opened at any version."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(Tables(), HandClock(), self.history(0))
        self.every: list[tuple[Commit, int]] = []
        self.index = self.first = 0
        self.watches: list[tuple[Watcher, list[Commit], int]] = []
        """A watcher, what it has given so far, and the version it began after."""
        self.contexts = []

    def history(self, since: int) -> History:
        return History(since, commits_max=COMMITS_MAX, bytes_max=BYTES_MAX)

    @property
    def oldest(self) -> int:
        """Where the plainest words say that watches can go on from."""
        count, size_bytes = 0, 0
        for commit, its_bytes in reversed(self.every):
            count, size_bytes = count + 1, size_bytes + its_bytes
            if count > COMMITS_MAX or size_bytes > BYTES_MAX:
                return commit.version
        return self.first

    @rule(names=st.lists(st.sampled_from("abc"), min_size=1, max_size=3), size=st.integers(1, 20))
    def commit(self, names: list[str], size: int) -> None:
        """Creates what is not there and removes what is; sometimes refused: twice the same."""
        there = {task.id for task in self.store.view.tasks}
        entry = an_entry(
            *((ActionKind.REMOVE if name in there else ActionKind.CREATE, name) for name in names)
        )
        self.index += 1
        result = self.store.apply(entry, self.index, size)
        if len(set(names)) < len(names):
            assert isinstance(result, SwarmError)
        else:
            assert isinstance(result, Commit)
            self.every.append((result, size))

    @rule()
    def something_else_in_the_log(self) -> None:
        """Entries of Raft's own take an index as well."""
        self.index += 1

    @rule()
    def snapshot_of_a_leader(self) -> None:
        """It takes the place of everything: watchers read what they have, then must resync."""
        self.index += 3
        self.store.reset(Tables(self.store.rows(), version=self.index))
        self.store._committed.history = self.history(self.index)
        self.every, self.first = [], self.index
        for watcher, _, _ in self.watches:
            watcher.take_ready()
        self.watches.clear()

    @rule(back=st.integers(-2, 12))
    def watch(self, back: int) -> None:
        """From any version, also refused ones and those that were nobody's."""
        version = max(0, self.store.view.version - back)
        context = self.store.watch(after=version)
        if version < self.oldest:
            with pytest.raises(VersionCompacted, match=f"from version {self.oldest} or later"):
                context.__enter__()
        elif version > self.store.view.version:
            with pytest.raises(VersionUnknown, match="is unknown"):
                context.__enter__()
        else:
            self.watches.append((context.__enter__(), [], version))
            self.contexts.append(context)

    @precondition(lambda self: self.watches)
    @rule(which=st.integers(0, 99))
    def read(self, which: int) -> None:
        watcher, seen, _ = self.watches[which % len(self.watches)]
        seen += watcher.take_ready()

    @invariant()
    def bounded(self) -> None:
        history = self.store.history
        assert history.since == self.oldest
        assert len(history) <= COMMITS_MAX
        assert history.size_bytes <= BYTES_MAX

    def teardown(self) -> None:
        """Every watcher has seen all commits after its version, in order, each once, whole."""
        for watcher, seen, version in self.watches:
            seen += watcher.take_ready()
            assert seen == [commit for commit, _ in self.every if commit.version > version]
        for context in self.contexts:
            context.__exit__(None, None, None)


TestWatch = WatchMachine.TestCase
TestWatch.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


async def test_commits_of_before_come_first_also_one_by_one():
    store = Store(Tables(), HandClock())
    for index in (1, 2):
        store.apply(an_entry((ActionKind.CREATE, f"t{index}")), index, 1)
    with store.watch(after=1) as watcher:
        store.apply(an_entry((ActionKind.CREATE, "t3")), 5, 1)
        assert [(await watcher.next()).version for _ in range(2)] == [2, 5]


def test_a_history_that_goes_back_is_a_bug():
    history = History(4)
    with pytest.raises(InvariantViolation, match="history goes back"):
        history.add(Commit(version=4, events=()), 1)


def test_one_commit_above_the_bound_leaves_nothing_to_go_on_from_before_it():
    history = History(bytes_max=10)
    history.add(Commit(version=1, events=()), 5)
    history.add(Commit(version=2, events=()), 11)
    assert (history.since, len(history), history.size_bytes) == (2, 0, 0)
