"""Metrics of the calls that are passed on to the leader."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from shoal.telemetry.metrics import REGISTRY

CALLS_HELD = Gauge(
    "shoal_leader_calls_held", "Calls that wait for a manager to lead.", registry=REGISTRY
)
CALLS_REPEATED = Counter(
    "shoal_leader_calls_repeated_total",
    "Calls that were made again, since the leader they went to had not begun them.",
    registry=REGISTRY,
)
CALLS_UNKNOWN = Counter(
    "shoal_leader_calls_unknown_total",
    "Calls that ended without it being known whether they were carried out.",
    registry=REGISTRY,
)
