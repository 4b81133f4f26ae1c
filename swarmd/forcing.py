"""`swarmd --force-new-cluster`: this node's manager goes on alone, with everything it knows.

For when the majority of the managers is lost for good. Done once, before the manager starts;
refused on a node that is no manager.
"""

from __future__ import annotations

import structlog

from manager.consensus.forcing import force_only_member
from manager.consensus.recovery import Place
from manager.storage.member import Opening
from shoal.errors import FailedPrecondition
from shoal.security.lock import LockKeys
from shoal.settings.paths import NodePaths
from swarmd.node import Membership

_log = structlog.get_logger()


def force_new_cluster_blocking(
    paths: NodePaths, membership: Membership, lock_keys: LockKeys | None = None
) -> None:
    """Make the node's manager the only one. Nothing else of it may run.

    lock_keys: what its data keys are encrypted with.

    Raises: FailedPrecondition; CorruptLog and what else keeps a log from being read.
    """
    identity, config = membership.identity, membership.config
    if identity is None or config is None or not membership.is_manager:
        raise FailedPrecondition(
            "--force-new-cluster: this node is not a manager: use it on one, or `swarmctl init`"
        )
    if config.store:
        raise FailedPrecondition(
            "--force-new-cluster: the cluster's state is in etcd, where one manager is enough to go"
            " on: leave the option out; if etcd itself has lost its quorum, see"
            " `etcd --force-new-cluster`"
        )
    peer = identity.peer
    keys = lock_keys or LockKeys()
    opening = Opening(peer.cluster_id, unlock_key=keys.current, former_keys=keys.former)
    place = Place(paths.raft, opening, peer.node_id, config.advertise_address)
    forced = force_only_member(place)
    _log.warning(
        "cluster.forced",
        raft_id=f"{forced.raft_id:x}",
        index=forced.index,
        adopted_entries=forced.adopted,
    )
