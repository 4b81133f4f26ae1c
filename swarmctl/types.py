"""What the client returns besides the model's rows. Frozen."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from typing_extensions import override

from shoal.docker.objects import ServiceCounts
from shoal.model.enums import NodeMembership, NodeRole, TaskState
from shoal.model.objects import Service
from shoal.model.types import ExternalCa


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a daemon says of itself; field meanings as in `InfoResponse`."""

    version: str
    hostname: str
    state: str
    error: str
    node_id: str
    cluster_id: str
    role: NodeRole
    advertise_address: str
    managers: tuple[str, ...]
    state_dir: str
    metrics_address: str
    kernel: str
    os: str
    architecture: str
    nano_cpus: int
    memory_bytes: int
    processes: Mapping[str, int]
    docker_socket: str
    cgroup_version: str
    not_ready: Mapping[str, str]


class InitOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Wishes for a new cluster; empty or None leaves the choice to the daemon."""

    advertise_address: str = ""
    listen_address: str = ""
    availability: int = 0
    data_path_address: str = ""
    data_path_port: int = 0
    task_history_retention_limit: int | None = None
    dispatcher_heartbeat_period_ns: int | None = None
    node_certificate_validity_ns: int | None = None
    snapshot_interval: int | None = None
    ingress_pool: str = ""
    default_address_pools: tuple[str, ...] = ()
    default_address_pool_mask_length: int = 0
    autolock: bool = False
    external_cas: tuple[ExternalCa, ...] = ()


class InitResult(msgspec.Struct, frozen=True, kw_only=True):
    """A new cluster."""

    node_id: str
    cluster_id: str
    worker_token: str
    manager_token: str
    advertise_address: str
    unlock_key: str = ""


class JoinOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where to join, and as what."""

    remote_addresses: tuple[str, ...]
    token: str
    advertise_address: str = ""
    listen_address: str = ""
    availability: int = 0
    data_path_address: str = ""


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """Filters of a list call; of one kind OR-ed, kinds AND-ed."""

    ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    node_labels: tuple[str, ...] = ()
    roles: tuple[NodeRole, ...] = ()
    memberships: tuple[NodeMembership, ...] = ()
    modes: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    desired_states: tuple[TaskState, ...] = ()
    up_to_date: bool = False
    drivers: tuple[str, ...] = ()


class ServiceEntry(msgspec.Struct, frozen=True):
    """A service and its counts."""

    service: Service
    counts: ServiceCounts


class Written(msgspec.Struct, frozen=True):
    """A service as it was written, with what the manager has to say about it."""

    service: Service
    warnings: tuple[str, ...]


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an image says of its containers."""

    env: tuple[str, ...]
    command: tuple[str, ...]
    entrypoint: tuple[str, ...]
    user: str
    working_dir: str
    stop_signal: str
    exposed_ports: tuple[str, ...]
    labels: Mapping[str, str]


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image in a node's store."""

    id: str
    names: tuple[str, ...]
    digest: str
    created_at_ns: int
    size_bytes: int
    architecture: str
    os: str
    config: ImageConfig


class RemovedImage(msgspec.Struct, frozen=True):
    """What the removal of an image took away."""

    untagged: tuple[str, ...]
    deleted: tuple[str, ...]


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a task's output, usually a line with its end."""

    service_id: str
    node_id: str
    task_id: str
    timestamp_ns: int
    is_stderr: bool
    data: bytes
    details: str = ""


class LogBatch(msgspec.Struct, frozen=True):
    """Some lines; or, in `incomplete`, which node's lines are missing and why."""

    lines: tuple[LogLine, ...]
    incomplete: str


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines to send. Times are nanoseconds since 1970, 0 for no bound; tail None: all."""

    services: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    follow: bool = False
    tail: int | None = None
    since_ns: int = 0
    details: bool = False


class BackupPart(msgspec.Struct, frozen=True):
    """The next bytes of a backup, and how far it is: objects of total. version: of the state."""

    chunk: bytes
    objects: int
    total: int
    cluster_id: str
    version: int


class RestoreOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How this node is reached when a cluster is restored on it; empty: the daemon chooses.

    ca_key: of the cluster's root, PEM, where the backup does not hold it. Not shown by repr.
    """

    advertise_address: str = ""
    listen_address: str = ""
    availability: int = 0
    data_path_address: str = ""
    ca_key: bytes = b""

    @override
    def __repr__(self) -> str:
        return "RestoreOptions(...)"


class RestoredCluster(msgspec.Struct, frozen=True, kw_only=True):
    """What was restored; field meanings as in `RestoreResponse`."""

    node_id: str
    cluster_id: str
    advertise_address: str
    objects: int
    created_at_ns: int
    known_nodes: int
    autolock: bool
