"""Metrics of the log, under Swarm's names."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from shoal.telemetry.metrics import REGISTRY

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

TRANSACTION_LATENCY = Histogram(
    "swarm_raft_transaction_latency_seconds",
    "Time from proposing a transaction to its being applied.",
    buckets=_BUCKETS,
    registry=REGISTRY,
)
SNAPSHOT_LATENCY = Histogram(
    "swarm_raft_snapshot_latency_seconds",
    "Time to write a snapshot of the store.",
    buckets=_BUCKETS,
    registry=REGISTRY,
)
TERM = Gauge("swarm_raft_term", "The newest term this manager knows.", registry=REGISTRY)
LEADER_CHANGES = Counter(
    "swarm_raft_leader_changes", "How often another manager came to lead.", registry=REGISTRY
)
APPLIED_INDEX = Gauge(
    "swarm_raft_applied_index", "The last log entry applied to the store.", registry=REGISTRY
)
PROPOSALS_PENDING = Gauge(
    "swarm_raft_proposals_pending", "Transactions that wait to be applied.", registry=REGISTRY
)
