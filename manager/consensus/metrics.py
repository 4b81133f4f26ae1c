"""Metrics of the log, under Swarm's names."""

from __future__ import annotations

from prometheus_client import Histogram

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
