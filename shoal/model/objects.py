"""Objects: the rows of the store, each with an id and the version that wrote it."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import field

from shoal.errors import invariant
from shoal.model.enums import ActionKind, NodeRole, RevisionCause, TaskState
from shoal.model.row import Row
from shoal.model.specs import (
    ClusterSpec,
    ConfigSpec,
    ContainerSpec,
    NetworkSpec,
    NodeSpec,
    SecretSpec,
    ServiceSpec,
    StackSpec,
    TaskSpec,
)
from shoal.model.types import (
    Annotations,
    BlacklistedCertificate,
    Driver,
    EncryptionKey,
    Endpoint,
    GenericResource,
    IpamOptions,
    JobStatus,
    ManagerStatus,
    Meta,
    NetworkAttachment,
    NodeCertificate,
    NodeDescription,
    NodeIngress,
    NodeStatus,
    RootCa,
    StackFile,
    TaskStatus,
    UpdateStatus,
    Version,
)


class Node(Row, frozen=True):
    """A machine of the cluster."""

    id: str = ""
    meta: Meta = Meta()
    spec: NodeSpec = NodeSpec()
    description: NodeDescription = NodeDescription()
    status: NodeStatus = NodeStatus()
    manager_status: ManagerStatus | None = None
    role: NodeRole = NodeRole.WORKER
    attachments: tuple[NetworkAttachment, ...] = ()
    ingress: NodeIngress | None = None
    certificate: NodeCertificate | None = None
    role_message: str = ""
    drain_until_ns: int = 0

    @property
    def certified_role(self) -> NodeRole:
        """The role of its certificate: a manager keeps it until it has left the consensus group."""
        return max(self.role, self.spec.desired_role)


class Service(Row, frozen=True):
    """What the user wants, and what the cluster made of it."""

    id: str = ""
    meta: Meta = Meta()
    spec: ServiceSpec = ServiceSpec()
    spec_version: Version = Version()
    previous_spec: ServiceSpec | None = None
    previous_spec_version: Version | None = None
    endpoint: Endpoint | None = None
    update_status: UpdateStatus | None = None
    job_status: JobStatus | None = None
    pending_delete: bool = False
    rebalance_moves: int = 0
    revision: int = 0


class Revision(Row, frozen=True):
    """A spec that a service has or had; `of`: the revision that was gone back to."""

    id: str = ""
    meta: Meta = Meta()
    service_id: str = ""
    number: int = 0
    spec: ServiceSpec = ServiceSpec()
    cause: RevisionCause = RevisionCause.CREATED
    of: int = 0


class Task(Row, frozen=True):
    """One attempt to run one slot of a service on one node. Never moves, never restarts."""

    id: str = ""
    meta: Meta = Meta()
    spec: TaskSpec = TaskSpec()
    spec_version: Version = Version()
    service_id: str = ""
    slot: int = 0
    node_id: str = ""
    annotations: Annotations = Annotations()
    service_annotations: Annotations = Annotations()
    status: TaskStatus = TaskStatus()
    desired_state: TaskState = TaskState.NEW
    networks: tuple[NetworkAttachment, ...] = ()
    endpoint: Endpoint | None = None
    log_driver: Driver | None = None
    assigned_generic_resources: tuple[GenericResource, ...] = ()
    job_iteration: int | None = None
    start_after_ns: int = 0
    replaces_task_id: str = ""
    takes_over: bool = False
    stop_reason: str = ""
    restart_delay_ns: int = 0

    @property
    def container(self) -> ContainerSpec:
        """The container of the task; an empty one for tasks of another runtime."""
        return (
            self.spec.runtime if isinstance(self.spec.runtime, ContainerSpec) else ContainerSpec()
        )

    def with_status(self, status: TaskStatus) -> Task:
        """The task with another status. Never lower than before: the ladder only rises."""
        invariant(status.state >= self.status.state, "task state goes down", task=self.id)
        return self.replaced(status=status)

    def with_desired_state(self, desired: TaskState) -> Task:
        """The task with another desired state, which likewise only rises."""
        invariant(desired >= self.desired_state, "desired state goes down", task=self.id)
        return self.replaced(desired_state=desired)


class Network(Row, frozen=True):
    """A network of the cluster."""

    id: str = ""
    meta: Meta = Meta()
    spec: NetworkSpec = NetworkSpec()
    driver_state: Driver | None = None
    ipam: IpamOptions = IpamOptions()
    pending_delete: bool = False


class Cluster(Row, frozen=True):
    """The cluster itself; there is one."""

    id: str = ""
    meta: Meta = Meta()
    spec: ClusterSpec = ClusterSpec()
    root_ca: RootCa = RootCa()
    network_bootstrap_keys: tuple[EncryptionKey, ...] = ()
    encryption_key_lamport_clock: int = 0
    blacklisted_certificates: Mapping[str, BlacklistedCertificate] = field(default_factory=dict)
    unlock_keys: tuple[EncryptionKey, ...] = ()
    fips: bool = False
    default_address_pools: tuple[str, ...] = ()
    default_address_pool_mask_length: int = 0
    data_path_port: int = 0
    ingress_pool: str = ""
    ingress_subnet_mask_length: int = 0
    network_keys_since_ns: int = 0


class Secret(Row, frozen=True):
    """A secret."""

    id: str = ""
    meta: Meta = Meta()
    spec: SecretSpec = SecretSpec()
    internal: bool = False
    revision: int = 0


class Config(Row, frozen=True):
    """A config."""

    id: str = ""
    meta: Meta = Meta()
    spec: ConfigSpec = ConfigSpec()
    revision: int = 0


class Stack(Row, frozen=True):
    """One revision of a stack: the newest has its name, those before are NAME@REVISION."""

    id: str = ""
    meta: Meta = Meta()
    spec: StackSpec = StackSpec()
    revision: int = 0
    secrets: tuple[StackFile, ...] = ()
    configs: tuple[StackFile, ...] = ()
    rolled_back_to: int = 0


AnyObject = Node | Service | Task | Network | Cluster | Secret | Config | Stack | Revision


class StoreAction(Row, frozen=True):
    """One change of a transaction. REMOVE carries an object with the id alone."""

    object: AnyObject
    kind: ActionKind = ActionKind.UNSPECIFIED
    expected_version: int = 0


class StoreEntry(Row, frozen=True):
    """A log entry: the changes of one transaction, all or none."""

    actions: tuple[StoreAction, ...] = ()
    proposed_at_ns: int = 0
