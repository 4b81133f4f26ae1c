"""Goal: memberships never contradict themselves, and a joint change is the sum of simple ones."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from manager.raft.confchange import (
    LEAVE_JOINT,
    ChangeKind,
    ConfChange,
    Membership,
    NodeChange,
    Transition,
    add_learner,
    add_voter,
    changed,
    decode_change,
    encode_change,
    enter_joint,
    leave_joint,
    membership_of,
    problem_of,
    remove,
    simple,
)
from manager.raft.entries import ConfState
from shoal.errors import FailedPrecondition, InvalidArgument, SwarmError

CHANGE = st.builds(NodeChange, st.sampled_from(ChangeKind), st.integers(1, 6))
CHANGES = st.lists(CHANGE, min_size=1, max_size=5)
START = Membership(voters=frozenset({1, 2, 3}), learners=frozenset({4}))


def members(*voters: int, learners: tuple[int, ...] = ()) -> Membership:
    return Membership(voters=frozenset(voters), learners=frozenset(learners))


def without_former(membership: Membership) -> tuple[frozenset[int], frozenset[int]]:
    return membership.voters, membership.learners


@given(CHANGES, st.booleans())
def test_a_joint_change_ends_where_simple_ones_do(
    changes: list[NodeChange], auto_leave: bool
) -> None:
    try:
        joint = enter_joint(START, changes, auto_leave=auto_leave)
    except InvalidArgument:
        assume(False)
        return
    assert not problem_of(joint)
    assert joint.outgoing == START.voters
    one_by_one = START
    try:
        for change in changes:
            one_by_one = simple(one_by_one, [change])
    except InvalidArgument:
        return  # on the way there was no voter; joint, there always was one
    assert without_former(leave_joint(joint)) == without_former(one_by_one)


@given(st.lists(st.one_of(CHANGES, st.just([])), max_size=8), st.sampled_from(Transition))
def test_whatever_is_taken_keeps_the_invariants_and_overlapping_quorums(
    steps: list[list[NodeChange]], transition: Transition
) -> None:
    membership = START
    for changes in steps:
        try:
            after = changed(membership, ConfChange(tuple(changes), transition if changes else
                                                   Transition.AUTO))  # fmt: skip
        except SwarmError:
            continue
        assert not problem_of(after)
        assert quorums_meet(membership, after)
        assert membership_of(after.conf_state()) == after
        membership = after


def quorums_meet(before: Membership, after: Membership) -> bool:
    """Whether every quorum of one has a node in common with every quorum of the other."""
    return all(
        a & b
        for a in quorums(before)
        for b in quorums(after)
    )  # fmt: skip


def quorums(membership: Membership) -> list[frozenset[int]]:
    halves = [half for half in (membership.voters, membership.outgoing) if half]
    result = [frozenset[int]()]
    for half in halves:
        size = len(half) // 2 + 1
        groups = [frozenset(group) for group in combinations(sorted(half), size)]
        result = [found | group for found in result for group in groups]
    return result


def test_promotion_and_demotion() -> None:
    assert changed(START, add_voter(4)) == members(1, 2, 3, 4)
    demoted = changed(START, add_learner(3))
    assert demoted.learners == {3, 4}
    assert demoted.former == {3}
    assert changed(START, remove(9)) == START


def test_a_voter_that_becomes_a_learner_waits_for_the_end_of_a_joint_change() -> None:
    joint = enter_joint(START, add_learner(3).changes, auto_leave=False)
    assert joint.learners_next == {3}
    assert 3 not in joint.learners
    assert leave_joint(joint).learners == {3, 4}


@pytest.mark.parametrize(
    ("membership", "change", "error"),
    [
        (members(1), remove(1), InvalidArgument),
        (members(1), add_learner(1), InvalidArgument),
        (members(1, 2), LEAVE_JOINT, FailedPrecondition),
        (members(1, 2), add_voter(0), InvalidArgument),
        (Membership(voters=frozenset({1}), outgoing=frozenset({1})), add_voter(2),
         FailedPrecondition),
        (Membership(), ConfChange((NodeChange(ChangeKind.ADD_VOTER, 1),),
                                  Transition.JOINT_EXPLICIT), FailedPrecondition),
    ],
)  # fmt: skip
def test_refused(membership: Membership, change: ConfChange, error: type[Exception]) -> None:
    with pytest.raises(error):
        changed(membership, change)


def test_a_simple_change_moves_one_voter() -> None:
    two = add_voter(5).changes + add_voter(6).changes
    with pytest.raises(InvalidArgument, match="one voter"):
        simple(START, two)


def test_a_kept_membership_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="vote and learn"):
        membership_of(ConfState(voters=(1, 2), learners=(2,)))
    with pytest.raises(InvalidArgument, match="leave"):
        membership_of(ConfState(voters=(1,), auto_leave=True))


@given(CHANGES, st.sampled_from(Transition), st.binary(max_size=8))
def test_changes_survive_the_log(
    changes: list[NodeChange], transition: Transition, context: bytes
) -> None:
    change = ConfChange(tuple(changes), transition, context)
    assert decode_change(encode_change(change)) == change


def test_garbage_is_no_change() -> None:
    with pytest.raises(InvalidArgument):
        decode_change(b"\xc1")
