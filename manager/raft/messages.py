"""What Raft nodes say to each other: one message type, whose `kind` says which fields matter.

Only what travels between nodes is a message. What a node does to itself (a tick, a campaign, a
report of the transport) is a method of `node.Raft`, so no peer can send it.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from manager.raft.entries import Entry, Snapshot


class MessageKind(IntEnum):
    """What a message asks for; the values are used on the wire and never change."""

    PROPOSE = 1
    APPEND = 2
    APPEND_RESPONSE = 3
    VOTE = 4
    VOTE_RESPONSE = 5
    PRE_VOTE = 6
    PRE_VOTE_RESPONSE = 7
    SNAPSHOT = 8
    HEARTBEAT = 9
    HEARTBEAT_RESPONSE = 10
    TRANSFER_LEADER = 11
    TIMEOUT_NOW = 12
    READ_INDEX = 13
    READ_INDEX_RESPONSE = 14


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One message; a field that its kind does not name stays at its default.

    term: the sender's, except: PRE_VOTE carries the term the sender would campaign in, a granted
      PRE_VOTE_RESPONSE repeats it, and PROPOSE, READ_INDEX and TRANSFER_LEADER carry 0 (any term).
    index, log_term: APPEND: the entry before `entries`. VOTE, PRE_VOTE: the sender's last entry.
      APPEND_RESPONSE: the last entry that matches; when rejected, the `index` that was refused,
      with `reject_hint` and `log_term` the place to try next. READ_INDEX_RESPONSE: what to apply.
    commit: APPEND, HEARTBEAT: the leader's commit index, as far as the receiver may follow it.
    read_sequence: HEARTBEAT and its response: the reads this round trip confirms.
    context: READ_INDEX and its response: the reader's own.
    forced: VOTE: the leader wants this election, so a lease does not hinder it.
    target: TRANSFER_LEADER: who shall lead.
    """

    kind: MessageKind
    to: int
    sender: int
    term: int = 0
    log_term: int = 0
    index: int = 0
    entries: tuple[Entry, ...] = ()
    commit: int = 0
    snapshot: Snapshot | None = None
    reject: bool = False
    reject_hint: int = 0
    context: bytes = b""
    read_sequence: int = 0
    forced: bool = False
    target: int = 0


FROM_LEADER = frozenset({MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.SNAPSHOT})
"""Only the leader of a term sends these, so they name it."""

ANSWERS = frozenset(
    {
        MessageKind.APPEND_RESPONSE,
        MessageKind.VOTE_RESPONSE,
        MessageKind.PRE_VOTE_RESPONSE,
        MessageKind.HEARTBEAT_RESPONSE,
    }
)
"""Answers count only when they come from a member."""

AFTER_SYNC = frozenset(
    {
        MessageKind.APPEND_RESPONSE,
        MessageKind.VOTE,
        MessageKind.VOTE_RESPONSE,
        MessageKind.PRE_VOTE,
        MessageKind.PRE_VOTE_RESPONSE,
    }
)
"""These promise something of the sender's disk: its log, its vote, or the log it campaigns with."""

TERMLESS = frozenset({MessageKind.PROPOSE, MessageKind.READ_INDEX, MessageKind.TRANSFER_LEADER})
"""Requests passed on to whoever leads; they carry term 0."""
