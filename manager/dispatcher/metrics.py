"""Metrics of the dispatcher."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from shoal.telemetry.metrics import REGISTRY

DRAINS_OVERDUE = Counter(
    "shoal_dispatcher_drains_overdue",
    "Tasks that were stopped before every node had acknowledged to balance without them.",
    registry=REGISTRY,
)
ENDPOINT_VERSION = Gauge(
    "shoal_dispatcher_endpoint_version",
    "Newest version of who answers on ports and networks; 0 on managers that do not lead.",
    registry=REGISTRY,
)
OVERLAY_ROWS = Gauge(
    "shoal_dispatcher_overlay_rows",
    "Networks, services and endpoints (tasks, attached containers) that nodes are told of.",
    ["kind"],
    registry=REGISTRY,
)
