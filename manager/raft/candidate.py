"""What a candidate, or one that asks first, does with a message of its term."""

from __future__ import annotations

from manager.raft.core import Core, become_follower
from manager.raft.election import count_vote
from manager.raft.entries import Role
from manager.raft.follower import step_follower
from manager.raft.messages import FROM_LEADER, Message, MessageKind


def step_candidate(core: Core, message: Message) -> None:
    """Somebody won the term, or an answer to the campaign came."""
    if message.kind in FROM_LEADER:
        become_follower(core, message.term, message.sender)
        step_follower(core, message)
        return
    awaited = (
        MessageKind.PRE_VOTE_RESPONSE
        if core.role is Role.PRE_CANDIDATE
        else MessageKind.VOTE_RESPONSE
    )
    if message.kind is awaited:
        count_vote(core, message.sender, granted=not message.reject)
