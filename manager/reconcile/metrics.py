"""Metrics of the reconcile loop."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from shoal.telemetry.metrics import REGISTRY

PLAN_SECONDS = Histogram(
    "swarm_reconcile_plan_seconds",
    "Time to decide one round of changes.",
    buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1),
    registry=REGISTRY,
)
ROUNDS = Counter(
    "swarm_reconcile_rounds_total",
    "Rounds that had something to change.",
    registry=REGISTRY,
)
PREEMPTED = Counter(
    "swarm_tasks_preempted_total",
    "Tasks stopped to make room for tasks of services with a higher priority.",
    registry=REGISTRY,
)
