"""What a Raft node keeps: entries, hard state, snapshots; and what it says of itself.

An entry's `data` belongs to the application, except in the two reserved kinds.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import msgspec

KIND_EMPTY = 0
"""A new leader's first entry; never to be applied."""
KIND_CONF_CHANGE = 255
"""A change of the membership; `confchange.decode_change` reads its data."""
ENTRY_OVERHEAD_BYTES = 32
"""What an entry costs in a message besides its data, an upper bound."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of the log; kinds 1-254 and their data mean nothing to Raft."""

    index: int
    term: int
    kind: int = KIND_EMPTY
    data: bytes = b""


class HardState(msgspec.Struct, frozen=True, gc=False):
    """What must never be forgotten: the term, the vote in it (0 = none), the commit index."""

    term: int = 0
    vote: int = 0
    commit: int = 0


class Role(IntEnum):
    """What a node is at the moment."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


class SoftState(msgspec.Struct, frozen=True, gc=False):
    """What need not be kept: the leader this node follows (0 = none known) and its own role."""

    leader: int = 0
    role: Role = Role.FOLLOWER


class ConfState(msgspec.Struct, frozen=True, gc=False):
    """A membership as it is kept in snapshots; ids ascending.

    `outgoing`, `learners_next` and `auto_leave` are set only between the two halves of a joint
    change: then a decision needs a majority of `voters` and one of `outgoing`. `former`: who lost
    its vote by the last change, and may still have to lead those who do not know of it.
    """

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False
    former: tuple[int, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """The application's state after the entry (index, term), and the membership at that point.

    `data` is opaque and may be empty: the driver streams the bytes of the state itself.
    """

    index: int = 0
    term: int = 0
    conf_state: ConfState = ConfState()
    data: bytes = b""


class ReadState(msgspec.Struct, frozen=True, gc=False):
    """A read that may be served once `index` is applied; `context` is the caller's own."""

    index: int
    context: bytes


def entry_bytes(entry: Entry) -> int:
    """What the entry adds to a message, in bytes."""
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


def entries_bytes(entries: Iterable[Entry]) -> int:
    """What the entries add to a message, in bytes."""
    return sum(len(entry.data) + ENTRY_OVERHEAD_BYTES for entry in entries)


def payload_bytes(entries: Iterable[Entry]) -> int:
    """The application's data, in bytes. Raft's own entries count nothing: they are not refused."""
    return sum(len(entry.data) for entry in entries if entry.kind != KIND_CONF_CHANGE)
