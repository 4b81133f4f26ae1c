"""Values shared by specs and objects.

Times are nanoseconds since 1970-01-01 UTC, durations nanoseconds. A field that is None, 0 or empty
is not set; defaults are applied where the field is read (`shoal.model.defaults`).
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import field

from shoal.model.enums import (
    DependencyCondition,
    DisconnectAction,
    EndpointMode,
    FailureAction,
    MountPropagation,
    MountRecursive,
    MountType,
    NodeRole,
    NodeState,
    PlacementStrategy,
    PortProtocol,
    PublishMode,
    PublishPreference,
    PublishSource,
    RestartCondition,
    ReturnAction,
    TaskState,
    UpdateOrder,
    UpdateState,
)
from shoal.model.row import Row


class Version(Row, frozen=True):
    """Version of an object: the index of the log entry that last wrote it."""

    index: int = 0


class Meta(Row, frozen=True):
    """Bookkeeping of an object, written by the store alone."""

    version: Version = Version()
    created_at_ns: int = 0
    updated_at_ns: int = 0


class Annotations(Row, frozen=True):
    """What the user calls an object."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class Driver(Row, frozen=True):
    """A pluggable part by name, with its options."""

    name: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


class Platform(Row, frozen=True):
    """Architecture and operating system, in Go's names (amd64, linux)."""

    architecture: str = ""
    os: str = ""


class GenericResource(Row, frozen=True):
    """An amount of a user-defined resource: a count, or one named piece."""

    kind: str = ""
    count: int = 0
    named_value: str = ""


class Resources(Row, frozen=True):
    """CPU in billionths of a core, memory in bytes, and the rest; 0 means none or no limit."""

    nano_cpus: int = 0
    memory_bytes: int = 0
    pids: int = 0
    generic: tuple[GenericResource, ...] = ()
    swap_bytes: int | None = None
    memory_swappiness: int | None = None


class ResourceRequirements(Row, frozen=True):
    """Limits bind the container; reservations are what the scheduler counts."""

    limits: Resources = Resources()
    reservations: Resources = Resources()


class RestartPolicy(Row, frozen=True):
    """When and how often a task is replaced. `delay_ns` None: 5 s.

    backoff_factor: each delay is so many times the one before; 0: all are equal. `backoff_max_ns`,
    None: 5 minutes, is the longest, and a task that ran for longer than that starts over.
    """

    condition: RestartCondition = RestartCondition.ANY
    delay_ns: int | None = None
    max_attempts: int = 0
    window_ns: int = 0
    backoff_factor: float = 0.0
    backoff_max_ns: int | None = None


class DisconnectPolicy(Row, frozen=True):
    """What becomes of a task whose node is lost. `wait_ns` None: 10 minutes, where it waits."""

    action: DisconnectAction = DisconnectAction.REPLACE
    wait_ns: int | None = None
    on_return: ReturnAction = ReturnAction.KEEP_REPLACEMENT


class DrainPolicy(Row, frozen=True):
    """Tasks of a drained node start elsewhere before they stop. `deadline_ns` None: 1 hour."""

    deadline_ns: int | None = None


class UpdateConfig(Row, frozen=True):
    """How a rolling update or rollback proceeds. `monitor_ns` None: 5 s.

    progress_deadline_ns: longest stay of a new task in one state before it runs. None: 10 minutes,
    0: any.
    """

    parallelism: int = 0
    delay_ns: int = 0
    failure_action: FailureAction = FailureAction.PAUSE
    monitor_ns: int | None = None
    max_failure_ratio: float = 0.0
    order: UpdateOrder = UpdateOrder.STOP_FIRST
    progress_deadline_ns: int | None = None


class UpdateStatus(Row, frozen=True):
    """Progress of the newest rolling update."""

    state: UpdateState = UpdateState.UNKNOWN
    started_at_ns: int = 0
    completed_at_ns: int = 0
    message: str = ""


class HealthCheck(Row, frozen=True):
    """Health probe; zeros mean the engine's defaults."""

    test: tuple[str, ...] = ()
    interval_ns: int = 0
    timeout_ns: int = 0
    retries: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0


class Mount(Row, frozen=True):
    """A mount into the container."""

    type: MountType = MountType.BIND
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    propagation: MountPropagation = MountPropagation.RPRIVATE
    recursive: MountRecursive = MountRecursive.ENABLED
    create_source: bool = False
    volume_driver: Driver | None = None
    volume_labels: Mapping[str, str] = field(default_factory=dict)
    volume_nocopy: bool = False
    subpath: str = ""
    tmpfs_size_bytes: int = 0
    tmpfs_mode: int = 0
    tmpfs_options: str = ""


