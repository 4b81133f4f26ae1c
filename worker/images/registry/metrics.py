"""Metrics of registries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter

from shoal.telemetry.metrics import REGISTRY

EXCHANGES = Counter(
    "shoal_image_transfers",
    "Images pulled and pushed. outcome: done; failed, at whose fault ever; given_up by the caller.",
    labelnames=("direction", "outcome"),
    registry=REGISTRY,
)
RECEIVED = Counter(
    "shoal_image_received_bytes",
    "Bytes of layers that came from registries, before they were unpacked.",
    registry=REGISTRY,
)


@contextmanager
def counted(direction: str) -> Iterator[None]:
    """Count a pull or a push by how it ends."""
    outcome = "given_up"
    try:
        yield
        outcome = "done"
    except Exception:
        outcome = "failed"
        raise
    finally:
        EXCHANGES.labels(direction, outcome).inc()
