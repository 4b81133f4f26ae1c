"""States, roles and choices; the numbers are those of the wire."""

from __future__ import annotations

from enum import IntEnum


class TaskState(IntEnum):
    """The ladder a task climbs; it never comes down.

    The orchestrator sets NEW, the allocator PENDING, the scheduler ASSIGNED, the agent everything
    up to REJECTED. REMOVE is a desired state only. ORPHANED: its node was down for too long.
    """

    NEW = 0
    PENDING = 64
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    SHUTDOWN = 640
    FAILED = 704
    REJECTED = 768
    REMOVE = 800
    ORPHANED = 832


class NodeRole(IntEnum):
    """What a node may do."""

    WORKER = 0
    MANAGER = 1


class NodeState(IntEnum):
    """What the dispatcher knows of a node."""

    UNKNOWN = 0
    DOWN = 1
    READY = 2
    DISCONNECTED = 3


class NodeAvailability(IntEnum):
    """ACTIVE takes tasks, PAUSE takes no new ones, DRAIN gives up those it has."""

    ACTIVE = 0
    PAUSE = 1
    DRAIN = 2


class NodeMembership(IntEnum):
    """Whether the node was let in."""

    ACCEPTED = 0
    PENDING = 1


class RestartCondition(IntEnum):
    """When a task that ended is replaced."""

    ANY = 0
    ON_FAILURE = 1
    NONE = 2


class DisconnectAction(IntEnum):
    """Whether a task whose node is lost is replaced at once."""

    REPLACE = 0
    WAIT = 1


class ReturnAction(IntEnum):
    """Which task stays when a lost node comes back after the replacement was made."""

    KEEP_REPLACEMENT = 0
    KEEP_ORIGINAL = 1


class FailureAction(IntEnum):
    """What a rolling update does when too many tasks fail."""

    PAUSE = 0
    CONTINUE = 1
    ROLLBACK = 2


class UpdateOrder(IntEnum):
    """Whether the old task of a slot stops before the new one starts."""

    STOP_FIRST = 0
    START_FIRST = 1


class UpdateState(IntEnum):
    """Where a rolling update stands."""

    UNKNOWN = 0
    UPDATING = 1
    PAUSED = 2
    COMPLETED = 3
    ROLLBACK_STARTED = 4
    ROLLBACK_PAUSED = 5
    ROLLBACK_COMPLETED = 6


class RevisionCause(IntEnum):
    """What made a revision. ROLLED_BACK: a user. FAILED_BACK: an update that failed."""

    CREATED = 0
    UPDATED = 1
    ROLLED_BACK = 2
    FAILED_BACK = 3


class EndpointMode(IntEnum):
    """How a service is found by name."""

    VIP = 0
    DNSRR = 1


class PortProtocol(IntEnum):
    """Transport protocol of a port."""

    TCP = 0
    UDP = 1
    SCTP = 2


class PublishMode(IntEnum):
    """INGRESS: every node answers. HOST: only the nodes that run a task."""

    INGRESS = 0
    HOST = 1


class PublishSource(IntEnum):
    """Whose address the tasks behind a port see: the client's, or the entry node's in the mesh."""

    CLIENT = 0
    NODE = 1


class PublishPreference(IntEnum):
    """LOCAL: a node sends new connections to tasks of its own while it has any that are ready."""

    ANY = 0
    LOCAL = 1


class PlacementStrategy(IntEnum):
    """Which of the nodes that fit is taken. DEFAULT: as the cluster says, and that says SPREAD.

    SPREAD: the one with fewest tasks of the service. BINPACK: the one that is fullest, so that
    whole nodes stay free.
    """

    DEFAULT = 0
    SPREAD = 1
    BINPACK = 2


class MountType(IntEnum):
    """Kind of a mount."""

    BIND = 0
    VOLUME = 1
    TMPFS = 2
    CLUSTER = 3
    IMAGE = 4


class MountPropagation(IntEnum):
    """Mount propagation, as in mount_namespaces(7)."""

    RPRIVATE = 0
    PRIVATE = 1
    RSHARED = 2
    SHARED = 3
    RSLAVE = 4
    SLAVE = 5


class MountRecursive(IntEnum):
    """How submounts of a bind are taken along."""

    ENABLED = 0
    DISABLED = 1
    WRITABLE = 2
    READONLY = 3


class DependencyCondition(IntEnum):
    """What a service waits for before its first tasks are made: of each that the other wants.

    STARTED: a task that was started. HEALTHY: one that runs, and is healthy where it has a health
    check. COMPLETED: work that ended with exit code 0.
    """

    STARTED = 0
    HEALTHY = 1
    COMPLETED = 2


class ActionKind(IntEnum):
    """What a store action does to its object."""

    UNSPECIFIED = 0
    CREATE = 1
    UPDATE = 2
    REMOVE = 3
