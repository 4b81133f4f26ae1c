"""Goal: the log as a whole behaves like one list, however it is cut into durable and not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.raft.entries import Entry, Snapshot, entries_bytes
from manager.raft.invariants import check_log
from manager.raft.log import RaftLog
from manager.raft.storage import MemoryStorage
from shoal.errors import InvalidArgument, InvariantViolation

NO_LIMIT = 1 << 30


def a_log(*terms: int, committed: int = 1, stable: int | None = None) -> RaftLog:
    """A log after a snapshot of 1/1, with entries of these terms from index 2."""
    entries = [Entry(index, term) for index, term in enumerate(terms, 2)]
    kept = len(entries) if stable is None else stable - 1
    storage = MemoryStorage(Snapshot(index=1, term=1), entries[:kept])
    log = RaftLog(storage, committed=committed, applied=1)
    if entries[kept:]:
        log.append(entries[kept:])
    return log


def terms_of(log: RaftLog) -> list[int]:
    return [entry.term for entry in log.entries(log.first_index, log.last_index + 1, NO_LIMIT)]


def test_matching_entries_are_never_truncated() -> None:
    log = a_log(1, 1, 2, 2)
    assert log.follow(1, 1, [Entry(2, 1)]) == 2
    assert log.follow(3, 1, ()) == 3
    assert terms_of(log) == [1, 1, 2, 2]


def test_a_conflict_replaces_the_rest_and_only_the_rest() -> None:
    log = a_log(1, 1, 2, 2)
    assert log.follow(2, 1, [Entry(3, 1), Entry(4, 3)]) == 4
    assert terms_of(log) == [1, 1, 3]
    assert log.stable == 3


def test_a_gap_or_another_term_before_is_refused() -> None:
    log = a_log(1, 1)
    assert log.follow(7, 1, [Entry(8, 1)]) is None
    assert log.follow(3, 2, [Entry(4, 2)]) is None
    assert terms_of(log) == [1, 1]


def test_a_committed_entry_is_never_replaced() -> None:
    log = a_log(1, 1, committed=3)
    with pytest.raises(InvariantViolation, match="committed entry"):
        log.follow(1, 1, [Entry(2, 5)])


def test_the_commit_index_never_falls_and_never_passes_the_log() -> None:
    log = a_log(1, 1)
    assert log.commit_to(3)
    assert not log.commit_to(2)
    assert log.committed == 3
    with pytest.raises(InvariantViolation, match="lost entries"):
        log.commit_to(4)


def test_only_durable_entries_are_given_out() -> None:
    log = a_log(1, 1, 1, stable=2)
    log.commit_to(4)
    assert [entry.index for entry in log.next_committed(NO_LIMIT)] == [2]
    log.entries_stable(log.unstable[:1])
    assert [entry.index for entry in log.next_committed(NO_LIMIT)] == [2, 3]


def test_entries_replaced_while_they_were_written_do_not_become_durable() -> None:
    log = a_log(1, 1, 1, stable=2)
    written = tuple(log.unstable)
    log.follow(3, 1, [Entry(4, 2)])
    log.entries_stable(written)
    assert log.stable == 3
    assert [entry.term for entry in log.unstable] == [2]


def test_a_log_replaced_from_before_the_written_part_has_nothing_durable_of_it() -> None:
    log = a_log(1, 1, 1, stable=3)
    written = tuple(log.unstable)
    log.follow(1, 1, [Entry(2, 2), Entry(3, 2), Entry(4, 2)])
    log.entries_stable(written)
    assert log.stable == 1
    assert terms_of(log) == [2, 2, 2]


def test_a_snapshot_in_between_drops_what_was_written() -> None:
    log = a_log(1, 1, 1, stable=2)
    written = tuple(log.unstable)
    snapshot = Snapshot(index=9, term=3)
    log.restore(snapshot)
    log.entries_stable(written)
    assert (log.stable, log.last_index, log.last_term) == (9, 9, 3)
    assert log.next_committed(NO_LIMIT) == []
    log.snapshot_stable(snapshot)
    log.applied_to(9)
    assert log.first_index == 10


def test_up_to_date_is_term_first() -> None:
    log = a_log(1, 2)
    assert log.is_up_to_date(3, 2)
    assert log.is_up_to_date(2, 3)
    assert not log.is_up_to_date(9, 1)
    assert not log.is_up_to_date(2, 2)


@given(
    st.lists(st.integers(0, 1), max_size=12),
    st.lists(st.integers(0, 1), max_size=12),
    st.integers(0, 14),
)
def test_a_conflict_hint_skips_nothing_that_matches(
    mine: list[int], theirs: list[int], refused: int
) -> None:
    """Logs that share a prefix: the hint is never below the last entry that both have."""
    log = a_log(*_rising(mine))
    other = a_log(*_rising(theirs))
    index = min(refused + 1, other.last_index)
    hint, hint_term = log.conflict_hint(index, other.known_term(index))
    common = 1
    while log.term(common + 1) is not None and log.term(common + 1) == other.term(common + 1):
        common += 1
    assert hint >= min(common, index)
    assert hint == 0 or log.term(hint) == hint_term


def _rising(steps: list[int]) -> list[int]:
    terms, term = [], 1
    for step in steps:
        term += step
        terms.append(term)
    return terms


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=9), st.integers(0, 9), st.data())
def test_entries_read_like_one_list_and_keep_the_limit(
    data: list[bytes], stable: int, draw: st.DataObject
) -> None:
    entries = [Entry(index, 1, 1, each) for index, each in enumerate(data, 2)]
    stable = min(stable, len(entries))
    log = RaftLog(
        MemoryStorage(Snapshot(index=1, term=1), entries[:stable]), committed=1, applied=1
    )
    if entries[stable:]:
        log.append(entries[stable:])
    low = draw.draw(st.integers(2, len(data) + 1))
    limit = draw.draw(st.integers(1, 300))
    found = log.entries(low, log.last_index + 1, limit)
    assert found == entries[low - 2 :][: len(found)]
    assert len(found) == 1 or entries_bytes(found) <= limit
    if len(found) < len(entries) - low + 2:
        following = entries[low - 2 :][: len(found) + 1]
        assert entries_bytes(following) > limit
    check_log(log)


def test_storage_refuses_logs_with_holes() -> None:
    with pytest.raises(InvalidArgument, match="gap"):
        MemoryStorage(Snapshot(index=1, term=1), [Entry(2, 1), Entry(4, 1)])
    with pytest.raises(InvalidArgument, match="continue"):
        MemoryStorage(Snapshot(index=1, term=1), [Entry(3, 1)])


def test_a_log_that_begins_before_its_snapshot_serves_those_who_lag() -> None:
    entries = [Entry(index, 1) for index in range(3, 8)]
    storage = MemoryStorage(Snapshot(index=5, term=1), entries)
    assert (storage.first_index, storage.last_index) == (4, 7)
    assert storage.term(3) == 1
    assert storage.term(2) is None


def test_compaction_keeps_the_term_before_the_first_entry() -> None:
    storage = MemoryStorage(Snapshot(index=1, term=1), [Entry(2, 1), Entry(3, 2), Entry(4, 2)])
    with pytest.raises(InvariantViolation, match="past the snapshot"):
        storage.compact(3)
    storage.offer(Snapshot(index=3, term=2))
    storage.compact(3)
    assert (storage.first_index, storage.term(3), storage.term(2)) == (4, 2, None)
