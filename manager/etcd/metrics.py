"""Metrics of the etcd backend."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from shoal.telemetry.metrics import REGISTRY

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

TRANSACTION_LATENCY = Histogram(
    "swarm_etcd_transaction_latency_seconds",
    "Time from proposing a transaction to its being applied.",
    buckets=_BUCKETS,
    registry=REGISTRY,
)
CONTENTIONS = Counter(
    "swarm_etcd_contentions",
    "Transactions that etcd sent back because something else came first.",
    registry=REGISTRY,
)
RESYNCS = Counter(
    "swarm_etcd_resyncs",
    "Times that everything was read anew because the watch could not go on.",
    registry=REGISTRY,
)
