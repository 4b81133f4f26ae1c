"""Who the members are: the node and the address behind each raft id. Pure.

The roster changes with the membership, by the same entries, and is kept in the same snapshots.
Invariants: a raft id that was removed never comes back, so its log cannot either; a node is a
member under one raft id at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from manager.raft.confchange import ChangeKind, ConfChange
from manager.raft.entries import ConfState
from shoal.errors import FailedPrecondition, InvalidArgument

FORMAT_VERSION = 1
ADDRESS_LENGTH_MAX = 300


class Member(msgspec.Struct, frozen=True):
    """A manager as the others know it. address: HOST:PORT."""

    raft_id: int
    node_id: str
    address: str


class Roster(msgspec.Struct, frozen=True):
    """Members by raft id, and the raft ids of those that were removed."""

    members: Mapping[int, Member] = msgspec.field(default_factory=dict)
    removed: frozenset[int] = frozenset()

    def of_node(self, node_id: str) -> Member | None:
        """The member that is this node."""
        return next((one for one in self.members.values() if one.node_id == node_id), None)

    def after(self, change: ConfChange) -> Roster:
        """The roster once a committed change has taken effect."""
        members, removed = dict(self.members), self.removed
        member = member_of(change)
        for one in change.changes:
            if one.kind is ChangeKind.REMOVE:
                members.pop(one.node, None)
                removed |= {one.node}
            elif member is not None and member.raft_id == one.node:
                members[one.node] = member
        return Roster(members, removed)

    def check_new(self, member: Member) -> None:
        """Raises: FailedPrecondition, InvalidArgument when it cannot become a member."""
        if not 0 < member.raft_id < 1 << 64 or not member.node_id or not member.address:
            raise InvalidArgument("member: raft id, node id and address must be given")
        if len(member.address) > ADDRESS_LENGTH_MAX:
            raise InvalidArgument(f"address: at most {ADDRESS_LENGTH_MAX} characters")
        if member.raft_id in self.removed:
            raise FailedPrecondition(
                f"manager {member.raft_id:x} was removed from the cluster and cannot return: wipe"
                " its raft directory, so that it joins as a new one"
            )
        same_id = self.members.get(member.raft_id)
        if same_id is not None and same_id.node_id != member.node_id:
            raise FailedPrecondition(
                f"raft id {member.raft_id:x} is that of node {same_id.node_id}: it cannot be used"
                f" by node {member.node_id}"
            )
        same_node = self.of_node(member.node_id)
        if same_node is not None and same_node.raft_id != member.raft_id:
            raise FailedPrecondition(
                f"node {member.node_id} is a manager already, with another log (raft id"
                f" {same_node.raft_id:x}): remove that one before it joins anew"
            )


class KeptMembership(msgspec.Struct, frozen=True):
    """What a snapshot keeps beside the objects: the Raft membership and the roster."""

    conf_state: ConfState
    members: tuple[Member, ...]
    removed: tuple[int, ...]
    version: int = FORMAT_VERSION

    @property
    def roster(self) -> Roster:
        """The roster in it."""
        return Roster({one.raft_id: one for one in self.members}, frozenset(self.removed))


class _Head(msgspec.Struct):
    version: int = 0


def encode_membership(conf_state: ConfState, roster: Roster) -> bytes:
    """For a snapshot: equal memberships give equal bytes."""
    members = tuple(roster.members[raft_id] for raft_id in sorted(roster.members))
    kept = KeptMembership(conf_state, members, tuple(sorted(roster.removed)))
    return msgspec.msgpack.encode(kept)


def decode_membership(data: bytes) -> KeptMembership:
    """Raises: FailedPrecondition for a newer version, InvalidArgument for what is none."""
    try:
        version = msgspec.msgpack.decode(data, type=_Head).version  # first: fields may differ
        if version > FORMAT_VERSION:
            raise FailedPrecondition(
                f"membership: format {version}, this version reads {FORMAT_VERSION}: run the newer"
            )
        return msgspec.msgpack.decode(data, type=KeptMembership)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"membership: {error}") from error


def encode_member(member: Member) -> bytes:
    """The context of a change that adds the member or gives it another address."""
    return msgspec.msgpack.encode(member)


def member_of(change: ConfChange) -> Member | None:
    """The member in the context of a change. Raises: InvalidArgument when it is damaged."""
    if not change.context:
        return None
    try:
        return msgspec.msgpack.decode(change.context, type=Member)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(f"membership change: {error}") from error
