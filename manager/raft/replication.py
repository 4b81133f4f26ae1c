"""A leader sends its log: appends within each follower's window, snapshots where it is too late.

Invariant: the commit index rises only to an entry of the leader's own term that a quorum holds
durably (Raft paper §5.4.2, figure 8), and followers are never told to commit what they may lack.
"""

from __future__ import annotations

from manager.raft.core import Core, Leadership
from manager.raft.entries import entries_bytes
from manager.raft.messages import Message, MessageKind
from manager.raft.quorum import majority_committed
from manager.raft.tracker import Progress, ProgressState


def maybe_commit(core: Core, leading: Leadership) -> bool:
    """Raise the commit index to what a quorum holds; true when it rose."""
    index = committed_by_quorum(core, {id_: p.match for id_, p in leading.progress.items()})
    if index <= core.log.committed or core.log.term(index) != core.term:
        return False
    return core.log.commit_to(index)


def committed_by_quorum(core: Core, acked: dict[int, int]) -> int:
    """The highest number that a quorum of the membership has acknowledged."""
    membership = core.membership
    index = majority_committed(membership.voters, acked)
    if membership.outgoing:
        index = min(index, majority_committed(membership.outgoing, acked))
    return index


def broadcast_append(core: Core, leading: Leadership) -> None:
    """Send everybody what is due, or at least the commit index."""
    for node, progress in leading.progress.items():
        if node != core.id:
            send_append(core, node, progress)


def send_pending(core: Core, node: int, progress: Progress) -> None:
    """Send entries for as long as there are some and the window has room."""
    while send_append(core, node, progress, allow_empty=False):
        pass


def send_append(core: Core, node: int, progress: Progress, *, allow_empty: bool = True) -> bool:
    """Send the next entries, or a snapshot when they are compacted; false when nothing was sent."""
    if progress.is_paused:
        return False
    log = core.log
    first = progress.next
    log_term = log.term(first - 1)
    if log_term is None:
        return send_snapshot(core, node, progress)
    entries = (
        ()
        if progress.state is ProgressState.REPLICATE and progress.inflights.is_full
        else tuple(log.entries(first, log.last_index + 1, core.config.message_bytes_max))
    )
    if not entries and not allow_empty:
        return False
    core.send(
        Message(
            kind=MessageKind.APPEND,
            to=node,
            sender=core.id,
            term=core.term,
            index=first - 1,
            log_term=log_term,
            entries=entries,
            commit=log.committed,
        )
    )
    if entries:
        progress.sent(entries[-1].index, entries_bytes(entries))
    progress.sent_commit = log.committed
    return True


def send_snapshot(core: Core, node: int, progress: Progress) -> bool:
    """Offer the newest snapshot to a follower that is heard of; false when there is none."""
    snapshot = core.log.snapshot()
    if not progress.recent_active or snapshot is None:
        return False
    core.send(
        Message(
            kind=MessageKind.SNAPSHOT,
            to=node,
            sender=core.id,
            term=core.term,
            snapshot=snapshot,
        )
    )
    progress.become_snapshot(snapshot.index)
    return True


def broadcast_heartbeat(core: Core, leading: Leadership) -> None:
    """Tell everybody who leads, and ask them to confirm the newest read."""
    for node, progress in leading.progress.items():
        if node == core.id:
            continue
        core.send(
            Message(
                kind=MessageKind.HEARTBEAT,
                to=node,
                sender=core.id,
                term=core.term,
                # Not beyond what the follower surely holds.
                commit=min(progress.match, core.log.committed),
                read_sequence=leading.read_sequence,
            )
        )
