"""One message in: first its term, then its kind, then the role of this node.

The term rules: a higher term makes this node a follower, except for a question before a campaign
(PRE_VOTE never moves a term) and while a lease holds. A lower term is ignored, except that a
deposed leader is told so, and a pre-candidate that it is behind.
"""

from __future__ import annotations

from manager.raft.candidate import step_candidate
from manager.raft.core import Core, become_follower
from manager.raft.election import answer_vote, campaign, lease_holds
from manager.raft.entries import Role
from manager.raft.follower import acknowledge, step_follower
from manager.raft.leader import step_leader, tick_leader
from manager.raft.messages import FROM_LEADER, TERMLESS, Message, MessageKind
from shoal.errors import InvalidArgument, invariant


def tick(core: Core) -> None:
    """One tick of the driver's clock has passed."""
    if core.leading is not None:
        tick_leader(core, core.leading)
        return
    core.election_elapsed += 1
    if core.election_elapsed >= core.election_timeout and core.is_promotable:
        core.election_elapsed = 0
        campaign(core)


def step(core: Core, message: Message) -> None:
    """Take one message addressed to this node."""
    if message.kind not in TERMLESS and message.term != core.term:
        taken = (
            _take_higher(core, message) if message.term > core.term else _take_lower(core, message)
        )
        if not taken:
            return
    if message.kind in (MessageKind.VOTE, MessageKind.PRE_VOTE):
        answer_vote(core, message)
    elif core.leading is not None:
        invariant(message.kind not in FROM_LEADER, "two leaders in a term", got=message)
        step_leader(core, core.leading, message)
    elif core.role is Role.FOLLOWER:
        step_follower(core, message)
    else:
        step_candidate(core, message)


def check_message(core: Core, message: Message) -> None:
    """A message as it came from a peer must make sense by itself.

    Raises: InvalidArgument.
    """
    if message.to != core.id:
        raise InvalidArgument(f"message: for node {message.to}, this is node {core.id}")
    if message.sender in (0, core.id):
        raise InvalidArgument(f"message: node {message.sender} cannot have sent it")
    if message.kind in TERMLESS:
        if message.term:
            raise InvalidArgument(f"message: {message.kind.name} carries no term")
    elif message.term <= 0:
        raise InvalidArgument(f"message: {message.kind.name} without a term")
    if message.kind is MessageKind.SNAPSHOT and message.snapshot is None:
        raise InvalidArgument("message: SNAPSHOT without a snapshot")
    if message.kind is MessageKind.APPEND:
        _check_entries(message)


def _check_entries(message: Message) -> None:
    index, term = message.index, message.log_term
    for entry in message.entries:
        if entry.index != index + 1 or not term <= entry.term <= message.term:
            raise InvalidArgument(
                f"message: entry ({entry.index}, term {entry.term}) cannot follow"
                f" ({index}, term {term}) in an append of term {message.term}"
            )
        index, term = entry.index, entry.term


def _take_higher(core: Core, message: Message) -> bool:
    kind = message.kind
    is_question = kind is MessageKind.PRE_VOTE
    if (is_question or kind is MessageKind.VOTE) and not message.forced and lease_holds(core):
        return False
    if is_question or (kind is MessageKind.PRE_VOTE_RESPONSE and not message.reject):
        return True  # the term is only thought of
    become_follower(core, message.term, message.sender if kind in FROM_LEADER else 0)
    return True


def _take_lower(core: Core, message: Message) -> bool:
    if message.kind in FROM_LEADER:
        # A leader of the past learns that it is one. Without this, a node whose term is ahead
        # could not get back: it takes no appends, and a lease keeps its campaigns unheard.
        acknowledge(core, message.sender, 0)
    elif message.kind is MessageKind.PRE_VOTE:
        core.send(
            Message(
                kind=MessageKind.PRE_VOTE_RESPONSE,
                to=message.sender,
                sender=core.id,
                term=core.term,
                reject=True,
            )
        )
    return False