class FileReference(Row, frozen=True):
    """A secret or config as the container sees it."""

    id: str = ""
    name: str = ""
    target: str = ""
    uid: str = ""
    gid: str = ""
    mode: int = 0
    runtime: bool = False


class Ulimit(Row, frozen=True):
    """A resource limit by its setrlimit(2) name in lower case."""

    name: str = ""
    soft: int = 0
    hard: int = 0


class DeviceMapping(Row, frozen=True):
    """A device of the node in the container: `shoal.model.devices`. Empty path: the node's."""

    host_path: str = ""
    container_path: str = ""
    permissions: str = ""


class DnsConfig(Row, frozen=True):
    """Contents of resolv.conf."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Privileges(Row, frozen=True):
    """Security options of a container."""

    credential_spec_config: str = ""
    credential_spec_file: str = ""
    credential_spec_registry: str = ""
    selinux_disable: bool = False
    selinux_user: str = ""
    selinux_role: str = ""
    selinux_type: str = ""
    selinux_level: str = ""
    seccomp_mode: str = ""
    seccomp_profile: bytes = b""
    apparmor_mode: str = ""
    no_new_privileges: bool = False


class PortConfig(Row, frozen=True):
    """A published port; `published_port` 0 lets the cluster choose.

    sticky: a client's connections that enter at one node go to one task, chosen by its address.
    address, interface: where it answers, one of them at most; see `shoal.model.published`.
    weight_label: label of nodes that says how many connections their tasks get, in proportion.
    """

    name: str = ""
    protocol: PortProtocol = PortProtocol.TCP
    target_port: int = 0
    published_port: int = 0
    publish_mode: PublishMode = PublishMode.INGRESS
    sticky: bool = False
    source: PublishSource = PublishSource.CLIENT
    prefer: PublishPreference = PublishPreference.ANY
    address: str = ""
    interface: str = ""
    weight_label: str = ""


class EndpointSpec(Row, frozen=True):
    """What the user wants to be reachable."""

    mode: EndpointMode = EndpointMode.VIP
    ports: tuple[PortConfig, ...] = ()


class VirtualIp(Row, frozen=True):
    """Address of a service on one network, CIDR."""

    network_id: str = ""
    address: str = ""


class Endpoint(Row, frozen=True):
    """What the allocator gave the service: ports with numbers, virtual addresses."""

    spec: EndpointSpec = EndpointSpec()
    ports: tuple[PortConfig, ...] = ()
    virtual_ips: tuple[VirtualIp, ...] = ()


class NetworkAttachmentConfig(Row, frozen=True):
    """Wish to join a network, by id or name."""

    target: str = ""
    aliases: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    driver_options: Mapping[str, str] = field(default_factory=dict)


class NetworkAttachment(Row, frozen=True):
    """Addresses (CIDR) on one network."""

    network_id: str = ""
    addresses: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    driver_options: Mapping[str, str] = field(default_factory=dict)


class PlacementPreference(Row, frozen=True):
    """One of: a label to spread over, a constraint of nodes to prefer, one of nodes to avoid."""

    spread_descriptor: str = ""
    prefer: str = ""
    avoid: str = ""


class Placement(Row, frozen=True):
    """Where tasks may run."""

    constraints: tuple[str, ...] = ()
    preferences: tuple[PlacementPreference, ...] = ()
    platforms: tuple[Platform, ...] = ()
    max_replicas: int = 0
    strategy: PlacementStrategy = PlacementStrategy.DEFAULT


class ContainerStatus(Row, frozen=True):
    """What the runtime says of a task's container."""

    container_id: str = ""
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    finished_at_ns: int = 0
    started_at_ns: int = 0


class PortStatus(Row, frozen=True):
    """Ports bound on the node itself (host mode)."""

    ports: tuple[PortConfig, ...] = ()


class FileRotation(Row, frozen=True):
    """Other contents of secrets and configs are swapped below running containers.

    signal: by name, sent to the program afterwards; "": it is not told.
    """

    signal: str = ""


