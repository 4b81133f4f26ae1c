"""Bodies of `/swarm`, read into the cluster's settings and back. Pure.

Settings are shown with the defaults in force, as Docker shows them. A client sends back all that
it was shown; what was unset and comes back as it was shown stays unset, and what Docker has no
field for stays as it is.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from engine.cluster.choices import chosen
from shoal.api.v1 import node_pb2, types_pb2
from shoal.docker.words import timestamp
from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.defaults import (
    ADDRESS_POOL,
    ADDRESS_POOL_MASK_LENGTH,
    DATA_PATH_PORT,
    ELECTION_TICKS,
    HEARTBEAT_TICKS,
    NODE_CERTIFICATE_VALIDITY_NS,
    SNAPSHOT_INTERVAL,
    heartbeat_period_ns,
    task_history_retention_limit,
)
from shoal.model.enums import NodeAvailability, NodeRole
from shoal.model.objects import Cluster
from shoal.model.specs import ClusterSpec, NodeSpec
from shoal.model.types import Annotations, ExternalCa
from shoal.security.issuer import issuer_of
from shoal.wire.objects import to_pb


class _Body(msgspec.Struct, frozen=True, rename="pascal"):
    """Docker's spelling."""


class OrchestrationBody(_Body, frozen=True):
    """`Orchestration`."""

    task_history_retention_limit: int | None = None


class RaftBody(_Body, frozen=True):
    """`Raft`."""

    snapshot_interval: int = 0
    keep_old_snapshots: int = 0
    log_entries_for_slow_followers: int = 0
    election_tick: int = 0
    heartbeat_tick: int = 0


class DispatcherBody(_Body, frozen=True):
    """`Dispatcher`."""

    heartbeat_period: int = 0


class ExternalCaBody(_Body, frozen=True):
    """One of `ExternalCAs`."""

    protocol: str = "cfssl"
    url: str = msgspec.field(default="", name="URL")
    options: dict[str, str] = {}
    ca_cert: str = msgspec.field(default="", name="CACert")

    def row(self) -> ExternalCa:
        """The same in our words."""
        certificate = self.ca_cert.encode()
        return ExternalCa(self.protocol, self.url, self.options, certificate)


class CaBody(_Body, frozen=True):
    """`CAConfig`."""

    node_cert_expiry: int = 0
    external_cas: tuple[ExternalCaBody, ...] = msgspec.field(default=(), name="ExternalCAs")
    signing_ca_cert: str = msgspec.field(default="", name="SigningCACert")
    signing_ca_key: str = msgspec.field(default="", name="SigningCAKey")
    force_rotate: int = 0


class EncryptionBody(_Body, frozen=True):
    """`EncryptionConfig`."""

    auto_lock_managers: bool = False


class ClusterBody(_Body, frozen=True):
    """A `Spec` of the swarm."""

    name: str = ""
    labels: dict[str, str] = {}
    orchestration: OrchestrationBody = OrchestrationBody()
    raft: RaftBody = RaftBody()
    dispatcher: DispatcherBody = DispatcherBody()
    ca_config: CaBody = msgspec.field(default=CaBody(), name="CAConfig")
    task_defaults: dict[str, Any] = {}
    encryption_config: EncryptionBody = EncryptionBody()

    def check(self) -> None:
        """Refuse what this version cannot do. Raises: Unimplemented naming the field."""
        impossible = {
            "Raft.KeepOldSnapshots": self.raft.keep_old_snapshots,
            "Raft.LogEntriesForSlowFollowers": self.raft.log_entries_for_slow_followers,
            "Raft.ElectionTick": self.raft.election_tick not in (0, ELECTION_TICKS),
            "Raft.HeartbeatTick": self.raft.heartbeat_tick not in (0, HEARTBEAT_TICKS),
            "TaskDefaults.LogDriver": self.task_defaults.get("LogDriver"),
        }
        for name, value in impossible.items():
            if value:
                raise Unimplemented(f"{name}: cannot be set on this version: leave it out")


