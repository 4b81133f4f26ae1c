"""What follows from a commit: everybody is told, reads that waited for it go on."""

from __future__ import annotations

from manager.raft.core import Core, Leadership
from manager.raft.readindex import release_postponed
from manager.raft.replication import broadcast_append, maybe_commit


def commit_and_tell(core: Core, leading: Leadership) -> bool:
    """Raise the commit index if a quorum allows it; true when it rose."""
    if not maybe_commit(core, leading):
        return False
    release_postponed(core, leading)
    broadcast_append(core, leading)
    return True


def own_log_durable(core: Core) -> None:
    """The leader's own disk has caught up: it counts like a follower's acknowledgement."""
    leading = core.leading
    if leading is None:
        return
    own = leading.progress.get(core.id)
    if own is not None and own.update(core.log.stable):
        commit_and_tell(core, leading)
