"""What containers use, as `docker stats` shows it.

Each sample carries the one before it, as clients show the difference. Of a container that does not
run there is an empty sample, again and again while it is followed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from engine.containers.container import Container
from engine.containers.inspect import NO_TIME, time_text
from engine.containers.service import NodeRuntime
from shoal.errors import FailedPrecondition, NotFound
from worker.network.local.api import HOST
from worker.runtime.interactive import DetailedStats

PERIOD_S = 1.0
MACHINE_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
"""What a container without a limit may use."""
_RECEIVED = ("rx_bytes", "rx_packets", "rx_errors", "rx_dropped")
_SENT = ("tx_bytes", "tx_packets", "tx_errors", "tx_dropped")
_SENT_FROM = 8
_BLKIO = (
    "io_service_bytes_recursive", "io_serviced_recursive", "io_queue_recursive",
    "io_service_time_recursive", "io_wait_time_recursive", "io_merged_recursive",
    "io_time_recursive", "sectors_recursive",
)  # fmt: skip

Links = dict[str, dict[str, int]]


class StatsReader:
    """Samples containers."""

    def __init__(self, runtime: NodeRuntime) -> None:
        self._runtime = runtime

    async def once(self, container: Container, *, primed: bool) -> dict[str, Any]:
        """One sample. primed: with the one before it, which takes PERIOD_S."""
        before = None
        if primed:
            before = await self._sample(container)
            if before is not None:
                await asyncio.sleep(PERIOD_S)
        return await self._worded(container, before, await self._sample(container))

    async def follow(self, container: Container) -> AsyncGenerator[dict[str, Any], None]:
        """A sample each PERIOD_S, until the container is removed."""
        before = None
        while not container.removed:
            now = await self._sample(container)
            yield await self._worded(container, before, now)
            before = now
            await asyncio.sleep(PERIOD_S)

    async def _worded(
        self, container: Container, before: DetailedStats | None, now: DetailedStats | None
    ) -> dict[str, Any]:
        if now is None:
            return empty(container)
        return worded(container, before, now, await asyncio.to_thread(read_links, container))

    async def _sample(self, container: Container) -> DetailedStats | None:
        if not container.has_process:
            return None
        try:
            return await self._runtime.detailed_stats(container.id)
        except (FailedPrecondition, NotFound):  # it has just ended
            return None


def read_links(container: Container) -> Links:
    """Counters of the container's own network devices, by name."""
    if container.record.host.network_mode == HOST or container.status is None:
        return {}
    try:
        text = Path(f"/proc/{container.status.pid}/net/dev").read_text(encoding="ascii")
    except OSError:
        return {}
    return parse_links(text)


def parse_links(text: str) -> Links:
    """A kernel's table of network devices, without the loopback."""
    links: Links = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        values = [int(word) for word in rest.split()]
        if name.strip() != "lo":
            received = dict(zip(_RECEIVED, values, strict=False))
            sent = dict(zip(_SENT, values[_SENT_FROM:], strict=False))
            links[name.strip()] = received | sent
    return links


def worded(
    container: Container, before: DetailedStats | None, now: DetailedStats, links: Links
) -> dict[str, Any]:
    """One sample in Docker's words."""
    words: dict[str, Any] = {
        "read": time_text(now.read_at_ns),
        "preread": time_text(before.read_at_ns) if before else NO_TIME,
        "pids_stats": {
            "current": now.pids,
            **({"limit": now.pids_limit} if now.pids_limit else {}),
        },
        "blkio_stats": {**{name: [] for name in _BLKIO}, _BLKIO[0]: _block_io(now)},
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(now),
        "precpu_stats": _cpu(before),
        "memory_stats": {
            "usage": now.memory_usage_bytes,
            "stats": now.memory_stat,
            "limit": now.memory_limit_bytes or MACHINE_BYTES,
        },
        "name": f"/{container.name}",
        "id": container.id,
    }
    return words | ({"networks": links} if links else {})


def empty(container: Container) -> dict[str, Any]:
    """The sample of a container that does not run."""
    return {
        "read": NO_TIME,
        "preread": NO_TIME,
        "pids_stats": {},
        "blkio_stats": dict.fromkeys(_BLKIO),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(None),
        "precpu_stats": _cpu(None),
        "memory_stats": {},
        "name": f"/{container.name}",
        "id": container.id,
    }


def _cpu(sample: DetailedStats | None) -> dict[str, Any]:
    if sample is None:
        return {
            "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
            "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
        }
    return {
        "cpu_usage": {
            "total_usage": sample.cpu_usage_ns,
            "usage_in_kernelmode": sample.cpu_kernel_ns,
            "usage_in_usermode": sample.cpu_user_ns,
        },
        "system_cpu_usage": sample.system_cpu_ns,
        "online_cpus": sample.online_cpus,
        "throttling_data": {
            "periods": sample.periods,
            "throttled_periods": sample.throttled_periods,
            "throttled_time": sample.throttled_ns,
        },
    }


def _block_io(sample: DetailedStats) -> list[dict[str, Any]]:
    return [
        {"major": major, "minor": minor, "op": operation, "value": value}
        for major, minor, operation, value in sample.block_io
    ]
