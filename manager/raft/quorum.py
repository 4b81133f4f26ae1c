"""Majorities, alone and joint: what has been decided by the voters heard so far.

Pure functions over ids; usable without the rest. A joint decision needs both majorities; an empty
half always agrees, so a membership that is not joint has an empty `outgoing`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum

UNBOUNDED = 1 << 64
"""What no voters at all have committed: everything."""


class VoteResult(Enum):
    """How an election stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority_committed(voters: Collection[int], acked: Mapping[int, int]) -> int:
    """The highest index that a majority of `voters` has acknowledged; a missing one counts 0."""
    if not voters:
        return UNBOUNDED
    indexes = sorted([acked.get(voter, 0) for voter in voters])
    return indexes[(len(indexes) - 1) // 2]


def joint_committed(
    voters: Collection[int], outgoing: Collection[int], acked: Mapping[int, int]
) -> int:
    """The highest index that both majorities have acknowledged."""
    committed = majority_committed(voters, acked)
    return min(committed, majority_committed(outgoing, acked)) if outgoing else committed


def majority_vote(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """How the election stands among `voters`; votes of others do not count."""
    if not voters:
        return VoteResult.WON
    needed = len(voters) // 2 + 1
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    if granted >= needed:
        return VoteResult.WON
    missing = sum(1 for voter in voters if voter not in votes)
    return VoteResult.PENDING if granted + missing >= needed else VoteResult.LOST


def joint_vote(
    voters: Collection[int], outgoing: Collection[int], votes: Mapping[int, bool]
) -> VoteResult:
    """Lost when one half is lost, won when both are won."""
    results = (majority_vote(voters, votes), majority_vote(outgoing, votes))
    if VoteResult.LOST in results:
        return VoteResult.LOST
    return VoteResult.PENDING if VoteResult.PENDING in results else VoteResult.WON
