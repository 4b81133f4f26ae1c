"""The decisions of init: what is refused, and the first entry of a new cluster's log. Pure.

Ids, secrets and time are arguments. Defaults of specs stay unwritten (`shoal.model.defaults`);
what init decides for ever (data path port, ingress pool) is written out.
"""

from __future__ import annotations

import ipaddress

import msgspec

from manager.ca.core import ClusterSecrets
from manager.controlapi import validate
from shoal.errors import InvalidArgument
from shoal.ids import ClusterId, NodeId
from shoal.model.defaults import DATA_PATH_PORT, INGRESS_POOL, INGRESS_SUBNET_MASK_LENGTH
from shoal.model.enums import ActionKind, NodeAvailability, NodeRole
from shoal.model.objects import Cluster, Node, StoreAction, StoreEntry
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
    JoinTokens,
    ManagerStatus,
    NodeDescription,
    RootCa,
)
from shoal.security.root import NODE_VALIDITY_S
from shoal.security.trust import root_digest
from swarmd.addresses import NodeAddresses

CLUSTER_NAME = "default"
DATA_PATH_PORTS = range(1024, 49152)
INGRESS_PREFIX_MIN = 8


class InitWish(msgspec.Struct, frozen=True):
    """What the user asked of init; None, 0 and empty mean the default."""

    advertise_address: str = ""
    listen_address: str = ""
    data_path_address: str = ""
    availability: int = NodeAvailability.ACTIVE
    data_path_port: int = 0
    ingress_pool: str = ""
    task_history_retention_limit: int | None = None
    dispatcher_heartbeat_period_ns: int | None = None
    node_certificate_validity_ns: int | None = None
    snapshot_interval: int | None = None


class InitPlan(msgspec.Struct, frozen=True):
    """A wish that was found good."""

    addresses: NodeAddresses
    availability: NodeAvailability
    data_path_port: int
    ingress_pool: str
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


def plan_init(wish: InitWish, addresses: NodeAddresses) -> InitPlan:
    """Check the wish. Raises InvalidArgument naming the field and the rule."""
    spec = ClusterSpec(
        annotations=Annotations(name=CLUSTER_NAME),
        orchestration=OrchestrationConfig(wish.task_history_retention_limit),
        raft=RaftConfig(snapshot_interval=wish.snapshot_interval),
        dispatcher=DispatcherConfig(wish.dispatcher_heartbeat_period_ns),
        ca=CaConfig(node_certificate_validity_ns=wish.node_certificate_validity_ns),
    )
    validate.cluster_spec(spec)
    return InitPlan(
        addresses=addresses,
        availability=parse_availability(wish.availability),
        data_path_port=_data_path_port(wish.data_path_port),
        ingress_pool=_ingress_pool(wish.ingress_pool or INGRESS_POOL, addresses),
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
    plan: InitPlan, who: NewNode, secrets: ClusterSecrets, *, now_ns: int
) -> StoreEntry:
    """The cluster and its first manager, as the first entry of the log."""
    rows = (_cluster(plan, who, secrets), _node(plan, who))
    return StoreEntry(
        actions=tuple(StoreAction(object=row, kind=ActionKind.CREATE) for row in rows),
        proposed_at_ns=now_ns,
    )


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
        data_path_port=plan.data_path_port,
        ingress_pool=plan.ingress_pool,
        ingress_subnet_mask_length=INGRESS_SUBNET_MASK_LENGTH,
    )


def _node(plan: InitPlan, who: NewNode) -> Node:
    return Node(
        id=who.node_id,
        spec=NodeSpec(desired_role=NodeRole.MANAGER, availability=plan.availability),
        role=NodeRole.MANAGER,
        description=NodeDescription(hostname=who.hostname),
        manager_status=ManagerStatus(
            address=plan.addresses.advertise.render(), leader=True, reachable=True
        ),
    )


def _data_path_port(port: int) -> int:
    if port == 0:
        return DATA_PATH_PORT
    if port not in DATA_PATH_PORTS:
        raise InvalidArgument(
            f"data path port: {port} must be between {DATA_PATH_PORTS[0]} and {DATA_PATH_PORTS[-1]}"
        )
    return port


def _ingress_pool(text: str, addresses: NodeAddresses) -> str:
    try:
        pool = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise InvalidArgument(
            f"ingress pool: {text!r} is not an IPv4 network such as {INGRESS_POOL} ({error})"
        ) from error
    if not INGRESS_PREFIX_MIN <= pool.prefixlen <= INGRESS_SUBNET_MASK_LENGTH:
        raise InvalidArgument(
            f"ingress pool: {text} must have a prefix from /{INGRESS_PREFIX_MIN} to "
            f"/{INGRESS_SUBNET_MASK_LENGTH}: every node takes a /{INGRESS_SUBNET_MASK_LENGTH} of it"
        )
    if pool.is_loopback or pool.is_multicast or pool.is_link_local or pool.is_unspecified:
        raise InvalidArgument(f"ingress pool: {text} holds addresses that cannot be routed")
    named = {"advertise": addresses.advertise.host, "data path": addresses.data_path}
    for name, address in named.items():
        if address in pool:
            raise InvalidArgument(
                f"ingress pool: {text} holds this node's {name} address {address}: choose another "
                "pool with --default-addr-pool, or another address"
            )
    return str(pool)
