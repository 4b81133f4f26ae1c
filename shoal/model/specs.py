"""Specs: the user's wishes. The cluster never edits them.

Defaults are kept apart from the user's words and applied where a field is read, so that a spec
reads back as it was written (`shoal.model.defaults`).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import field
from typing_extensions import override

from shoal.model.enums import NodeAvailability, NodeMembership, NodeRole, PlacementStrategy
from shoal.model.row import Row
from shoal.model.types import (
    Annotations,
    CaConfig,
    DeviceMapping,
    DisconnectPolicy,
    DnsConfig,
    DrainPolicy,
    Driver,
    EndpointSpec,
    FileReference,
    FileRotation,
    HealthCheck,
    IpamOptions,
    Mount,
    NetworkAttachmentConfig,
    Placement,
    Privileges,
    ResourceRequirements,
    RestartPolicy,
    ServiceDependency,
    Ulimit,
    UpdateConfig,
)


class NodeSpec(Row, frozen=True):
    """What the user wants of a node. `drain`: how, with DRAIN; None: as Swarm, all at once."""

    annotations: Annotations = Annotations()
    desired_role: NodeRole = NodeRole.WORKER
    membership: NodeMembership = NodeMembership.ACCEPTED
    availability: NodeAvailability = NodeAvailability.ACTIVE
    drain: DrainPolicy | None = None


class PullOptions(Row, frozen=True):
    """How the image is fetched."""

    registry_auth: str = ""


class ContainerSpec(Row, frozen=True):
    """The container of a task."""

    image: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    hostname: str = ""
    env: tuple[str, ...] = ()
    dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    privileges: Privileges = Privileges()
    tty: bool = False
    open_stdin: bool = False
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    stop_signal: str = ""
    stop_grace_period_ns: int | None = None
    health_check: HealthCheck | None = None
    hosts: tuple[str, ...] = ()
    dns: DnsConfig = DnsConfig()
    secrets: tuple[FileReference, ...] = ()
    configs: tuple[FileReference, ...] = ()
    isolation: str = ""
    init: bool | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    capability_add: tuple[str, ...] = ()
    capability_drop: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    oom_score_adj: int = 0
    pull_options: PullOptions | None = None
    devices: tuple[DeviceMapping, ...] = ()
    file_rotation: FileRotation | None = None


class NetworkAttachmentSpec(Row, frozen=True):
    """A task that only holds a network attachment for a container."""

    container_id: str = ""


class GenericRuntimeSpec(Row, frozen=True):
    """A task for a runtime of another kind."""

    kind: str = ""
    payload: bytes = b""


class TaskSpec(Row, frozen=True):
    """Template of a service's tasks."""

    runtime: ContainerSpec | NetworkAttachmentSpec | GenericRuntimeSpec = ContainerSpec()
    resources: ResourceRequirements = ResourceRequirements()
    restart: RestartPolicy | None = None
    placement: Placement = Placement()
    log_driver: Driver | None = None
    networks: tuple[NetworkAttachmentConfig, ...] = ()
    force_update: int = 0
    disconnect: DisconnectPolicy | None = None
    listen_timeout_ns: int | None = None


class ReplicatedMode(Row, frozen=True):
    """A number of equal tasks."""

    replicas: int = 0


class GlobalMode(Row, frozen=True):
    """One task on every node that fits."""


class ReplicatedJobMode(Row, frozen=True):
    """Tasks that run to completion."""

    max_concurrent: int = 0
    total_completions: int = 0


class GlobalJobMode(Row, frozen=True):
    """One task to completion on every node that fits."""


ServiceMode = ReplicatedMode | GlobalMode | ReplicatedJobMode | GlobalJobMode


class ServiceSpec(Row, frozen=True):
    """What the user wants to run."""

    annotations: Annotations = Annotations()
    task: TaskSpec = TaskSpec()
    mode: ReplicatedMode | GlobalMode | ReplicatedJobMode | GlobalJobMode = ReplicatedMode(
        replicas=1
    )
    update: UpdateConfig | None = None
    rollback: UpdateConfig | None = None
    endpoint: EndpointSpec = EndpointSpec()
    drain_timeout_ns: int | None = None
    ttl_after_finish_ns: int | None = None
    priority: int = 0
    disruption_budget: int | None = None
    depends_on: tuple[ServiceDependency, ...] = ()


class NetworkSpec(Row, frozen=True):
    """A network."""

    annotations: Annotations = Annotations()
    driver: Driver | None = None
    ipv6_enabled: bool = False
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    ipam: IpamOptions = IpamOptions()
    config_from: str = ""
    config_only: bool = False


class OrchestrationConfig(Row, frozen=True):
    """Dead tasks kept per slot, None: 5, negative: all; and how tasks are placed.

    rebalance_interval_ns: how often tasks may be moved to emptier nodes by themselves; None: never.
    """

    task_history_retention_limit: int | None = None
    placement_strategy: PlacementStrategy = PlacementStrategy.DEFAULT
    rebalance_interval_ns: int | None = None


class RaftConfig(Row, frozen=True):
    """Snapshots and ticks of the log. `managers_wanted`: reachable managers to keep up; 0: off."""

    snapshot_interval: int | None = None
    keep_old_snapshots: int = 0
    heartbeat_ticks: int | None = None
    election_ticks: int | None = None
    managers_wanted: int = 0


class DispatcherConfig(Row, frozen=True):
    """Heartbeats. `heartbeat_period_ns` None: 250 ms, up to 1 s with many nodes."""

    heartbeat_period_ns: int | None = None


class NetworkConfig(Row, frozen=True):
    """Encrypted networks. `key_rotation_ns` None: nodes get new keys every 12 hours."""

    key_rotation_ns: int | None = None


class TaskDefaults(Row, frozen=True):
    """Defaults of tasks that say nothing."""

    log_driver: Driver | None = None


class ClusterSpec(Row, frozen=True):
    """Settings of the cluster."""

    annotations: Annotations = Annotations()
    orchestration: OrchestrationConfig = OrchestrationConfig()
    raft: RaftConfig = RaftConfig()
    dispatcher: DispatcherConfig = DispatcherConfig()
    ca: CaConfig = CaConfig()
    task_defaults: TaskDefaults = TaskDefaults()
    autolock_managers: bool = False
    network: NetworkConfig = NetworkConfig()


class SecretSpec(Row, frozen=True):
    """A secret: `data` never leaves the managers but for the tasks that need it."""

    annotations: Annotations = Annotations()
    data: bytes = b""
    driver: Driver | None = None
    templating: Driver | None = None

    @override
    def __repr__(self) -> str:
        """What logs and errors may show of it."""
        return f"SecretSpec({self.annotations.name!r}, {len(self.data)} bytes)"


class ConfigSpec(Row, frozen=True):
    """A config."""

    annotations: Annotations = Annotations()
    data: bytes = b""
    templating: Driver | None = None


class StackSpec(Row, frozen=True):
    """Services that belong together, and what they need; `source` is the file it was made from."""

    annotations: Annotations = Annotations()
    networks: tuple[NetworkSpec, ...] = ()
    secrets: tuple[SecretSpec, ...] = ()
    configs: tuple[ConfigSpec, ...] = ()
    services: tuple[ServiceSpec, ...] = ()
    source: str = ""
