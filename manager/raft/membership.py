"""Changes of the membership as they take effect: when their entry is applied, on every node.

Invariants: one change at a time, taken only when everything before it is applied (so a new leader
first commits an entry of its own term: Ongaro 2015); a leader that loses its vote steps down;
a joint membership marked so is left by whoever leads when it is applied.
"""

from __future__ import annotations

from manager.raft.commit import commit_and_tell
from manager.raft.confchange import (
    LEAVE_JOINT,
    ConfChange,
    Membership,
    changed,
    encode_change,
    membership_of,
)
from manager.raft.core import (
    Core,
    Leadership,
    append_entries,
    become_follower,
    new_progress,
)
from manager.raft.entries import KIND_CONF_CHANGE, Snapshot
from manager.raft.readindex import has_committed_in_term, release_confirmed
from manager.raft.replication import broadcast_append, send_pending
from shoal.errors import FailedPrecondition


def propose_change(core: Core, leading: Leadership, change: ConfChange) -> int:
    """Append a change to a leader's log; its index.

    It is checked against the membership in force, which is the one it will meet: nothing else is
    under way. Raises: FailedPrecondition, InvalidArgument.
    """
    if leading.pending_conf > core.log.applied:
        raise FailedPrecondition(
            f"membership: a change may be under way (entry {leading.pending_conf} is not applied):"
            " try again when it is"
        )
    changed(core.membership, change)
    index = append_entries(core, leading, ((KIND_CONF_CHANGE, encode_change(change)),))
    leading.pending_conf = index
    return index


def apply_change(core: Core, change: ConfChange) -> None:
    """A committed change takes effect."""
    switch(core, changed(core.membership, change))


def switch(core: Core, membership: Membership) -> None:
    """Go over to another membership."""
    core.membership = membership
    leading = core.leading
    if leading is None:
        return
    if core.id not in membership.all_voters:
        become_follower(core, core.term, 0)
        return
    for node in [node for node in leading.progress if node not in membership.nodes]:
        del leading.progress[node]
    for node in sorted(membership.nodes - leading.progress.keys()):
        # Heard of, lest the next quorum check counts it before it could answer.
        progress = leading.progress[node] = new_progress(core, max(core.log.last_index, 1))
        progress.recent_active = True
    if leading.transferee not in membership.all_voters:
        leading.transferee = 0
    # A smaller quorum may have been reached already.
    if not commit_and_tell(core, leading):
        for node, progress in leading.progress.items():
            if node != core.id:
                send_pending(core, node, progress)
    release_confirmed(core, leading)


def after_apply(core: Core) -> None:
    """What a leader does when more was applied: leave a joint membership marked so, or step down.

    One that lost its vote leads until an entry of its term is committed, so that others know.
    """
    leading, membership = core.leading, core.membership
    if leading is None:
        return
    if core.id not in membership.all_voters and has_committed_in_term(core):
        become_follower(core, core.term, 0)
        return
    if not membership.auto_leave or core.log.applied < leading.pending_conf:
        return
    leading.pending_conf = append_entries(
        core, leading, ((KIND_CONF_CHANGE, encode_change(LEAVE_JOINT)),)
    )
    broadcast_append(core, leading)


def restore(core: Core, snapshot: Snapshot) -> bool:
    """Take a leader's snapshot; false when this log has it all already.

    This node need not be among its members: one that joins is added by an entry after it.
    """
    log = core.log
    if snapshot.index <= log.committed:
        return False
    membership = membership_of(snapshot.conf_state)
    if log.term(snapshot.index) == snapshot.term:
        # The entries are here, only the commit index was not.
        log.commit_to(snapshot.index)
        return False
    log.restore(snapshot)
    core.membership = membership
    return True
