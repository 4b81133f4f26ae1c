"""What a peer is now, by the store: its certificate may be older than its demotion.

A certificate names a role for as long as it is valid. The row of its node has the last word: a
manager that was demoted is a worker from that commit on, and one that was removed is nobody.

Only a state that is known to be recent may say so. The leader's is, for every call that it serves;
the others pass those calls on to it. Raft is spoken between managers that may lag behind, and one
that lags must listen to members of which it has not heard yet, or it lags for ever: there, what is
known of a node counts only while another manager leads and is heard of.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from manager.consensus.driver import Leading
from manager.consensus.roster import Roster
from manager.leadership.interfaces import Consensus
from manager.store.store import Store
from shoal.aio.observed import Observed
from shoal.errors import PermissionDenied
from shoal.model.enums import NodeRole
from shoal.security.roles import PeerIdentity, Role

RAFT_PREFIX = "/shoal.api.v1.Raft/"
JOIN = "/shoal.api.v1.RaftMembership/Join"
"""Looks at the row itself: who is on its way out asks until it is stopped, or promoted again."""


class Standing:
    """What the leader's gate asks."""

    def __init__(self, store: Store, consensus: Consensus) -> None:
        self._store = store
        self._consensus = consensus

    def judge(self, method: str, identity: PeerIdentity) -> PeerIdentity:
        """What a certified peer is now. Raises: PermissionDenied when it is in no cluster."""
        has_own_judge = method == JOIN or method.startswith(RAFT_PREFIX)
        if has_own_judge or not self._consensus.leadership.value.here:
            return identity
        node = self._store.view.nodes.get(identity.node_id)
        if node is None:
            raise PermissionDenied("this node was removed from the cluster: let it join again")
        if identity.role is Role.MANAGER and node.certified_role is not NodeRole.MANAGER:
            return msgspec.structs.replace(identity, role=Role.WORKER)
        return identity


class MemberStanding:
    """What the ear of Raft asks, on every manager."""

    def __init__(
        self, store: Store, leading: Observed[Leading], is_heard_of: Callable[[int], bool]
    ) -> None:
        """is_heard_of: whether a raft id said something a moment ago."""
        self._store = store
        self._leading = leading
        self._is_heard_of = is_heard_of

    def check(self, raft_id: int, node_id: str, roster: Roster) -> None:
        """Refuse a demoted manager, or a second log, under an id of which nobody has heard.

        Members are believed: their rows say manager until they were taken out. Removed ids were
        refused before. Raises: PermissionDenied.
        """
        leader = self._leading.value.leader
        if raft_id in roster.members or leader in (0, raft_id) or not self._is_heard_of(leader):
            return
        member = roster.of_node(node_id)
        if member is not None:
            raise PermissionDenied(f"node {node_id} is manager {member.raft_id:x}, not {raft_id:x}")
        node = self._store.view.nodes.get(node_id)
        if node is not None and node.certified_role is not NodeRole.MANAGER:
            raise PermissionDenied(
                f"node {node_id} is a worker now: its certificate of a manager is worth nothing"
                " until it is promoted again"
            )
