"""Memberships and how one follows another: simple changes, and joint ones in two halves.

Invariant of a `Membership`: a node is a voter or a learner, never both; while a joint change is
under way a voter of the outgoing half that shall become a learner waits in `learners_next`. A
simple change moves at most one voter, so the majorities before and after always meet; anything
more goes through a joint membership, in which both majorities must agree. Refuses: removing the
last voter, a second joint change inside the first. Pure, usable alone. Source: Raft thesis §4.3,
etcd-io/raft `confchange`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import msgspec

from manager.raft.entries import ConfState
from shoal.errors import FailedPrecondition, InvalidArgument, invariant


class ChangeKind(IntEnum):
    """What becomes of a node; the values are stored in the log."""

    ADD_VOTER = 0
    """Also promotes a learner."""
    REMOVE = 1
    ADD_LEARNER = 2
    """Also demotes a voter."""


class Transition(IntEnum):
    """How a change of several nodes is made; the values are stored in the log."""

    AUTO = 0
    """Simple for one node, otherwise joint and left automatically."""
    JOINT_IMPLICIT = 1
    """Joint, left automatically by the leader."""
    JOINT_EXPLICIT = 2
    """Joint until somebody proposes LEAVE_JOINT."""


class NodeChange(msgspec.Struct, frozen=True, gc=False):
    """One node's part of a change."""

    kind: ChangeKind
    node: int


class ConfChange(msgspec.Struct, frozen=True, gc=False):
    """A change of the membership as it is proposed; `context` is the caller's own."""

    changes: tuple[NodeChange, ...] = ()
    transition: Transition = Transition.AUTO
    context: bytes = b""

    @property
    def leaves_joint(self) -> bool:
        """Whether this is the second half of a joint change."""
        return not self.changes and self.transition is Transition.AUTO


LEAVE_JOINT = ConfChange()


class Membership(msgspec.Struct, frozen=True, gc=False):
    """Who decides and who merely follows; see ConfState for the fields."""

    voters: frozenset[int] = frozenset()
    learners: frozenset[int] = frozenset()
    outgoing: frozenset[int] = frozenset()
    learners_next: frozenset[int] = frozenset()
    auto_leave: bool = False
    former: frozenset[int] = frozenset()

    @property
    def is_joint(self) -> bool:
        """Whether a joint change is half done."""
        return bool(self.outgoing)

    @property
    def all_voters(self) -> frozenset[int]:
        """Voters of either half."""
        return self.voters | self.outgoing if self.outgoing else self.voters

    @property
    def nodes(self) -> frozenset[int]:
        """Everybody who gets the log."""
        return self.voters | self.outgoing | self.learners

    def conf_state(self) -> ConfState:
        """The same, as it is kept."""
        return ConfState(
            voters=tuple(sorted(self.voters)),
            learners=tuple(sorted(self.learners)),
            outgoing=tuple(sorted(self.outgoing)),
            learners_next=tuple(sorted(self.learners_next)),
            auto_leave=self.auto_leave,
            former=tuple(sorted(self.former)),
        )


def add_voter(node: int) -> ConfChange:
    """Add a voter, or promote a learner."""
    return ConfChange((NodeChange(ChangeKind.ADD_VOTER, node),))


def add_learner(node: int) -> ConfChange:
    """Add a learner, or demote a voter."""
    return ConfChange((NodeChange(ChangeKind.ADD_LEARNER, node),))


def remove(node: int) -> ConfChange:
    """Remove a voter or learner; removing nobody changes nothing."""
    return ConfChange((NodeChange(ChangeKind.REMOVE, node),))


def membership_of(state: ConfState) -> Membership:
    """The membership that was kept.

    Raises: InvalidArgument when it contradicts itself.
    """
    membership = Membership(
        voters=frozenset(state.voters),
        learners=frozenset(state.learners),
        outgoing=frozenset(state.outgoing),
        learners_next=frozenset(state.learners_next),
        auto_leave=state.auto_leave,
        former=frozenset(state.former),
    )
    problem = problem_of(membership)
    if problem:
        raise InvalidArgument(f"membership: {problem}")
    return membership


def changed(membership: Membership, change: ConfChange) -> Membership:
    """The membership after one proposed change.

    Raises: FailedPrecondition, InvalidArgument; then nothing was changed.
    """
    if change.leaves_joint:
        return leave_joint(membership)
    if is_joint_change(change):
        return enter_joint(
            membership,
            change.changes,
            auto_leave=change.transition is not Transition.JOINT_EXPLICIT,
        )
    return simple(membership, change.changes)


