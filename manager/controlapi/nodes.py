"""Changes to nodes and the cluster: what each request writes, decided on one view."""

from __future__ import annotations

from manager.ca.autolock import LockWish, relocked
from manager.ca.rotation import external_for
from manager.controlapi import validate
from manager.controlapi.versions import check_version
from manager.store.view import View
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.defaults import NODE_CERTIFICATE_VALIDITY_NS, drain_deadline_ns
from shoal.model.enums import NodeRole, NodeState
from shoal.model.objects import Cluster, Node
from shoal.model.plan import Change, remove, update
from shoal.model.specs import ClusterSpec, NodeSpec
from shoal.model.types import BlacklistedCertificate, JoinTokens

BLACKLIST_MARGIN_NS = 7 * 24 * 3600 * 1_000_000_000
"""How much longer than its certificate a removed node stays refused: clocks may lag."""
BLACKLIST_MAX = 8_192
"""Removed nodes that are remembered; those whose certificates end first are dropped for others.
The leader refuses nodes that are in no row anyway: this is for the managers that pass calls on."""


def update_node(
    view: View, reference: str, spec: NodeSpec, *, version: int, now_ns: int
) -> list[Change]:
    """Another spec for a node. Raises SequenceConflict, InvalidArgument, FailedPrecondition.

    The deadline of a drain counts from the request that asks for it, and anew when just the same is
    asked for again; other changes leave it as it is.
    """
    node = view.nodes.resolve(reference)
    check_version(node.meta.version, version, "node")
    validate.node_change(node, spec)
    if (node.spec.desired_role, spec.desired_role) == (NodeRole.MANAGER, NodeRole.WORKER):
        _check_demotion(view, node)
    until_ns = 0
    if spec.drain is not None:
        until_ns = now_ns + drain_deadline_ns(spec.drain)
        if spec.drain == node.spec.drain and spec != node.spec:
            until_ns = node.drain_until_ns
    return [update(node.replaced(spec=spec, drain_until_ns=until_ns))]


def _check_demotion(view: View, node: Node) -> None:
    """Refuse to demote a manager that the cluster cannot do without."""
    others = [
        one for one in view.nodes if one.spec.desired_role is NodeRole.MANAGER and one.id != node.id
    ]
    if not others:
        raise FailedPrecondition(
            "attempting to demote the last manager of the swarm: promote another node first"
        )
    if node.manager_status is None:
        return
    members = [one.manager_status for one in others if one.manager_status is not None]
    reachable = sum(1 for status in members if status.reachable)
    if not node.manager_status.raft_id:  # the state is in etcd: one manager is as good as three
        if not reachable:
            raise FailedPrecondition(
                f"can't demote node {node.id}: no other manager is reachable:"
                " start one of them first"
            )
        return
    if reachable < len(members) // 2 + 1:
        raise FailedPrecondition(
            f"can't demote node {node.id}: this would result in a loss of quorum: of the"
            f" {len(members)} managers left only {reachable} are reachable: start the others, or"
            " demote those that are gone for good first"
        )


def remove_node(view: View, reference: str, *, force: bool, now_ns: int) -> list[Change]:
    """Remove a node and refuse its certificate from now on.

    Raises: FailedPrecondition for a manager, and for a node that is not down unless `force`.
    """
    node = view.nodes.resolve(reference)
    if node.certified_role is NodeRole.MANAGER:
        raise FailedPrecondition(
            f"node {node.id} is a cluster manager and cannot be removed: demote it first"
            f" (`swarmctl node demote {node.id}`)"
        )
    if node.status.state is NodeState.READY and not force:
        raise FailedPrecondition(
            f"node {node.id} is not down and can't be removed: "
            "let it leave first, or remove it with --force"
        )
    changes: list[Change] = [remove(node)]
    if view.cluster is not None:
        changes.append(update(_blacklisted(view.cluster, node, now_ns)))
    return changes


def _blacklisted(cluster: Cluster, node: Node, now_ns: int) -> Cluster:
    """The cluster with the certificates of a removed node refused until they have ended."""
    refused = {
        node_id: entry
        for node_id, entry in cluster.blacklisted_certificates.items()
        if entry.expires_at_ns > now_ns
    }
    while len(refused) >= BLACKLIST_MAX:
        del refused[min(refused, key=lambda node_id: (refused[node_id].expires_at_ns, node_id))]
    validity_ns = cluster.spec.ca.node_certificate_validity_ns or NODE_CERTIFICATE_VALIDITY_NS
    # It may have got another one just now that it has not named yet.
    end_ns = now_ns + validity_ns
    if node.certificate is not None:
        end_ns = max(end_ns, node.certificate.not_after_ns)
    refused[node.id] = BlacklistedCertificate(expires_at_ns=end_ns + BLACKLIST_MARGIN_NS)
    return cluster.replaced(blacklisted_certificates=refused)


def update_cluster(
    view: View,
    spec: ClusterSpec | None,
    *,
    version: int,
    tokens: JoinTokens | None,
    lock: LockWish,
) -> list[Change]:
    """Other settings, join tokens, unlock key. None leaves settings and tokens as they are."""
    cluster = require_cluster(view)
    check_version(cluster.meta.version, version, "cluster")
    if spec is not None:
        validate.cluster_spec(spec)
        cluster = cluster.replaced(spec=spec)
        _check_root_can_sign(cluster)
    if tokens is not None:
        cluster = cluster.replaced(root_ca=cluster.root_ca.replaced(join_tokens=tokens))
    return [update(relocked(cluster, lock))]


def check_without_log(view: View, spec: ClusterSpec) -> None:
    """Refuse settings of a log where the state is in etcd. Raises InvalidArgument."""
    before = require_cluster(view).spec.raft.snapshot_interval
    if spec.raft.snapshot_interval not in (None, before):
        raise InvalidArgument(
            "snapshot interval: the managers' state is in etcd, which has its own"
            " (etcd's --snapshot-count): leave it as it is"
        )


def _check_root_can_sign(cluster: Cluster) -> None:
    """Refuse settings without an external authority for a root whose key is nowhere else."""
    root_ca = cluster.root_ca
    root_pem, key = root_ca.certificate, root_ca.key
    if root_ca.rotation is not None:
        root_pem, key = root_ca.rotation.ca_certificate, root_ca.rotation.ca_key
    if root_pem and not key and not external_for(cluster, root_pem):
        raise FailedPrecondition(
            "external ca: the key of the cluster's root is with an external authority: name one for"
            " it, or rotate to a root with a key first (`swarmctl ca --rotate`)"
        )


def require_cluster(view: View) -> Cluster:
    """The cluster. Raises FailedPrecondition before it is initialised."""
    if view.cluster is None:
        raise FailedPrecondition("the cluster is not initialised yet: try again in a moment")
    return view.cluster


def without_keys(cluster: Cluster) -> Cluster:
    """The cluster as it may be shown: private keys stay on the managers."""
    rotation = cluster.root_ca.rotation
    if rotation is not None:
        rotation = rotation.replaced(ca_key=b"")
    root_ca = cluster.root_ca.replaced(key=b"", rotation=rotation)
    signing = cluster.spec.ca.replaced(signing_ca_key=b"")
    return cluster.replaced(
        root_ca=root_ca,
        spec=cluster.spec.replaced(ca=signing),
        unlock_keys=(),
        network_bootstrap_keys=(),
    )