class TaskStatus(Row, frozen=True):
    """Where a task is on its ladder, and why it is not further."""

    state: TaskState = TaskState.NEW
    timestamp_ns: int = 0
    message: str = ""
    error: str = ""
    container: ContainerStatus | None = None
    port_status: PortStatus = PortStatus()
    applied_at_ns: int = 0
    applied_by: str = ""
    address: str = ""
    file_ids: tuple[str, ...] = ()


class JobStatus(Row, frozen=True):
    """Iteration of a job."""

    iteration: int = 0
    last_execution_at_ns: int = 0


class EngineDescription(Row, frozen=True):
    """Version, labels and plug-ins of the node's engine."""

    engine_version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    plugins: tuple[Driver, ...] = ()


class NetworkKey(Row, frozen=True):
    """The public half of a node's WireGuard key, of one generation."""

    generation: int = 0
    public_key: bytes = b""


class NodeDescription(Row, frozen=True):
    """What a node says of itself."""

    hostname: str = ""
    platform: Platform = Platform()
    resources: Resources = Resources()
    engine: EngineDescription = EngineDescription()
    trust_root: bytes = b""
    data_path_address: str = ""
    network_keys: tuple[NetworkKey, ...] = ()
    ingress_ipv6: bool = False
    ipv6_addresses: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    devices_known: bool = False
    images: bytes = b""


class NodeStatus(Row, frozen=True):
    """What the dispatcher says of a node."""

    state: NodeState = NodeState.UNKNOWN
    message: str = ""
    address: str = ""
    left: bool = False


class ManagerStatus(Row, frozen=True):
    """A manager's place in the consensus group."""

    raft_id: int = 0
    address: str = ""
    leader: bool = False
    reachable: bool = False


class NodeIngress(Row, frozen=True):
    """A node's place in the routing mesh: its index (1..4095) and the subnet of its tasks."""

    index: int = 0
    subnet: str = ""


class ExternalCa(Row, frozen=True):
    """A signing endpoint outside the cluster."""

    protocol: str = ""
    url: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    ca_certificate: bytes = b""


class NodeCertificate(Row, frozen=True):
    """The certificate that a node said it uses. renew: asks the node to renew it now."""

    issuer_key_id: str = ""
    not_before_ns: int = 0
    not_after_ns: int = 0
    renew: bool = False


class CaConfig(Row, frozen=True):
    """How node certificates are issued."""

    node_certificate_validity_ns: int | None = None
    external_cas: tuple[ExternalCa, ...] = ()
    signing_ca_certificate: bytes = b""
    signing_ca_key: bytes = b""
    force_rotate: int = 0


class ExtraJoinToken(Row, frozen=True):
    """A join token with a name and limits. expires_at_ns, uses_left: 0 is without limit."""

    name: str = ""
    token: str = ""
    role: NodeRole = NodeRole.WORKER
    expires_at_ns: int = 0
    uses_left: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


class JoinTokens(Row, frozen=True):
    """The secrets that let a node in."""

    worker: str = ""
    manager: str = ""
    extra: tuple[ExtraJoinToken, ...] = ()


class RootRotation(Row, frozen=True):
    """A root certificate that is about to replace the current one. message: what holds it up."""

    ca_certificate: bytes = b""
    ca_key: bytes = b""
    cross_signed_certificate: bytes = b""
    message: str = ""


class RootCa(Row, frozen=True):
    """The cluster's root of trust. The key never leaves the managers."""

    certificate: bytes = b""
    key: bytes = b""
    certificate_digest: str = ""
    join_tokens: JoinTokens = JoinTokens()
    rotation: RootRotation | None = None
    last_forced_rotation: int = 0


class EncryptionKey(Row, frozen=True):
    """A symmetric key and what it is for."""

    subsystem: str = ""
    algorithm: int = 0
    key: bytes = b""
    lamport_time: int = 0


class BlacklistedCertificate(Row, frozen=True):
    """A certificate that must not be accepted any more."""

    expires_at_ns: int = 0


class IpamConfig(Row, frozen=True):
    """One subnet of a network."""

    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    reserved: Mapping[str, str] = field(default_factory=dict)


class IpamOptions(Row, frozen=True):
    """Address management of a network."""

    driver: Driver | None = None
    configs: tuple[IpamConfig, ...] = ()


class ServiceDependency(Row, frozen=True):
    """Another service, by name, that has to be there first."""

    service: str = ""
    condition: DependencyCondition = DependencyCondition.STARTED


class StackFile(Row, frozen=True):
    """Which object holds a content of a stack's revision."""

    name: str = ""
    id: str = ""
