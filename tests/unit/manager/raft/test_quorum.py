"""Goal: majorities agree with counting every subset; joint decisions need both halves."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.raft.quorum import (
    UNBOUNDED,
    VoteResult,
    joint_committed,
    joint_vote,
    majority_committed,
    majority_vote,
)

NODES = st.sets(st.integers(1, 7), max_size=7)
ACKED = st.dictionaries(st.integers(1, 7), st.integers(0, 9))
VOTES = st.dictionaries(st.integers(1, 7), st.booleans())


def committed_by_subsets(voters: set[int], acked: dict[int, int]) -> int:
    """The best that any majority, tried one by one, agrees on."""
    if not voters:
        return UNBOUNDED
    size = len(voters) // 2 + 1
    return max(
        min(acked.get(voter, 0) for voter in group) for group in combinations(sorted(voters), size)
    )


@given(NODES, ACKED)
def test_majority_committed_is_what_some_majority_has(
    voters: set[int], acked: dict[int, int]
) -> None:
    assert majority_committed(voters, acked) == committed_by_subsets(voters, acked)


@given(NODES, NODES, ACKED)
def test_joint_committed_is_the_lower_half(
    voters: set[int], outgoing: set[int], acked: dict[int, int]
) -> None:
    expected = min(committed_by_subsets(voters, acked), committed_by_subsets(outgoing, acked))
    assert joint_committed(voters, outgoing, acked) == expected


@given(NODES.filter(bool), VOTES)
def test_a_vote_is_won_or_lost_only_when_the_rest_cannot_change_it(
    voters: set[int], votes: dict[int, bool]
) -> None:
    def won(answers: dict[int, bool]) -> bool:
        return 2 * sum(answers.get(voter, False) for voter in voters) > len(voters)

    missing = {voter for voter in voters if voter not in votes}
    at_worst = won(votes)
    at_best = won(votes | dict.fromkeys(missing, True))
    expected = VoteResult.WON if at_worst else VoteResult.PENDING if at_best else VoteResult.LOST
    assert majority_vote(voters, votes) is expected


@given(NODES.filter(bool), NODES, VOTES)
def test_a_joint_vote_needs_both(
    voters: set[int], outgoing: set[int], votes: dict[int, bool]
) -> None:
    halves = {majority_vote(voters, votes), majority_vote(outgoing, votes)}
    result = joint_vote(voters, outgoing, votes)
    assert (result is VoteResult.WON) == (halves == {VoteResult.WON})
    assert (result is VoteResult.LOST) == (VoteResult.LOST in halves)


@pytest.mark.parametrize(
    ("voters", "acked", "committed"),
    [({1}, {1: 5}, 5), ({1, 2}, {1: 5, 2: 3}, 3), ({1, 2, 3}, {1: 9, 2: 4}, 4), ({1, 2}, {}, 0)],
)
def test_examples(voters: set[int], acked: dict[int, int], committed: int) -> None:
    assert majority_committed(voters, acked) == committed


def test_votes_of_others_do_not_count() -> None:
    assert majority_vote({1, 2, 3}, {1: True, 8: True, 9: True}) is VoteResult.PENDING