class InitBody(_Body, frozen=True):
    """`POST /swarm/init`."""

    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0
    default_addr_pool: tuple[str, ...] = ()
    subnet_size: int = 0
    force_new_cluster: bool = False
    auto_lock_managers: bool = False
    availability: str = ""
    spec: ClusterBody = ClusterBody()

    def request(self) -> node_pb2.InitRequest:
        """The same for the node's daemon. Raises: InvalidArgument, Unimplemented."""
        if self.force_new_cluster:
            raise Unimplemented(
                "ForceNewCluster: start the node's daemon with `swarmd --force-new-cluster`"
            )
        spec = self.spec
        spec.check()
        if spec.name not in ("", "default") or spec.labels:
            raise Unimplemented("Spec.Name, Spec.Labels: set them with an update once there is one")
        if spec.ca_config.signing_ca_cert or spec.ca_config.signing_ca_key:
            raise Unimplemented(
                "CAConfig.SigningCACert: replace the root once the cluster is there"
            )
        return node_pb2.InitRequest(
            advertise_address=self.advertise_addr,
            listen_address=self.listen_addr,
            data_path_address=self.data_path_addr,
            data_path_port=self.data_path_port,
            default_address_pools=self.default_addr_pool,
            default_address_pool_mask_length=self.subnet_size if self.default_addr_pool else 0,
            availability=_availability(self.availability),
            autolock=self.auto_lock_managers or spec.encryption_config.auto_lock_managers,
            task_history_retention_limit=spec.orchestration.task_history_retention_limit,
            dispatcher_heartbeat_period_ns=spec.dispatcher.heartbeat_period or None,
            node_certificate_validity_ns=spec.ca_config.node_cert_expiry or None,
            snapshot_interval=spec.raft.snapshot_interval or None,
            external_cas=[
                to_pb(one.row(), types_pb2.ExternalCa) for one in spec.ca_config.external_cas
            ],
        )


class JoinBody(_Body, frozen=True):
    """`POST /swarm/join`."""

    remote_addrs: tuple[str, ...] = ()
    join_token: str = ""
    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    availability: str = ""

    def request(self) -> node_pb2.JoinRequest:
        """The same for the node's daemon. Raises: InvalidArgument."""
        return node_pb2.JoinRequest(
            remote_addresses=self.remote_addrs,
            token=self.join_token,
            listen_address=self.listen_addr,
            advertise_address=self.advertise_addr,
            data_path_address=self.data_path_addr,
            availability=_availability(self.availability),
        )


class UnlockBody(_Body, frozen=True):
    """`POST /swarm/unlock`."""

    unlock_key: str = ""


class NodeBody(_Body, frozen=True):
    """`POST /nodes/{id}/update`."""

    name: str = ""
    labels: dict[str, str] = {}
    role: str = ""
    availability: str = ""

    def spec(self, before: NodeSpec) -> NodeSpec:
        """The node's next spec. Raises: InvalidArgument."""
        availability = chosen(NodeAvailability, self.availability, "Availability")
        return before.replaced(
            annotations=Annotations(self.name, self.labels),
            desired_role=chosen(NodeRole, self.role, "Role"),
            availability=availability,
            drain=before.drain if availability is NodeAvailability.DRAIN else None,
        )


def next_spec(cluster: Cluster, body: ClusterBody) -> ClusterSpec:
    """The settings that a client wants. Raises: InvalidArgument, Unimplemented."""
    body.check()
    spec, shown = cluster.spec, _defaults(cluster)
    orchestration, dispatcher, raft, ca = spec.orchestration, spec.dispatcher, spec.raft, spec.ca

    def kept(before: int | None, wished: int | None, default: int) -> int | None:
        return None if before is None and wished == default else wished

    limit = kept(
        orchestration.task_history_retention_limit,
        body.orchestration.task_history_retention_limit,
        shown.history,
    )
    heartbeat = kept(
        dispatcher.heartbeat_period_ns, body.dispatcher.heartbeat_period or None, shown.heartbeat_ns
    )
    interval = kept(raft.snapshot_interval, body.raft.snapshot_interval or None, shown.interval)
    validity = kept(
        ca.node_certificate_validity_ns, body.ca_config.node_cert_expiry or None, shown.validity_ns
    )
    if body.name not in ("", spec.annotations.name, "default"):
        raise InvalidArgument("Name: the swarm's name cannot be changed")
    return spec.replaced(
        annotations=Annotations(spec.annotations.name, body.labels),
        orchestration=orchestration.replaced(task_history_retention_limit=limit),
        dispatcher=dispatcher.replaced(heartbeat_period_ns=heartbeat),
        raft=raft.replaced(snapshot_interval=interval),
        ca=ca.replaced(
            node_certificate_validity_ns=validity,
            external_cas=tuple(one.row() for one in body.ca_config.external_cas),
        ),
        autolock_managers=body.encryption_config.auto_lock_managers,
    )


