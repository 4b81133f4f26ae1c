"""One manager, hundreds of agents, tens of thousands of tasks: time, processor, memory, stalls.

    sudo .venv/bin/python -m bench.scale [--sizes 100x1000,1000x10000,1000x30000]

The manager is the product's own process: log with fdatasync, store, orchestrators, scheduler,
dispatcher. The agents are simulated (`bench.scale_agents`) and live in this process; all that is
between the two is real gRPC over mutual TLS on loopback, one connection per agent. Time runs from
the call that creates the services (ten, alike) until the report of the last task's RUNNING is
committed. On few processors the agents take their share of them: both sides' use is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from bench import figures
from bench.figures import Figure
from bench.founding import found
from bench.lab import DIRECTORY_VARIABLE, cpu_s, service_spec
from bench.raft_cluster import free_ports
from bench.scale_agents import Fleet
from shoal.model.enums import NodeAvailability
from shoal.settings.paths import NodePaths
from swarmctl.client import Client
from swarmctl.target import Choice, parse_host
from swarmctl.types import Filters
from swarmd.core import InitWish

SERVICES = 10
TIMEOUT_S = 600.0
IDLE_S = 10.0
LISTS = 9
BARS = {(100, 1_000): 2.5}
STALL_BAR_MS = 50.0
MEMORY_BAR_MB = 1_000.0
SIZES = "100x1000,1000x10000,1000x30000"


class Manager(msgspec.Struct, frozen=True):
    """The process that is measured, a client of it, and its agents."""

    pid: int
    stalls: Path
    client: Client
    fleet: Fleet

    def stall_ms(self, since_s: float) -> float:
        """The longest time that its event loop was late since then."""
        lines = (line.split() for line in self.stalls.read_text().splitlines())
        return max((float(late) * 1000 for at, late in lines if float(at) >= since_s), default=0.0)

    def memory_mb(self) -> float:
        """Resident memory."""
        words = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(words[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Stage:
    """Time, processor time of both sides and stalls between two moments."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._began = (time.monotonic(), cpu_s(manager.pid), time.process_time())

    def end(self, what: str) -> tuple[float, float, float]:
        """Print them. Result: seconds, the manager's processor seconds, its longest stall in ms."""
        began_s, manager_s, agents_s = self._began
        took_s = time.monotonic() - began_s
        used_s = cpu_s(self._manager.pid) - manager_s
        stall_ms = self._manager.stall_ms(began_s)
        print(
            f"  {what:36} {took_s:7.2f} s  manager {used_s:6.2f} s  agents "
            f"{time.process_time() - agents_s:6.2f} s  stall {stall_ms:5.0f} ms",
            flush=True,
        )
        return took_s, used_s, stall_ms


async def main(sizes: list[tuple[int, int]]) -> None:
    """Each number of agents on a manager of its own, the sizes growing on it."""
    for agents in dict.fromkeys(agents for agents, _ in sizes):
        async with a_manager() as manager:
            stage = Stage(manager)
            await manager.fleet.join(agents)
            stage.end(f"{agents:,} agents join")
            await rest(manager, f"{agents:,} agents idle")
            for number, tasks in enumerate(tasks for one, tasks in sizes if one == agents):
                figures.report(*await measure(manager, agents, tasks, number))


