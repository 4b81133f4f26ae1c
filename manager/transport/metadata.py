"""Who opens a stream between managers, in its metadata, and the check of it.

A raft id belongs to one node for ever: what a manager says of its raft id is believed only when
its certificate is that node's. A member nobody here has heard of yet (its addition is further on
in the log) is believed, since it is a manager of this cluster by its certificate; a removed one is
refused, and told so, for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from manager.consensus.roster import Roster
from shoal.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from shoal.security.roles import PeerIdentity, Role

FROM_KEY = "shoal-raft-from"
TO_KEY = "shoal-raft-to"
ADDRESS_KEY = "shoal-raft-address"
SNAPSHOT_KEY = "shoal-raft-snapshot"
OFFSET_KEY = "shoal-raft-offset"
REMOVED_KEY = "shoal-raft-removed"
"""In the trailing metadata of a refusal: the caller was removed from the cluster."""


class Removed(PermissionDenied):
    """The caller was removed from the cluster."""


class Opening(NamedTuple):
    """What the metadata of a stream says."""

    sender: int
    to: int
    address: str
    snapshot: str


def metadata(
    sender: int, to: int, *, address: str = "", snapshot: str = ""
) -> tuple[tuple[str, str], ...]:
    """The metadata of a stream. snapshot: which one a snapshot stream carries."""
    pairs = [(FROM_KEY, f"{sender:x}"), (TO_KEY, f"{to:x}"), (ADDRESS_KEY, address)]
    if snapshot:
        pairs.append((SNAPSHOT_KEY, snapshot))
    return tuple(pairs)


def opening_of(pairs: Iterable[tuple[str, str | bytes]]) -> Opening:
    """Read the metadata of a stream. Raises: InvalidArgument."""
    found = {key: value for key, value in pairs if isinstance(value, str)}
    try:
        sender, to = int(found[FROM_KEY], 16), int(found[TO_KEY], 16)
    except (KeyError, ValueError):
        raise InvalidArgument(
            f"metadata: {FROM_KEY} and {TO_KEY} must name raft ids in hexadecimal"
        ) from None
    return Opening(sender, to, found.get(ADDRESS_KEY, ""), found.get(SNAPSHOT_KEY, ""))


def check(opening: Opening, peer: PeerIdentity, roster: Roster, own: int) -> None:
    """Whether the peer may speak as the member it says it is, to this one.

    Raises: Removed, PermissionDenied; FailedPrecondition when it takes this one for another.
    """
    if peer.role is not Role.MANAGER:
        raise PermissionDenied(f"raft is spoken by managers, not by a {peer.role.value}")
    if opening.sender in roster.removed:
        raise Removed(f"manager {opening.sender:x} was removed from the cluster")
    if opening.to != own:
        raise FailedPrecondition(f"this is manager {own:x}, not {opening.to:x}")
    known = roster.members.get(opening.sender)
    if known is not None and known.node_id != peer.node_id:
        raise PermissionDenied(
            f"raft id {opening.sender:x} belongs to node {known.node_id}, not to {peer.node_id}"
        )
