"""Swarm's defaults, applied where a field is read and never written into a spec."""

from __future__ import annotations

from shoal.model.enums import PlacementStrategy, TaskState
from shoal.model.objects import Cluster, Network, Service, Task
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import DisconnectPolicy, DrainPolicy, Placement, RestartPolicy, UpdateConfig

RESTART_DELAY_NS = 5_000_000_000
RESTART_BACKOFF_MAX_NS = 300_000_000_000
DISCONNECT_WAIT_NS = 600_000_000_000
DRAIN_DEADLINE_NS = 3_600_000_000_000
UPDATE_MONITOR_NS = 5_000_000_000
UPDATE_PROGRESS_DEADLINE_NS = 600_000_000_000
"""Swarm has none, and so updates that hang for ever."""
STOP_GRACE_PERIOD_NS = 10_000_000_000
DRAIN_TIMEOUT_NS = 2_000_000_000
LISTEN_TIMEOUT_NS = 5_000_000_000
STOP_SIGNAL = "SIGTERM"
TASK_HISTORY_RETENTION_LIMIT = 5
HEARTBEAT_PERIOD_NS = 250_000_000
"""Swarm waits 5 s: `docs/design/dispatcher.md` says why we do not."""
HEARTBEAT_PERIOD_MAX_NS = 1_000_000_000
HEARTBEATS_PER_SECOND = 400
"""Of all nodes together: more nodes beat more seldom, down to the longest period."""
NODE_CERTIFICATE_VALIDITY_NS = 90 * 24 * 3600 * 1_000_000_000
SNAPSHOT_INTERVAL = 10_000
ELECTION_TICKS = 10
"""Ticks of 100 ms that a manager waits for a leader's word, at least."""
HEARTBEAT_TICKS = 1
ENCRYPTED_OPTION = "encrypted"
"""A network's driver option."""
NETWORK_KEY_ROTATION_NS = 12 * 3600 * 1_000_000_000
DATA_PATH_PORT = 7789
INGRESS_POOL = "10.240.0.0/12"
INGRESS_SUBNET_MASK_LENGTH = 22
INGRESS_VNI = 5377
"""The mesh's VXLAN number on every node; no network gets it."""
ADDRESS_POOL = "10.0.0.0/8"
"""Where networks get their subnets from that ask for none."""
ADDRESS_POOL_MASK_LENGTH = 24
DYNAMIC_PORTS = range(30_000, 32_768)
UPDATE_WAITS = "; waiting: "
"""Stands between what an update's message says anyway and what the update waits for."""


def restart_policy(policy: RestartPolicy | None) -> RestartPolicy:
    """The policy with its delay filled in."""
    policy = policy or RestartPolicy()
    return policy if policy.delay_ns is not None else policy.replaced(delay_ns=RESTART_DELAY_NS)


def restart_delay_ns(policy: RestartPolicy | None) -> int:
    """Delay between the end of a task and the start of its replacement, nanoseconds."""
    delay = None if policy is None else policy.delay_ns
    return RESTART_DELAY_NS if delay is None else delay


def drain_deadline_ns(policy: DrainPolicy) -> int:
    """How long the tasks of a drained node may take to be replaced, nanoseconds."""
    return DRAIN_DEADLINE_NS if policy.deadline_ns is None else policy.deadline_ns


def restart_backoff_max_ns(policy: RestartPolicy) -> int:
    """Longest delay of a back-off, nanoseconds."""
    longest = policy.backoff_max_ns
    return RESTART_BACKOFF_MAX_NS if longest is None else longest


def update_config(config: UpdateConfig | None) -> UpdateConfig:
    """The configuration of a rolling update, with the defaults where nothing is said."""
    config = config or UpdateConfig(parallelism=1)
    if config.monitor_ns is None:
        config = config.replaced(monitor_ns=UPDATE_MONITOR_NS)
    if config.progress_deadline_ns is None:
        config = config.replaced(progress_deadline_ns=UPDATE_PROGRESS_DEADLINE_NS)
    return config


def stop_grace_period_ns(container: ContainerSpec) -> int:
    """Time between the stop signal and SIGKILL, nanoseconds."""
    period = container.stop_grace_period_ns
    return STOP_GRACE_PERIOD_NS if period is None else period


def drain_timeout_ns(service: Service | None) -> int:
    """How long a task waits to leave every load balancer before it is stopped all the same."""
    timeout = None if service is None else service.spec.drain_timeout_ns
    return DRAIN_TIMEOUT_NS if timeout is None else timeout


def listen_timeout_ns(spec: TaskSpec) -> int:
    """How long a started task may take until its program listens on the published ports."""
    timeout = spec.listen_timeout_ns
    return LISTEN_TIMEOUT_NS if timeout is None else timeout


def disconnect_wait_ns(policy: DisconnectPolicy) -> int:
    """How long a task with action `wait` waits for its node, nanoseconds."""
    return DISCONNECT_WAIT_NS if policy.wait_ns is None else policy.wait_ns


def task_history_retention_limit(cluster: Cluster | None) -> int:
    """Dead tasks kept per slot; negative: all."""
    limit = None if cluster is None else cluster.spec.orchestration.task_history_retention_limit
    return TASK_HISTORY_RETENTION_LIMIT if limit is None else limit


def packs(placement: Placement, cluster: Cluster | None) -> bool:
    """Whether tasks go to the fullest nodes that fit (BINPACK), not to the emptiest."""
    strategy = placement.strategy
    if strategy is PlacementStrategy.DEFAULT and cluster is not None:
        strategy = cluster.spec.orchestration.placement_strategy
    return strategy is PlacementStrategy.BINPACK


def rebalance_interval_ns(cluster: Cluster | None) -> int:
    """How often tasks may be moved to emptier nodes by themselves, nanoseconds; 0: never."""
    return 0 if cluster is None else cluster.spec.orchestration.rebalance_interval_ns or 0


def network_key_rotation_ns(cluster: Cluster | None) -> int:
    """How long nodes use one generation of keys on encrypted networks, nanoseconds."""
    wished = None if cluster is None else cluster.spec.network.key_rotation_ns
    return NETWORK_KEY_ROTATION_NS if wished is None else wished


def is_encrypted(network: Network | None) -> bool:
    """Whether packets of the network leave a node through WireGuard only."""
    driver = None if network is None else network.spec.driver
    return driver is not None and ENCRYPTED_OPTION in driver.options


def heartbeat_period_ns(cluster: Cluster | None, nodes: int = 0) -> int:
    """Time between two heartbeats of an agent, nanoseconds: as set, or by the number of nodes."""
    period = None if cluster is None else cluster.spec.dispatcher.heartbeat_period_ns
    if period is not None:
        return period
    fair_ns = nodes * 1_000_000_000 // HEARTBEATS_PER_SECOND
    return min(max(HEARTBEAT_PERIOD_NS, fair_ns), HEARTBEAT_PERIOD_MAX_NS)


def is_terminal(task: Task) -> bool:
    """Whether the task's container has ended for good (or never will be)."""
    return task.status.state > TaskState.RUNNING


def is_wanted(task: Task) -> bool:
    """Whether the cluster still wants the task to run, or to complete."""
    return task.desired_state <= TaskState.COMPLETE
