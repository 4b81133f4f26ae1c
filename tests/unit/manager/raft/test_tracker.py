"""Goal: the window and the states of one follower's progress."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.raft.tracker import Inflights, Progress, ProgressState
from shoal.errors import InvariantViolation


def a_progress(next_index: int = 5, messages: int = 2, size_bytes: int = 100) -> Progress:
    return Progress(next_index, Inflights(messages, size_bytes))


def test_a_window_is_full_by_messages_or_bytes() -> None:
    window = Inflights(2, 100)
    window.add(1, 10)
    assert not window.is_full
    window.add(2, 10)
    assert window.is_full
    with pytest.raises(InvariantViolation):
        window.add(3, 1)
    window.free_to(1)
    window.add(3, 95)
    assert (len(window), window.bytes, window.is_full) == (2, 105, True)


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(0, 40))
def test_freeing_counts_exactly_what_is_left(sizes: list[int], freed: int) -> None:
    window = Inflights(100, 10_000)
    for index, size in enumerate(sizes, 1):
        window.add(index, size)
    window.free_to(freed)
    assert window.bytes == sum(sizes[freed:])
    assert len(window) == len(sizes[freed:])


def test_match_never_falls() -> None:
    progress = a_progress()
    assert progress.update(4)
    assert not progress.update(3)
    assert (progress.match, progress.next) == (4, 5)


def test_an_old_refusal_changes_nothing() -> None:
    progress = a_progress()
    progress.update(4)
    progress.become_replicate()
    progress.sent(6, 10)
    assert not progress.decrease(4, 2)
    assert progress.next == 7
    assert progress.decrease(6, 5)
    assert progress.next == 5


def test_a_probe_sends_one_at_a_time() -> None:
    progress = a_progress()
    progress.sent(9, 10)
    assert progress.is_paused
    assert progress.next == 5
    assert progress.decrease(4, 1)
    assert (progress.next, progress.is_paused) == (2, False)
    assert not progress.decrease(4, 0)


def test_a_snapshot_stops_everything_until_it_is_settled() -> None:
    progress = a_progress()
    progress.become_snapshot(20)
    assert progress.is_paused
    progress.become_probe()
    assert (progress.state, progress.next) == (ProgressState.PROBE, 21)
