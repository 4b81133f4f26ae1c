"""Metrics of the external certificate authorities."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from shoal.telemetry.metrics import REGISTRY

EXTERNAL_REQUESTS = Counter(
    "shoal_external_ca_requests",
    "Signing requests to external certificate authorities. failed: no answer in time, or an error;"
    " refused: an answer without a fit certificate.",
    labelnames=("outcome",),
    registry=REGISTRY,
)
EXTERNAL_LATENCY = Histogram(
    "shoal_external_ca_latency_seconds",
    "Time that external certificate authorities took for an answer.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
    registry=REGISTRY,
)
