"""What changes of the mesh cost one node: endpoints, services, tasks that come and go. Needs root.

    sudo .venv/bin/python -m bench.network_update [--tasks 200] [--rounds 50]

One endpoint is changed (an element deleted and added with another address, in one transaction) in
maps of 100, 1,000 and 10,000 elements, over own netlink and by an `nft -f` process, interleaved in
the same run; then a whole `set_ports` that takes one of six tasks out; then a node's tasks get
their networks and lose them. Everything in a network namespace of this process alone.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing

import structlog

from bench import figures
from bench.figures import Figure
from worker.network.api import Endpoint, NetworkSettings, PublishedPort
from worker.network.netns import CLONE_NEWNET
from worker.network.nft import Element, NftSocket, endpoint_value, slot_key
from worker.network.node import NodeNetwork

TASKS = tuple(f"10.240.8.{n}" for n in range(2, 8))
FIRST_PORT = 20_000
SLOTS = 64
ELEMENTS = (100, 1_000, 10_000)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=200, help="tasks that come and go")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise SystemExit("needs root: run with sudo")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as run_dir:
        found = asyncio.run(measure(run_dir, tasks=options.tasks, rounds=options.rounds))
    figures.report(*found)


async def measure(run_dir: str, *, tasks: int, rounds: int) -> list[Figure]:
    """Everything, each on a network that was just opened."""
    found: list[Figure] = []
    for elements in ELEMENTS:
        async with a_network(run_dir) as network:
            found += await changes(network, elements, rounds)
    first, last = (figure.value for figure in (found[0], found[-3]))
    found.append(Figure("one endpoint: 10,000 elements against 100", last / first, "x"))
    async with a_network(run_dir) as network:
        found += await tasks_come_and_go(network, tasks)
    return found


@asynccontextmanager
async def a_network(run_dir: str) -> AsyncIterator[NodeNetwork]:
    """A node's network for the length of the context."""
    network = await NodeNetwork.open(
        NetworkSettings(
            index=1, subnet="10.240.4.0/22", underlay_address="127.0.0.1", run_dir=run_dir
        )
    )
    try:
        yield network
    finally:
        await network.close(remove=True)


async def changes(network: NodeNetwork, elements: int, rounds: int) -> list[Figure]:
    """What one change costs while the map has about so many elements: 64 for each port."""
    ports = max(1, round(elements / SLOTS))
    await network.set_ports([published(n, TASKS) for n in range(ports)])
    own, by_nft = change_one_element(rounds)
    service = await change_one_service(network, ports, rounds)
    print(f"\n{ports * SLOTS:,} elements, {ports:,} ports")
    report("one endpoint, own netlink", own)
    report("one endpoint, nft -f", by_nft)
    report("set_ports, one task more or less", service)
    ratio = statistics.median(by_nft) / statistics.median(own)
    return [
        Figure(f"one endpoint of {elements:,}, netlink", statistics.median(own), "ms"),
        Figure(f"one endpoint of {elements:,}, nft -f against netlink", ratio, "x"),
        Figure(f"one service's task of {elements:,}", statistics.median(service), "ms"),
    ]


def change_one_element(rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds over netlink, and by a process."""
    key = slot_key(6, FIRST_PORT, 0)
    own: list[float] = []
    by_nft: list[float] = []
    with closing(NftSocket()) as nft:
        for index in range(rounds):
            new = Endpoint(f"10.240.9.{index % 200}", 80)
            by_netlink(nft, key, new)  # the subprocess before it left the caches cold
            own += (timed(lambda new=new: by_netlink(nft, key, new)) for _ in range(10))
            by_nft.append(timed(lambda new=new: by_subprocess(new)))
    return own, by_nft


def by_netlink(nft: NftSocket, key: bytes, endpoint: Endpoint) -> None:
    nft.apply([Element("slots", key)], [Element("slots", key, endpoint_value(endpoint))])


def by_subprocess(endpoint: Endpoint) -> None:
    where = f"6 . {FIRST_PORT} . 0"
    text = (
        f"delete element inet shoal slots {{ {where} }}\n"
        f"add element inet shoal slots {{ {where} : {endpoint.address} . {endpoint.port} }}\n"
    )
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


async def change_one_service(network: NodeNetwork, ports: int, rounds: int) -> list[float]:
    """Milliseconds of a `set_ports` that changes one service."""
    costs: list[float] = []
    for index in range(rounds):
        last = published(ports - 1, TASKS[index % 2 :])
        wanted = [*(published(n, TASKS) for n in range(ports - 1)), last]
        started = time.perf_counter()
        await network.set_ports(wanted)
        costs.append(ms(started))
    return costs


async def tasks_come_and_go(network: NodeNetwork, tasks: int) -> list[Figure]:
    """Namespace, link, addresses and routes of so many tasks, one after another."""
    attach: list[float] = []
    detach: list[float] = []
    for index in range(tasks):
        started = time.perf_counter()
        await network.attach(f"{index:011d}")
        attach.append(ms(started))
    for index in range(tasks):
        started = time.perf_counter()
        await network.detach(f"{index:011d}")
        detach.append(ms(started))
    print(f"\n{tasks} tasks")
    report("a task's network is made", attach)
    report("a task's network is dropped", detach)
    part = max(1, tasks // 10)
    growth = statistics.median(attach[-part:]) / statistics.median(attach[:part])
    return [
        Figure(f"a task's network made, {tasks} tasks", statistics.median(attach), "ms"),
        Figure(f"a task's network dropped, {tasks} tasks", statistics.median(detach), "ms"),
        Figure("the last tenth made against the first", growth, "x"),
    ]


def published(number: int, tasks: tuple[str, ...]) -> PublishedPort:
    return PublishedPort(
        protocol="tcp", published_port=FIRST_PORT + number, target_port=80, endpoints=tasks
    )


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return ms(started)


def ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000


def report(name: str, values: list[float]) -> None:
    low, middle, _high = statistics.quantiles(values, n=4)
    p95 = statistics.quantiles(values, n=20)[-1]
    print(f"  {name:34} quartile {low:.3f}  median {middle:.3f}  p95 {p95:.3f} ms")


if __name__ == "__main__":
    main()
