"""What a leader does with a message of its term, a proposal and the passing of time."""

from __future__ import annotations

from collections.abc import Sequence

from manager.raft.commit import commit_and_tell
from manager.raft.core import Core, Leadership, PendingRead, append_entries, become_follower
from manager.raft.entries import KIND_CONF_CHANGE, KIND_EMPTY
from manager.raft.errors import ProposalDropped
from manager.raft.messages import Message, MessageKind
from manager.raft.quorum import VoteResult, joint_vote
from manager.raft.readindex import add_read, release_confirmed
from manager.raft.replication import (
    broadcast_append,
    broadcast_heartbeat,
    send_append,
    send_pending,
)
from manager.raft.tracker import Progress, ProgressState
from manager.raft.transfer import begin_transfer, hand_over
from shoal.errors import SwarmError, invariant


def propose(core: Core, leading: Leadership, proposals: Sequence[tuple[int, bytes]]) -> int:
    """Append proposals of the application and send them; the index of the last one.

    Raises: ProposalDropped.
    """
    if leading.transferee:
        raise ProposalDropped(
            f"leadership is being handed to node {leading.transferee}: propose there"
        )
    if core.id not in core.membership.all_voters:
        raise ProposalDropped("this node is leaving the cluster: propose to the next leader")
    index = append_entries(core, leading, proposals)
    broadcast_append(core, leading)
    return index


def step_leader(core: Core, leading: Leadership, message: Message) -> None:
    """Take a message of the own term, or one without a term."""
    kind = message.kind
    if kind in (MessageKind.PROPOSE, MessageKind.READ_INDEX, MessageKind.TRANSFER_LEADER):
        _passed_on(core, leading, message)
        return
    progress = leading.progress.get(message.sender)
    if progress is None:
        return  # removed, or not added yet
    if kind is MessageKind.APPEND_RESPONSE:
        progress.recent_active = True
        if message.reject:
            _rejected(core, message, progress)
        else:
            _acknowledged(core, leading, message, progress)
    elif kind is MessageKind.HEARTBEAT_RESPONSE:
        _heartbeat_answered(core, leading, message, progress)


def tick_leader(core: Core, leading: Leadership) -> None:
    """One tick: heartbeats, and now and then the question whether a quorum still listens."""
    core.heartbeat_elapsed += 1
    core.election_elapsed += 1
    if core.election_elapsed >= core.config.election_ticks:
        core.election_elapsed = 0
        leading.transferee = 0
        if core.config.check_quorum and not _quorum_is_active(core, leading):
            become_follower(core, core.term, 0)
            return
    if core.heartbeat_elapsed >= core.config.heartbeat_ticks:
        core.heartbeat_elapsed = 0
        broadcast_heartbeat(core, leading)


def unreachable(progress: Progress) -> None:
    """An append to the follower was probably lost: no more on trust."""
    if progress.state is ProgressState.REPLICATE:
        progress.become_probe()


def snapshot_settled(progress: Progress, *, ok: bool) -> None:
    """The snapshot under way arrived or failed; go on with its acknowledgement or a heartbeat."""
    if progress.state is not ProgressState.SNAPSHOT:
        return
    if not ok:
        progress.pending_snapshot = 0
    progress.become_probe()
    progress.paused = True


def _passed_on(core: Core, leading: Leadership, message: Message) -> None:
    """A request passed on by a follower. What is refused is dropped: nobody here to tell."""
    try:
        if message.kind is MessageKind.PROPOSE:
            proposals = [
                (entry.kind, entry.data)
                for entry in message.entries
                if entry.kind not in (KIND_EMPTY, KIND_CONF_CHANGE)
            ]
            if proposals:
                propose(core, leading, proposals)
        elif message.kind is MessageKind.READ_INDEX:
            add_read(core, leading, PendingRead(message.sender, message.context))
        else:
            begin_transfer(core, leading, message.target)
    except SwarmError:
        return


def _rejected(core: Core, message: Message, progress: Progress) -> None:
    """Go back to where the logs may match.

    The follower names the last of its entries with a term not above that of the refused one; our
    last entry with a term not above *that* is the newest that can match. So each round skips at
    least one term of either log, not one entry.
    """
    hint = message.reject_hint
    if message.log_term > 0:
        hint, _ = core.log.conflict_hint(hint, message.log_term)
    if progress.decrease(message.index, hint):
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()
        send_append(core, message.sender, progress)


def _acknowledged(core: Core, leading: Leadership, message: Message, progress: Progress) -> None:
    sender, index = message.sender, message.index
    invariant(index <= core.log.last_index, "acknowledged what was not sent", got=message)
    probed = progress.state is ProgressState.PROBE and index == progress.match
    if not progress.update(index) and not probed:
        return
    if progress.state is ProgressState.PROBE:
        progress.become_replicate()
    elif progress.state is ProgressState.SNAPSHOT:
        # Also without the report of the transport: what follows can be sent from the log.
        if progress.match + 1 >= core.log.first_index:
            progress.become_probe()
            progress.become_replicate()
    else:
        progress.inflights.free_to(index)
        progress.paused = progress.inflights.is_full
    if not commit_and_tell(core, leading) and progress.may_raise_commit(core.log.committed):
        send_append(core, sender, progress)
    send_pending(core, sender, progress)
    if sender == leading.transferee and progress.match == core.log.last_index:
        hand_over(core, sender)


def _heartbeat_answered(
    core: Core, leading: Leadership, message: Message, progress: Progress
) -> None:
    progress.recent_active = True
    progress.paused = False
    if progress.match < core.log.last_index or progress.state is ProgressState.PROBE:
        send_append(core, message.sender, progress)
    if message.read_sequence > progress.acked_read:
        progress.acked_read = message.read_sequence
        release_confirmed(core, leading)


def _quorum_is_active(core: Core, leading: Leadership) -> bool:
    votes = {node: progress.recent_active for node, progress in leading.progress.items()}
    votes[core.id] = True
    for progress in leading.progress.values():
        progress.recent_active = False
    membership = core.membership
    return joint_vote(membership.voters, membership.outgoing, votes) is VoteResult.WON
