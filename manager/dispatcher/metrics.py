"""Metrics of the dispatcher."""

from __future__ import annotations

from prometheus_client import Counter

from shoal.telemetry.metrics import REGISTRY

DRAINS_OVERDUE = Counter(
    "shoal_dispatcher_drains_overdue",
    "Tasks that were stopped before every node had acknowledged to balance without them.",
    registry=REGISTRY,
)