async def measure(manager: Manager, agents: int, tasks: int, number: int) -> list[Figure]:
    """Create the tasks, list them, let them idle, remove them."""
    size = f"{tasks:,} tasks on {agents:,} agents"
    stage = Stage(manager)
    created = await asyncio.gather(
        *(
            manager.client.create_service(service_spec(f"s{number}-{n}", tasks // SERVICES))
            for n in range(SERVICES)
        )
    )
    async with asyncio.timeout(TIMEOUT_S):
        await manager.fleet.until_running(tasks)
    took_s, used_s, stall_ms = stage.end(f"{size} RUNNING")
    await rest(manager, "idle")
    memory_mb = manager.memory_mb()
    stage = Stage(manager)
    listed = [await listing(manager) for _ in range(LISTS)]
    one = [await listing(manager, created[0].service.id) for _ in range(LISTS)]
    stage.end(f"{LISTS} x all and one service's listed")
    stage = Stage(manager)
    for made in created:
        await manager.client.remove_service(made.service.id)
    async with asyncio.timeout(TIMEOUT_S):
        await manager.fleet.until_running(0)
    stage.end(f"{tasks:,} tasks removed")
    bar = BARS.get((agents, tasks), 0.0)
    is_small, is_most = bool(bar), tasks >= 30_000
    return [
        Figure(f"{size}: all RUNNING", took_s, "s", bar, "at most" if is_small else ""),
        Figure(
            f"{size}: longest stall of the loop",
            stall_ms,
            "ms",
            STALL_BAR_MS if is_small else 0.0,
            "at most" if is_small else "",
        ),
        Figure(f"{size}: manager's processor time a task", used_s * 1000 / tasks, "ms"),
        Figure(
            f"{size}: manager's memory",
            memory_mb,
            "MB",
            MEMORY_BAR_MB if is_most else 0.0,
            "at most" if is_most else "",
        ),
        Figure(f"{size}: all tasks listed", statistics.median(listed) * 1000, "ms"),
        Figure(f"{size}: one service's tasks listed", statistics.median(one) * 1000, "ms"),
        Figure(f"{size}: sessions lost", manager.fleet.lost_sessions, ""),
    ]


async def rest(manager: Manager, what: str) -> None:
    """Nothing is asked for a while."""
    stage = Stage(manager)
    await asyncio.sleep(IDLE_S)
    stage.end(what)


async def listing(manager: Manager, service: str = "") -> float:
    """Seconds that listing the tasks of a service, or all, takes, page by page."""
    began = time.perf_counter()
    await manager.client.tasks(Filters(services=(service,)) if service else Filters())
    return time.perf_counter() - began


@asynccontextmanager
async def a_manager() -> AsyncIterator[Manager]:
    """A manager process with no agents yet; nothing is left of it afterwards."""
    scratch = Path(
        tempfile.mkdtemp(prefix="shoal-bench-", dir=os.environ.get(DIRECTORY_VARIABLE, "/var/tmp"))
    )
    paths = NodePaths(state=scratch / "state", run=scratch / "run")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    founded = found(paths, address, InitWish(availability=NodeAvailability.DRAIN))
    stalls = scratch / "stalls"
    words = [
        sys.executable, "-P", "-m", "bench.scale_manager", "--state-dir", str(paths.state),
        "--run-dir", str(paths.run), "--stalls", str(stalls), "--parent-pid", str(os.getpid()),
    ]  # fmt: skip
    root = str(Path(__file__).resolve().parent.parent)
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": root})
    fleet = Fleet(address, founded.secrets.root_certificate_pem, founded.secrets.tokens.worker)
    try:
        async with Client(parse_host(f"unix://{paths.manager_socket}", Choice())) as client:
            await until_serving(client, process)
            yield Manager(process.pid, stalls, client, fleet)
    finally:
        await fleet.close()
        process.terminate()
        process.wait()
        shutil.rmtree(scratch)


async def until_serving(client: Client, process: subprocess.Popen[bytes]) -> None:
    """Wait until the manager leads."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                await client.cluster()
                return
            except Exception:
                if process.poll() is not None:
                    raise
                await asyncio.sleep(0.05)


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """AGENTSxTASKS, separated by commas."""
    sizes = []
    for word in text.split(","):
        agents, _, tasks = word.partition("x")
        sizes.append((int(agents), int(tasks)))
    return sizes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sizes", type=parse_sizes, default=SIZES, metavar="AGENTSxTASKS,...")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made is removed
    asyncio.run(main(parser.parse_args().sizes))
