"""The cluster as Docker's API shows a swarm, and for people.

Settings that are unset show their default for people, and are left out of the JSON.
"""

from __future__ import annotations

from typing import Any

from shoal.docker.words import spell, timestamp
from shoal.model.defaults import (
    ADDRESS_POOL,
    ADDRESS_POOL_MASK_LENGTH,
    DATA_PATH_PORT,
    INGRESS_POOL,
    NODE_CERTIFICATE_VALIDITY_NS,
    SNAPSHOT_INTERVAL,
    TASK_HISTORY_RETENTION_LIMIT,
    network_key_rotation_ns,
    rebalance_interval_ns,
)
from shoal.model.enums import PlacementStrategy
from shoal.model.objects import Cluster
from shoal.model.types import ExternalCa
from swarmctl.parsing.units import format_duration


def cluster_json(cluster: Cluster) -> dict[str, Any]:
    """Docker's names; what is ours stands beside them."""
    spec = cluster.spec
    strategy = spec.orchestration.placement_strategy
    return {
        "ID": cluster.id,
        "Version": {"Index": cluster.meta.version.index},
        "CreatedAt": timestamp(cluster.meta.created_at_ns),
        "UpdatedAt": timestamp(cluster.meta.updated_at_ns),
        "Spec": {
            "Name": spec.annotations.name,
            "Labels": dict(spec.annotations.labels),
            "Orchestration": _given(
                TaskHistoryRetentionLimit=spec.orchestration.task_history_retention_limit,
                PlacementStrategy=spell(strategy) if strategy else None,
                RebalanceInterval=spec.orchestration.rebalance_interval_ns,
            ),
            "Raft": _given(
                SnapshotInterval=spec.raft.snapshot_interval,
                ManagersWanted=spec.raft.managers_wanted,
            ),
            "Dispatcher": _given(HeartbeatPeriod=spec.dispatcher.heartbeat_period_ns),
            "CAConfig": _given(
                NodeCertExpiry=spec.ca.node_certificate_validity_ns,
                ExternalCAs=[_external_ca(one) for one in spec.ca.external_cas] or None,
            ),
            "NetworkConfig": _given(KeyRotation=spec.network.key_rotation_ns),
            "EncryptionConfig": {"AutoLockManagers": spec.autolock_managers},
        },
        "RootRotationInProgress": cluster.root_ca.rotation is not None,
        "NetworkKeyGeneration": cluster.encryption_key_lamport_clock,
        "DataPathPort": cluster.data_path_port,
        "DefaultAddrPool": [*(cluster.default_address_pools or (ADDRESS_POOL,))],
        "SubnetSize": cluster.default_address_pool_mask_length or ADDRESS_POOL_MASK_LENGTH,
        "IngressPool": cluster.ingress_pool or INGRESS_POOL,
    }


def cluster_text(cluster: Cluster) -> str:
    """For people, defaults filled in."""
    spec = cluster.spec
    limit = spec.orchestration.task_history_retention_limit
    heartbeat_ns = spec.dispatcher.heartbeat_period_ns
    validity_ns = spec.ca.node_certificate_validity_ns or NODE_CERTIFICATE_VALIDITY_NS
    wanted = spec.raft.managers_wanted
    every_ns = rebalance_interval_ns(cluster)
    strategy = spec.orchestration.placement_strategy
    heartbeat = "adapted by the managers" if heartbeat_ns is None else format_duration(heartbeat_ns)
    lines = [
        f"ID:\t\t\t{cluster.id}",
        f"Name:\t\t\t{spec.annotations.name}",
        f"Task history limit:\t{TASK_HISTORY_RETENTION_LIMIT if limit is None else limit}",
        f"Dispatcher heartbeat:\t{heartbeat}",
        f"Certificate expiry:\t{format_duration(validity_ns)}",
        *(f"External CA:\t\t{one.protocol} {one.url}" for one in spec.ca.external_cas),
        f"Network key rotation:\t{format_duration(network_key_rotation_ns(cluster))}",
        f"Snapshot interval:\t{spec.raft.snapshot_interval or SNAPSHOT_INTERVAL}",
        f"Placement strategy:\t{spell(strategy or PlacementStrategy.SPREAD)}",
        f"Rebalancing:\t\t{f'every {format_duration(every_ns)}' if every_ns else 'off'}",
        f"Managers to keep up:\t{wanted or 'as many as there are'}",
        f"Autolock:\t\t{'on' if spec.autolock_managers else 'off'}",
        f"Default address pool:\t{' '.join(cluster.default_address_pools or (ADDRESS_POOL,))}",
        f"Subnet size:\t\t{cluster.default_address_pool_mask_length or ADDRESS_POOL_MASK_LENGTH}",
        f"Data path port:\t\t{cluster.data_path_port or DATA_PATH_PORT}",
        f"Ingress pool:\t\t{cluster.ingress_pool or INGRESS_POOL}",
    ]
    return "\n".join(lines) + "\n"


def _external_ca(one: ExternalCa) -> dict[str, Any]:
    return {
        "Protocol": one.protocol,
        "URL": one.url,
        "CACert": one.ca_certificate.decode(errors="replace"),
    }


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
