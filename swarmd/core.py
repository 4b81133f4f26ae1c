"""The decisions of init and restore: what is refused, and what the new manager begins with. Pure.

Ids, secrets and time are arguments. Defaults of specs stay unwritten (`shoal.model.defaults`);
what init decides for ever (data path port, address pools) is written out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from manager.ca.autolock import with_unlock_key
from manager.ca.core import ClusterSecrets
from manager.ca.rotation import Successor, begin_here
from manager.controlapi import validate
from manager.store.tables import Tables
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.ids import ClusterId, NodeId
from shoal.model.defaults import DATA_PATH_PORT, INGRESS_POOL, INGRESS_SUBNET_MASK_LENGTH
from shoal.model.enums import ActionKind, NodeAvailability, NodeRole, NodeState
from shoal.model.objects import AnyObject, Cluster, Node, StoreAction, StoreEntry
from shoal.model.specs import (
    ClusterSpec,
    DispatcherConfig,
    NodeSpec,
    OrchestrationConfig,
    RaftConfig,
)
from shoal.model.types import (
    Annotations,
    CaConfig,
    ExternalCa,
    JoinTokens,
    ManagerStatus,
    Meta,
    NodeDescription,
    RootCa,
    Version,
)
from shoal.security.root import NODE_VALIDITY_S
from shoal.security.succession import same_root
from shoal.security.trust import root_digest
from shoal.security.unlock import UnlockKey
from swarmd.addresses import NodeAddresses
from swarmd.pools import default_address_pools, ingress_pool, subnet_length

CLUSTER_NAME = "default"
DATA_PATH_PORTS = range(1024, 49152)


class InitWish(msgspec.Struct, frozen=True):
    """What the user asked of init; None, 0 and empty mean the default."""

    advertise_address: str = ""
    listen_address: str = ""
    data_path_address: str = ""
    availability: int = NodeAvailability.ACTIVE
    data_path_port: int = 0
    ingress_pool: str = ""
    default_address_pools: tuple[str, ...] = ()
    default_address_pool_mask_length: int = 0
    task_history_retention_limit: int | None = None
    dispatcher_heartbeat_period_ns: int | None = None
    node_certificate_validity_ns: int | None = None
    snapshot_interval: int | None = None
    autolock: bool = False
    external_cas: tuple[ExternalCa, ...] = ()


class InitPlan(msgspec.Struct, frozen=True):
    """A wish that was found good."""

    addresses: NodeAddresses
    availability: NodeAvailability
    data_path_port: int
    ingress_pool: str
    default_address_pools: tuple[str, ...]
    default_address_pool_mask_length: int
    spec: ClusterSpec

    @property
    def certificate_validity_s(self) -> int:
        """Validity of node certificates, seconds."""
        validity_ns = self.spec.ca.node_certificate_validity_ns
        return NODE_VALIDITY_S if validity_ns is None else validity_ns // 1_000_000_000


class NewNode(msgspec.Struct, frozen=True):
    """Who the first manager is."""

    node_id: NodeId
    cluster_id: ClusterId
    hostname: str


class RestorePlan(msgspec.Struct, frozen=True):
    """Who the only manager of a restored cluster is, and from when on.

    version: of what the restoring itself writes.
    """

    node_id: NodeId
    hostname: str
    addresses: NodeAddresses
    availability: NodeAvailability
    version: int
    now_ns: int


class RestoredState(msgspec.Struct, frozen=True):
    """What the restored cluster begins with. removed: raft ids that do not count any more."""

    rows: tuple[AnyObject, ...]
    removed: frozenset[int]


def plan_init(wish: InitWish, addresses: NodeAddresses) -> InitPlan:
    """Check the wish. Raises InvalidArgument naming the field and the rule."""
    spec = ClusterSpec(
        annotations=Annotations(name=CLUSTER_NAME),
        orchestration=OrchestrationConfig(wish.task_history_retention_limit),
        raft=RaftConfig(snapshot_interval=wish.snapshot_interval),
        dispatcher=DispatcherConfig(wish.dispatcher_heartbeat_period_ns),
        ca=CaConfig(
            node_certificate_validity_ns=wish.node_certificate_validity_ns,
            external_cas=wish.external_cas,
        ),
        autolock_managers=wish.autolock,
    )
    validate.cluster_spec(spec)
    _check_external(wish.external_cas)
    mesh = ingress_pool(wish.ingress_pool or INGRESS_POOL, addresses)
    length = subnet_length(wish.default_address_pool_mask_length)
    return InitPlan(
        addresses=addresses,
        availability=parse_availability(wish.availability),
        data_path_port=_data_path_port(wish.data_path_port),
        ingress_pool=mesh,
        default_address_pools=default_address_pools(wish.default_address_pools, length, mesh),
        default_address_pool_mask_length=length,
        spec=spec,
    )


def parse_availability(value: int) -> NodeAvailability:
    """The availability with that number. Raises InvalidArgument."""
    try:
        return NodeAvailability(value)
    except ValueError:
        raise InvalidArgument(
            f"availability: {value} is unknown: it must be active, pause or drain"
        ) from None


def first_entry(
    plan: InitPlan,
    who: NewNode,
    secrets: ClusterSecrets,
    *,
    now_ns: int,
    unlock_key: UnlockKey | None = None,
) -> StoreEntry:
    """The cluster and its first manager, as the first entry of the log.

    unlock_key: of a plan with autolock.
    """
    manager = _manager_row(who.node_id, who.hostname, plan.addresses, plan.availability)
    cluster = _cluster(plan, who, secrets)
    external = plan.spec.ca.external_cas
    if external:
        # The authority outside can sign for no root that is only being made: its own comes next.
        successor = Successor(external[0].ca_certificate, None)
        cluster = begin_here(cluster, successor, now_ns=now_ns)
    rows = (with_unlock_key(cluster, unlock_key), manager)
    return StoreEntry(
        actions=tuple(StoreAction(object=row, kind=ActionKind.CREATE) for row in rows),
        proposed_at_ns=now_ns,
    )


def restored_state(view: Tables, plan: RestorePlan) -> RestoredState:
    """The backup's objects, with this node as the only manager.

    The old nodes stay as they are: those that live go on with their tasks when they find this
    manager, the others are called down by the dispatcher. Only one whose address this node has
    taken cannot come back: it is down at once. Raises: InvalidArgument for addresses that the
    cluster's own networks hold.
    """
    for cluster in view.clusters:
        ingress_pool(cluster.ingress_pool or INGRESS_POOL, plan.addresses)
    meta = Meta(
        version=Version(index=plan.version), created_at_ns=plan.now_ns, updated_at_ns=plan.now_ns
    )
    new = _manager_row(plan.node_id, plan.hostname, plan.addresses, plan.availability)
    rows = [_old_node(row, plan) if isinstance(row, Node) else row for row in view.all_rows()]
    removed = {
        node.manager_status.raft_id for node in view.nodes if node.manager_status is not None
    }
    return RestoredState((*rows, new.replaced(meta=meta)), frozenset(removed - {0}))


def _old_node(node: Node, plan: RestorePlan) -> Node:
    changed = node.replaced(manager_status=None)
    if _has_address_of(node, plan.addresses):
        message = f"node {plan.node_id} has taken its place: the cluster was restored there"
        changed = changed.replaced(
            status=node.status.replaced(state=NodeState.DOWN, message=message, address=""),
            # Or the data path of every node would have two peers at one address.
            description=node.description.replaced(data_path_address=""),
        )
    if changed == node:
        return node
    meta = node.meta.replaced(version=Version(index=plan.version), updated_at_ns=plan.now_ns)
    return changed.replaced(meta=meta)


def _has_address_of(node: Node, own: NodeAddresses) -> bool:
    manager = node.manager_status
    return (
        node.status.address == str(own.advertise.host)
        or node.description.data_path_address == str(own.data_path)
        or (manager is not None and manager.address == own.advertise.render())
    )


def refuse_newer(made_by: str, own: str) -> None:
    """Raise FailedPrecondition for what a newer version made: it may hold what this one drops."""
    theirs, ours = _numbers(made_by), _numbers(own)
    if theirs and ours and theirs > ours:
        raise FailedPrecondition(
            f"backup: made by Shoal {made_by}, this is {own}: it may hold what this version does"
            " not know; restore it with that version or a newer one"
        )


def _numbers(text: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _cluster(plan: InitPlan, who: NewNode, secrets: ClusterSecrets) -> Cluster:
    return Cluster(
        id=who.cluster_id,
        spec=plan.spec,
        root_ca=RootCa(
            certificate=secrets.root_certificate_pem,
            key=secrets.root_key_pem,
            certificate_digest=root_digest(secrets.root_certificate_pem),
            join_tokens=JoinTokens(worker=secrets.tokens.worker, manager=secrets.tokens.manager),
        ),
        default_address_pools=plan.default_address_pools,
        default_address_pool_mask_length=plan.default_address_pool_mask_length,
        data_path_port=plan.data_path_port,
        ingress_pool=plan.ingress_pool,
        ingress_subnet_mask_length=INGRESS_SUBNET_MASK_LENGTH,
    )


def _manager_row(
    node_id: NodeId, hostname: str, addresses: NodeAddresses, availability: NodeAvailability
) -> Node:
    return Node(
        id=node_id,
        spec=NodeSpec(desired_role=NodeRole.MANAGER, availability=availability),
        role=NodeRole.MANAGER,
        description=NodeDescription(hostname=hostname),
        manager_status=ManagerStatus(
            address=addresses.advertise.render(), leader=True, reachable=True
        ),
    )


def _check_external(external_cas: Sequence[ExternalCa]) -> None:
    """Refuse external authorities that cannot become the root of a new cluster."""
    if any(not one.ca_certificate for one in external_cas):
        raise InvalidArgument(
            "external ca: cacert must be given with init: the root that becomes the cluster's"
        )
    for one in external_cas[1:]:
        if not same_root(one.ca_certificate, external_cas[0].ca_certificate):
            raise InvalidArgument("external ca: all of them must have the same root (cacert)")


def _data_path_port(port: int) -> int:
    if port == 0:
        return DATA_PATH_PORT
    if port not in DATA_PATH_PORTS:
        raise InvalidArgument(
            f"data path port: {port} must be between {DATA_PATH_PORTS[0]} and {DATA_PATH_PORTS[-1]}"
        )
    return port
