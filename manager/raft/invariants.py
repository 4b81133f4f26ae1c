"""Everything that must hold in one node between two calls, checked. For tests and simulations."""

from __future__ import annotations

from manager.raft.confchange import problem_of
from manager.raft.core import Core, Leadership
from manager.raft.entries import Role
from manager.raft.log import RaftLog
from manager.raft.tracker import Progress, ProgressState
from shoal.errors import invariant


def check_core(core: Core) -> None:
    """Raises: InvariantViolation naming what does not hold."""
    check_log(core.log)
    problem = problem_of(core.membership)
    invariant(not problem, problem)
    invariant(core.term >= core.log.last_term, "the log is ahead of the term", term=core.term)
    invariant(
        (core.leading is not None) is (core.role is Role.LEADER), "role and leadership differ"
    )
    if core.leading is not None:
        _check_leading(core, core.leading)
    elif core.role is not Role.FOLLOWER:
        invariant(core.leader == 0, "a candidate follows", leader=core.leader)
    if core.role is Role.CANDIDATE:
        invariant(core.vote == core.id, "a candidate votes for another", vote=core.vote)


def check_log(log: RaftLog) -> None:
    """Raises: InvariantViolation naming what does not hold."""
    if log.pending_snapshot is None:
        invariant(log.applied <= log.applicable, "applied what may be lost", applied=log.applied)
        invariant(log.first_index <= log.applied + 1, "compacted what is not applied")
        invariant(log.stable <= log.storage.last_index, "stable but not held", stable=log.stable)
    invariant(log.committed <= log.last_index, "committed but not held", commit=log.committed)
    for place, entry in enumerate(log.unstable):
        before = log.unstable[place - 1].term if place else (log.term(log.stable) or 0)
        invariant(entry.index == log.stable + 1 + place, "gap in the log", index=entry.index)
        invariant(entry.term >= before, "terms fall in the log", index=entry.index)


def _check_leading(core: Core, leading: Leadership) -> None:
    invariant(core.leader == core.id, "a leader follows", leader=core.leader)
    invariant(core.is_promotable, "a learner leads")
    invariant(leading.progress.keys() == core.membership.nodes, "progress of others than members")
    own = leading.progress.get(core.id)
    invariant(own is None or own.match <= core.log.stable, "counts what is not durable")
    invariant(leading.uncommitted_bytes >= 0, "negative size", size=leading.uncommitted_bytes)
    for node, progress in leading.progress.items():
        _check_progress(core, node, progress)


def _check_progress(core: Core, node: int, progress: Progress) -> None:
    last = core.log.last_index
    invariant(progress.match < progress.next <= last + 1, "next is out of range", node=node)
    invariant(progress.inflights.bytes >= 0, "negative window", node=node)
    invariant(
        (progress.state is ProgressState.SNAPSHOT) or progress.pending_snapshot == 0,
        "a snapshot is under way in another state",
        node=node,
    )
    if progress.state is not ProgressState.REPLICATE:
        invariant(len(progress.inflights) == 0, "a window outside of replication", node=node)
