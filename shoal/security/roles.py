"""Who may stand at the other end of a connection: the roles and the identity of a peer.

A node certificate says it in its subject: CN is the node id, OU is `swarm-<role>`, O is the
cluster id. Only `manager` and `worker` are ever certified; `joiner` is the public identity of a
node that has no certificate yet, `local` is a process on this machine that could open the unix
socket.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from shoal.ids import ClusterId, NodeId

MANAGER_NAME = "swarm-manager"
"""The DNS name every manager's certificate carries; clients of managers check this one."""


class Role(StrEnum):
    """What a peer is allowed to be."""

    MANAGER = "manager"
    WORKER = "worker"
    JOINER = "joiner"
    LOCAL = "local"

    @property
    def certified(self) -> bool:
        """Whether the cluster's root signs certificates for this role."""
        return self in {Role.MANAGER, Role.WORKER}

    @property
    def unit(self) -> str:
        """The organizational unit, and second DNS name, of a certificate: `swarm-<role>`."""
        return f"swarm-{self.value}"


ROLE_BY_UNIT: dict[str, Role] = {role.unit: role for role in Role if role.certified}


class PeerIdentity(msgspec.Struct, frozen=True):
    """Who a peer is. Joiners and local peers have neither node id nor cluster id (empty)."""

    node_id: NodeId
    role: Role
    cluster_id: ClusterId


JOINER = PeerIdentity(node_id=NodeId(""), role=Role.JOINER, cluster_id=ClusterId(""))
LOCAL = PeerIdentity(node_id=NodeId(""), role=Role.LOCAL, cluster_id=ClusterId(""))
