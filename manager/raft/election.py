"""Campaigns and votes.

A campaign asks first whether it could be won (PreVote), without a new term, so that a node that
was cut off does not depose a leader on its return. Whoever has heard its leader within
`election_ticks` refuses to vote (the lease of CheckQuorum), except when the leader itself wants
the election. Invariant: one vote a term, given only to logs that hold all this one may have
committed. Source: Raft thesis §4.2.3, §9.6; etcd-io/raft.
"""

from __future__ import annotations

from manager.raft.core import (
    Core,
    become_candidate,
    become_follower,
    become_leader,
    become_pre_candidate,
)
from manager.raft.entries import KIND_CONF_CHANGE, Role
from manager.raft.messages import Message, MessageKind
from manager.raft.quorum import VoteResult, joint_vote
from manager.raft.replication import broadcast_append

_SCAN_BYTES = 1 << 20


def campaign(core: Core, *, forced: bool = False) -> bool:
    """Begin a campaign, or the question before it; false when this node must not lead now.

    forced: the leader hands over; ask nobody first and do not mind leases.
    """
    if core.role is Role.LEADER or not core.is_promotable or has_unapplied_change(core):
        return False
    if core.config.pre_vote and not forced:
        become_pre_candidate(core)
        _ask(core, MessageKind.PRE_VOTE, core.term + 1, forced=False)
    else:
        _stand(core, forced=forced)
    return True


def has_unapplied_change(core: Core) -> bool:
    """Whether a committed change of the membership is not applied yet: then votes miscount."""
    log = core.log
    low = log.applied + 1
    while low <= log.committed:
        entries = log.entries(low, log.committed + 1, _SCAN_BYTES)
        if any(entry.kind == KIND_CONF_CHANGE for entry in entries):
            return True
        low = entries[-1].index + 1
    return False


def lease_holds(core: Core) -> bool:
    """Whether this node has heard its leader so recently that nobody else can be needed."""
    return (
        core.config.check_quorum
        and core.leader != 0
        and core.election_elapsed < core.config.election_ticks
    )


def answer_vote(core: Core, message: Message) -> None:
    """Grant or refuse a VOTE or PRE_VOTE of this term or, for a PRE_VOTE, a later one."""
    is_vote = message.kind is MessageKind.VOTE
    may_vote = (
        core.vote == message.sender  # again, in case the first answer was lost
        or (core.vote == 0 and core.leader == 0)
        or (not is_vote and message.term > core.term)
    )
    # A learner votes when it is asked: whoever asks has applied a promotion it has not seen yet.
    granted = may_vote and core.log.is_up_to_date(message.index, message.log_term)
    core.send(
        Message(
            kind=MessageKind.VOTE_RESPONSE if is_vote else MessageKind.PRE_VOTE_RESPONSE,
            to=message.sender,
            sender=core.id,
            # What was granted; after a refusal of a PRE_VOTE our own, so that it can catch up.
            term=message.term if granted else core.term,
            reject=not granted,
        )
    )
    if granted and is_vote:
        core.vote = message.sender
        core.election_elapsed = 0


def count_vote(core: Core, sender: int, *, granted: bool) -> None:
    """Take one answer of a running campaign; the first of each voter counts."""
    core.votes.setdefault(sender, granted)
    membership = core.membership
    result = joint_vote(membership.voters, membership.outgoing, core.votes)
    if result is VoteResult.LOST:
        become_follower(core, core.term, 0)
    elif result is VoteResult.WON and core.role is Role.PRE_CANDIDATE:
        _stand(core, forced=False)
    elif result is VoteResult.WON:
        become_leader(core)
        if core.leading is not None:
            broadcast_append(core, core.leading)


def _stand(core: Core, *, forced: bool) -> None:
    become_candidate(core)
    _ask(core, MessageKind.VOTE, core.term, forced=forced)


def _ask(core: Core, kind: MessageKind, term: int, *, forced: bool) -> None:
    response = (
        MessageKind.VOTE_RESPONSE if kind is MessageKind.VOTE else MessageKind.PRE_VOTE_RESPONSE
    )
    for voter in sorted(core.membership.all_voters):
        if voter == core.id:
            # The own vote counts when it is durable, like any other.
            core.send(Message(kind=response, to=core.id, sender=core.id, term=term))
            continue
        core.send(
            Message(
                kind=kind,
                to=voter,
                sender=core.id,
                term=term,
                index=core.log.last_index,
                log_term=core.log.last_term,
                forced=forced,
            )
        )
