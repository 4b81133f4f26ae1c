"""What a follower does with a message of its term: it takes the leader's log as its own.

Invariant: what it acknowledges is in its log, and leaves only when it is durable there.
"""

from __future__ import annotations

from manager.raft.core import Core
from manager.raft.election import campaign
from manager.raft.entries import ReadState, Snapshot
from manager.raft.membership import restore
from manager.raft.messages import TERMLESS, Message, MessageKind


def step_follower(core: Core, message: Message) -> None:
    """Take a message of the own term, or one without a term."""
    kind = message.kind
    if kind is MessageKind.APPEND:
        _hear(core, message.sender)
        _append(core, message)
    elif kind is MessageKind.HEARTBEAT:
        _hear(core, message.sender)
        core.log.commit_to(message.commit)
        core.send(
            Message(
                kind=MessageKind.HEARTBEAT_RESPONSE,
                to=message.sender,
                sender=core.id,
                term=core.term,
                read_sequence=message.read_sequence,
            )
        )
    elif kind is MessageKind.SNAPSHOT:
        _hear(core, message.sender)
        _restore(core, message.sender, message.snapshot or Snapshot())
    elif kind in TERMLESS:
        _pass_on(core, message)
    elif kind is MessageKind.TIMEOUT_NOW:
        campaign(core, forced=True)
    elif kind is MessageKind.READ_INDEX_RESPONSE:
        core.read_states.append(ReadState(message.index, message.context))


def acknowledge(core: Core, to: int, index: int) -> None:
    """Tell a leader that the log matches its own up to `index`."""
    core.send(
        Message(
            kind=MessageKind.APPEND_RESPONSE,
            to=to,
            sender=core.id,
            term=core.term,
            index=index,
        )
    )


def _hear(core: Core, leader: int) -> None:
    core.election_elapsed = 0
    core.leader = leader


def _append(core: Core, message: Message) -> None:
    log = core.log
    if message.index < log.committed:
        acknowledge(core, message.sender, log.committed)
        return
    last = log.follow(message.index, message.log_term, message.entries)
    if last is not None:
        log.commit_to(min(message.commit, last))
        acknowledge(core, message.sender, last)
        return
    hint, hint_term = log.conflict_hint(message.index, message.log_term)
    core.send(
        Message(
            kind=MessageKind.APPEND_RESPONSE,
            to=message.sender,
            sender=core.id,
            term=core.term,
            index=message.index,
            reject=True,
            reject_hint=hint,
            log_term=hint_term,
        )
    )


def _restore(core: Core, leader: int, snapshot: Snapshot) -> None:
    if restore(core, snapshot):
        acknowledge(core, leader, core.log.last_index)
    else:
        acknowledge(core, leader, core.log.committed)


def _pass_on(core: Core, message: Message) -> None:
    """Requests go to the leader if there is one; whoever sent one and gets no answer asks again.

    Once only: two nodes that take each other for the leader must not play ball.
    """
    if core.leader in (0, core.id) or message.sender != core.id:
        return
    core.send(
        Message(
            kind=message.kind,
            to=core.leader,
            sender=core.id,
            entries=message.entries,
            context=message.context,
            target=message.target,
        )
    )
