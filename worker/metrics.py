"""Per-container metrics under cAdvisor's names, read when they are scraped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from shoal.errors import SwarmError
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from shoal.model.row import Row
from worker.agent.dataplane import DataPlane
from worker.agent.tasks import NodeTasks
from worker.runtime.api import ContainerStats

LABELS = [
    "id",
    "name",
    "image",
    "container_label_com_docker_swarm_service_name",
    "container_label_com_docker_swarm_task_name",
]
READS_MAX = 16
REFRESH_TIMEOUT_S = 5.0


class Sample(Row, frozen=True):
    """One container at one scrape. link_bytes: received and sent."""

    labels: tuple[str, ...]
    stats: ContainerStats
    link_bytes: tuple[int, int] | None


class ContainerCollector(Collector):
    """Shows what `refresh` has read last: the collector itself may run in any thread."""

    def __init__(self) -> None:
        self._samples: tuple[Sample, ...] = ()

    async def refresh(self, tasks: NodeTasks, data_plane: DataPlane) -> None:
        """Read every running container; one that ends in between is left out.

        What cannot be read within REFRESH_TIMEOUT_S (the runtime is restarting) is left out, too.
        """
        gate = asyncio.Semaphore(READS_MAX)
        samples: list[Sample] = []

        async def sample(task: Task) -> None:
            async with gate:
                try:
                    stats = await tasks.runtime.stats(task.id)
                except SwarmError:
                    return
                link_bytes = await data_plane.link_bytes(task.id)
                samples.append(Sample(_labels(task), stats, link_bytes))

        running = [task for task in tasks.tasks() if task.status.state is TaskState.RUNNING]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REFRESH_TIMEOUT_S):
                await asyncio.gather(*(sample(task) for task in running))
        self._samples = tuple(samples)

    def clear(self) -> None:
        """The node runs nothing any more."""
        self._samples = ()

    @override
    def collect(self) -> Iterator[Metric]:
        cpu = CounterMetricFamily(
            "container_cpu_usage_seconds_total", "CPU time consumed.", labels=[*LABELS, "cpu"]
        )
        memory = GaugeMetricFamily(
            "container_memory_usage_bytes", "Memory in use, without cache.", labels=LABELS
        )
        limit = GaugeMetricFamily(
            "container_spec_memory_limit_bytes", "Memory limit; 0 is none.", labels=LABELS
        )
        processes = GaugeMetricFamily("container_processes", "Processes.", labels=LABELS)
        received = CounterMetricFamily(
            "container_network_receive_bytes_total",
            "Bytes received.",
            labels=[*LABELS, "interface"],
        )
        sent = CounterMetricFamily(
            "container_network_transmit_bytes_total", "Bytes sent.", labels=[*LABELS, "interface"]
        )
        for sample in self._samples:
            cpu.add_metric([*sample.labels, "total"], sample.stats.cpu_usage_ns / 1e9)
            memory.add_metric(sample.labels, sample.stats.memory_usage_bytes)
            limit.add_metric(sample.labels, sample.stats.memory_limit_bytes)
            processes.add_metric(sample.labels, sample.stats.pids)
            if sample.link_bytes is not None:
                received.add_metric([*sample.labels, "eth0"], sample.link_bytes[0])
                sent.add_metric([*sample.labels, "eth0"], sample.link_bytes[1])
        yield from (cpu, memory, limit, processes, received, sent)


def _labels(task: Task) -> tuple[str, ...]:
    name = f"{task.service_annotations.name}.{task.slot or task.node_id}.{task.id}"
    return (
        f"/shoal/{task.id}",
        name,
        task.container.image,
        task.service_annotations.name,
        name,
    )