def is_joint_change(change: ConfChange) -> bool:
    """Whether the change goes through a joint membership."""
    return change.transition is not Transition.AUTO or len(change.changes) > 1


def simple(membership: Membership, changes: Sequence[NodeChange]) -> Membership:
    """Apply changes that move at most one voter, at once.

    Raises: FailedPrecondition, InvalidArgument.
    """
    if membership.is_joint:
        raise FailedPrecondition("membership: a joint change is under way; leave it first")
    result = _applied(membership, changes)
    if len(membership.voters ^ result.voters) > 1:
        raise InvalidArgument("membership: a simple change moves one voter; use a joint change")
    return result


def enter_joint(
    membership: Membership, changes: Sequence[NodeChange], *, auto_leave: bool
) -> Membership:
    """The first half of a joint change: the old voters stay as `outgoing`.

    Raises: FailedPrecondition, InvalidArgument.
    """
    if membership.is_joint:
        raise FailedPrecondition("membership: a joint change is under way; leave it first")
    if not membership.voters:
        raise FailedPrecondition("membership: no voters; the first one is added by a simple change")
    joint = Membership(
        voters=membership.voters,
        learners=membership.learners,
        outgoing=membership.voters,
        auto_leave=auto_leave,
    )
    return _applied(joint, changes)


def leave_joint(membership: Membership) -> Membership:
    """The second half: the outgoing voters go, those that wait become learners.

    Raises: FailedPrecondition when no joint change is under way.
    """
    if not membership.is_joint:
        raise FailedPrecondition("membership: no joint change is under way, nothing to leave")
    return _checked(
        Membership(
            voters=membership.voters,
            learners=membership.learners | membership.learners_next,
            former=membership.outgoing - membership.voters,
        )
    )


def problem_of(membership: Membership) -> str:
    """What contradicts the invariants of a membership, or nothing."""
    if 0 in membership.nodes:
        return "node 0 does not exist"
    if membership.learners & membership.all_voters:
        return f"{sorted(membership.learners & membership.all_voters)} vote and learn"
    if membership.learners_next - membership.outgoing:
        return f"{sorted(membership.learners_next - membership.outgoing)} wait without voting"
    if membership.learners_next & membership.voters:
        return f"{sorted(membership.learners_next & membership.voters)} stay and wait"
    if membership.former & membership.all_voters:
        return f"{sorted(membership.former & membership.all_voters)} lost a vote and have it"
    if membership.auto_leave and not membership.is_joint:
        return "nothing to leave automatically"
    return ""


def encode_change(change: ConfChange) -> bytes:
    """The data of a KIND_CONF_CHANGE entry."""
    return msgspec.msgpack.encode(change)


def decode_change(data: bytes) -> ConfChange:
    """Read the data of a KIND_CONF_CHANGE entry.

    Raises: InvalidArgument when it is not one.
    """
    try:
        return msgspec.msgpack.decode(data, type=ConfChange)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"membership change: {error}") from error


def _applied(membership: Membership, changes: Sequence[NodeChange]) -> Membership:
    voters, learners = set(membership.voters), set(membership.learners)
    waiting = set(membership.learners_next)
    for change in changes:
        node = change.node
        if not 0 < node < 1 << 64:
            raise InvalidArgument(f"membership: node {node} is not between 1 and 2**64 - 1")
        voters.discard(node)
        learners.discard(node)
        waiting.discard(node)
        if change.kind is ChangeKind.ADD_VOTER:
            voters.add(node)
        elif change.kind is ChangeKind.ADD_LEARNER:
            (waiting if node in membership.outgoing else learners).add(node)
    if not voters:
        raise InvalidArgument("membership: the last voter cannot be removed or demoted")
    return _checked(
        Membership(
            voters=frozenset(voters),
            learners=frozenset(learners),
            outgoing=membership.outgoing,
            learners_next=frozenset(waiting),
            auto_leave=membership.auto_leave,
            former=membership.all_voters - voters - membership.outgoing,
        )
    )


def _checked(membership: Membership) -> Membership:
    problem = problem_of(membership)
    invariant(not problem, problem, membership=membership)
    return membership