def cluster_info(cluster: Cluster) -> dict[str, Any]:
    """The cluster without its join tokens, as in `/info`."""
    spec, shown = cluster.spec, _defaults(cluster)
    return {
        "ID": cluster.id,
        "Version": {"Index": cluster.meta.version.index},
        "CreatedAt": timestamp(cluster.meta.created_at_ns),
        "UpdatedAt": timestamp(cluster.meta.updated_at_ns),
        "Spec": {
            "Name": spec.annotations.name or "default",
            "Labels": dict(spec.annotations.labels),
            "Orchestration": {"TaskHistoryRetentionLimit": shown.history},
            "Raft": {
                "SnapshotInterval": shown.interval,
                "ElectionTick": ELECTION_TICKS,
                "HeartbeatTick": HEARTBEAT_TICKS,
            },
            "Dispatcher": {"HeartbeatPeriod": shown.heartbeat_ns},
            "CAConfig": {
                "NodeCertExpiry": shown.validity_ns,
                "ForceRotate": cluster.root_ca.last_forced_rotation,
                "ExternalCAs": [_external(one) for one in spec.ca.external_cas],
            },
            "TaskDefaults": {},
            "EncryptionConfig": {"AutoLockManagers": spec.autolock_managers},
        },
        "TLSInfo": tls_info(cluster.root_ca.certificate),
        "RootRotationInProgress": cluster.root_ca.rotation is not None,
        "DefaultAddrPool": [*(cluster.default_address_pools or (ADDRESS_POOL,))],
        "SubnetSize": cluster.default_address_pool_mask_length or ADDRESS_POOL_MASK_LENGTH,
        "DataPathPort": cluster.data_path_port or DATA_PATH_PORT,
    }


def swarm_json(cluster: Cluster) -> dict[str, Any]:
    """`GET /swarm`."""
    tokens = cluster.root_ca.join_tokens
    return {
        **cluster_info(cluster),
        "JoinTokens": {"Worker": tokens.worker, "Manager": tokens.manager},
    }


def tls_info(root_pem: bytes) -> dict[str, Any]:
    """Whom nodes trust. Raises: InvalidArgument."""
    subject, key = issuer_of(root_pem)
    return {
        "TrustRoot": root_pem.decode(errors="replace"),
        "CertIssuerSubject": base64.b64encode(subject).decode(),
        "CertIssuerPublicKey": base64.b64encode(key).decode(),
    }


class _Shown(msgspec.Struct, frozen=True):
    """What is in force."""

    history: int
    heartbeat_ns: int
    interval: int
    validity_ns: int


def _defaults(cluster: Cluster) -> _Shown:
    interval = cluster.spec.raft.snapshot_interval
    validity_ns = cluster.spec.ca.node_certificate_validity_ns
    return _Shown(
        history=task_history_retention_limit(cluster),
        heartbeat_ns=heartbeat_period_ns(cluster),
        interval=SNAPSHOT_INTERVAL if interval is None else interval,
        validity_ns=NODE_CERTIFICATE_VALIDITY_NS if validity_ns is None else validity_ns,
    )


def _external(one: ExternalCa) -> dict[str, Any]:
    return {
        "Protocol": one.protocol,
        "URL": one.url,
        "Options": dict(one.options),
        "CACert": one.ca_certificate.decode(errors="replace"),
    }


def _availability(text: str) -> types_pb2.NodeAvailability.ValueType:
    found = chosen(NodeAvailability, text, "Availability", NodeAvailability.ACTIVE)
    return types_pb2.NodeAvailability.ValueType(found)
