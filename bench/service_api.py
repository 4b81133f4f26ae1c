"""Services created per second over the API, at 1, 16 and 64 clients, and what each costs.

    sudo .venv/bin/python -m bench.service_api [--seconds 4]

Each client has a channel of its own to the daemon's unix socket and creates services of 0 replicas
one after another: every answer is one durable entry of the log. The limit that one disk sets is
measured in the same run: records of the same order of size, each synced with fdatasync before the
next. More clients can pass it, since entries that wait share a sync. The clients run in this
process; what they and our daemons use of the processors is shown, because on few processors that
is the other limit.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

from bench import figures
from bench.figures import Figure
from bench.lab import Lab, cpu_s, lab, require_root, service_spec
from swarmctl.client import Client

CLIENTS = (1, 16, 64)
RECORD_BYTES = 1024
FILE_BYTES = 8 << 20


async def main(seconds: float) -> None:
    """Measure the disk and the API in turn, report."""
    async with lab() as ours:
        names = itertools.count()
        found: list[Figure] = []
        for count in CLIENTS:
            disk = await asyncio.to_thread(disk_rate, Path(ours.root), seconds / 4)
            rate = await api_rate(ours, count, seconds, names)
            print(f"  fdatasync {disk:,.0f}/s")
            found.append(Figure(f"services, {count} clients", rate, "/s"))
            found.append(Figure(f"services, {count} clients", rate / disk, "x fdatasync's rate"))
        figures.report(*found)


async def api_rate(ours: Lab, count: int, seconds: float, names: itertools.count[int]) -> float:
    """Services per second; prints each process's milliseconds of processor time per service."""
    processes = {**ours.processes("m1"), "clients": os.getpid()}
    made = 0

    async def create(client: Client, until_s: float) -> None:
        nonlocal made
        while time.perf_counter() < until_s:
            await client.create_service(service_spec(f"api-{next(names)}", 0))
            made += 1

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client(ours.client.target)) for _ in range(count)
        ]
        await asyncio.gather(*(client.info() for client in clients))  # connections are made
        before = {part: cpu_s(pid) for part, pid in processes.items()}
        began = time.perf_counter()
        await asyncio.gather(*(create(client, began + seconds) for client in clients))
        took = time.perf_counter() - began
    used = {part: (cpu_s(pid) - before[part]) * 1000 / made for part, pid in processes.items()}
    parts = ", ".join(f"{part} {value:.2f}" for part, value in used.items())
    print(f"  {count:>3} clients: {made / took:,.0f}/s (cpu ms each: {parts})")
    return made / took


def disk_rate(directory: Path, seconds: float) -> float:
    """Records per second, each written into a zero-filled file and synced."""
    data = os.urandom(RECORD_BYTES)
    with tempfile.TemporaryFile(dir=directory) as file:
        descriptor = file.fileno()
        os.write(descriptor, bytes(FILE_BYTES))
        os.fsync(descriptor)
        done = 0
        began = time.perf_counter()
        while (now := time.perf_counter()) < began + seconds:
            os.pwrite(descriptor, data, done * RECORD_BYTES % FILE_BYTES)
            os.fdatasync(descriptor)
            done += 1
    return done / (now - began)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    require_root()
    asyncio.run(main(options.seconds))
