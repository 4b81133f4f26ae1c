"""Linearizable reads without a log entry: the leader proves that it still leads.

A read gets the commit index of its moment, and is released when a quorum has answered a heartbeat
sent after it. Invariant: no read is released by a leader that has not committed an entry of its
own term; before, its commit index may be behind what an earlier leader acknowledged. That holds
for a cluster of one, too: its commit index is not synced. Such reads wait. Bounded by
`pending_reads_max`. Source: Raft thesis §6.4; here one sequence number a leadership instead of a
context per read, so a quorum is found as for commits and a lost heartbeat costs nothing.
"""

from __future__ import annotations

from manager.raft.core import Core, Leadership, PendingRead
from manager.raft.entries import ReadState
from manager.raft.messages import Message, MessageKind
from manager.raft.replication import broadcast_heartbeat, committed_by_quorum
from shoal.errors import ResourceExhausted


def add_read(core: Core, leading: Leadership, read: PendingRead) -> None:
    """Begin to confirm a read, or let it wait for the term's first commit.

    Raises: ResourceExhausted.
    """
    if len(leading.reads) + len(leading.postponed_reads) >= core.config.pending_reads_max:
        raise ResourceExhausted(
            f"reads: {core.config.pending_reads_max} wait to be confirmed: try again later"
        )
    if not has_committed_in_term(core):
        leading.postponed_reads.append(read)
        return
    _confirm(core, leading, [read])


def release_postponed(core: Core, leading: Leadership) -> None:
    """After a commit: begin to confirm the reads that waited for it."""
    if leading.postponed_reads and has_committed_in_term(core):
        reads, leading.postponed_reads = leading.postponed_reads, []
        _confirm(core, leading, reads)


def release_confirmed(core: Core, leading: Leadership) -> None:
    """Answer the reads that a quorum has confirmed, in the order in which they came."""
    if not leading.reads:
        return
    acked = {node: progress.acked_read for node, progress in leading.progress.items()}
    acked[core.id] = leading.read_sequence
    confirmed = committed_by_quorum(core, acked)
    while leading.reads and leading.reads[0].sequence <= confirmed:
        _answer(core, leading.reads.popleft())


def has_committed_in_term(core: Core) -> bool:
    """Whether the commit index is known to be that of this term."""
    return core.log.term(core.log.committed) == core.term


def _confirm(core: Core, leading: Leadership, reads: list[PendingRead]) -> None:
    for read in reads:
        leading.read_sequence += 1
        read.sequence = leading.read_sequence
        read.index = core.log.committed
        leading.reads.append(read)
    broadcast_heartbeat(core, leading)
    release_confirmed(core, leading)  # a single voter needs nobody else


def _answer(core: Core, read: PendingRead) -> None:
    if read.reader == core.id:
        core.read_states.append(ReadState(read.index, read.context))
        return
    core.send(
        Message(
            kind=MessageKind.READ_INDEX_RESPONSE,
            to=read.reader,
            sender=core.id,
            term=core.term,
            index=read.index,
            context=read.context,
        )
    )
