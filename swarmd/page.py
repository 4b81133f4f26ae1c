"""The metrics page of a node: swarmd's own families, then those of the other processes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from swarmd.host import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ProcessSample(msgspec.Struct, frozen=True):
    """A process that should run. usage: None while it does not."""

    name: str
    up: bool
    restarts: int
    usage: Usage | None


class NodeSample(msgspec.Struct, frozen=True):
    """The node at the moment of a scrape; ids are empty outside a cluster.

    certificate_end_s: Unix time, None outside a cluster.
    """

    version: str
    cluster_id: str
    node_id: str
    is_manager: bool
    processes: tuple[ProcessSample, ...]
    certificate_end_s: int | None = None
    is_locked: bool = False


def render(sample: NodeSample, pages: Iterable[bytes]) -> bytes:
    """The page in Prometheus text format. pages: those of the processes that answered."""
    own = generate_latest(_Fixed(families(sample)))
    return b"".join(
        page if page.endswith(b"\n") else page + b"\n" for page in (own, *pages) if page
    )


def families(sample: NodeSample) -> list[Metric]:
    """The metrics swarmd itself answers for."""
    info = GaugeMetricFamily(
        "swarm_node_info",
        "The cluster and the node; 1 while the node is in a cluster.",
        labels=("swarm_id", "node_id"),
    )
    if sample.node_id:
        info.add_metric((sample.cluster_id, sample.node_id), 1)
    manager = GaugeMetricFamily(
        "swarm_node_manager", "Whether the node is a manager.", value=int(sample.is_manager)
    )
    build = GaugeMetricFamily("shoal_build_info", "The version of Shoal.", labels=("version",))
    build.add_metric((sample.version,), 1)
    expiry = GaugeMetricFamily(
        "shoal_node_certificate_expiry_seconds", "Unix time at which the node's certificate ends."
    )
    if sample.certificate_end_s is not None:
        expiry.add_metric((), sample.certificate_end_s)
    locked = GaugeMetricFamily(
        "shoal_node_locked", "Whether the manager waits for its unlock key.", value=sample.is_locked
    )
    return [info, manager, locked, build, expiry, *_process_families(sample.processes)]


def _process_families(processes: tuple[ProcessSample, ...]) -> Iterator[Metric]:
    used = {sample.name: sample.usage for sample in processes if sample.usage is not None}
    yield _filled(
        GaugeMetricFamily(
            "shoal_process_up", "Whether a process of the node answers.", labels=("process",)
        ),
        {sample.name: int(sample.up) for sample in processes},
    )
    yield _filled(
        CounterMetricFamily(
            "shoal_process_restarts",
            "Restarts of a process by swarmd after it ended by itself.",
            labels=("process",),
        ),
        {sample.name: sample.restarts for sample in processes},
    )
    yield _filled(
        GaugeMetricFamily(
            "shoal_process_resident_memory_bytes",
            "Resident memory of a process.",
            labels=("process",),
        ),
        {name: usage.resident_bytes for name, usage in used.items()},
    )
    yield _filled(
        CounterMetricFamily(
            "shoal_process_cpu_seconds", "User and system time of a process.", labels=("process",)
        ),
        {name: usage.cpu_s for name, usage in used.items()},
    )
    yield _filled(
        GaugeMetricFamily(
            "shoal_process_open_fds", "Open file descriptors of a process.", labels=("process",)
        ),
        {name: usage.open_fds for name, usage in used.items()},
    )


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]
) -> GaugeMetricFamily | CounterMetricFamily:
    for name, value in values.items():
        family.add_metric((name,), value)
    return family


class _Fixed(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    @override
    def collect(self) -> Iterable[Metric]:
        return self._metrics
