"""Cost of overlay networks on one node: tasks that come and go, one endpoint that changes.

In a network namespace of this process alone; the other nodes are addresses that nobody answers.
Needs root.

    sudo .venv/bin/python -m bench.overlay_update [--tasks 200] [--endpoints 500] [--rounds 30]
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from bench import figures
from bench.figures import Figure
from worker.network.api import NetworkSettings
from worker.network.netns import CLONE_NEWNET
from worker.network.node import NodeNetwork
from worker.network.overlay.api import (
    OverlayEndpoint,
    OverlayLink,
    OverlayNetwork,
    OverlayService,
    OverlayState,
    TaskPlace,
)
from worker.network.overlay.service import OverlayNetworks

NETWORK = OverlayNetwork(network_id="n", name="net", vni=4096, subnets=("10.5.0.0/16",))
TASKS_PER_SERVICE = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=200, help="tasks of this node")
    parser.add_argument("--endpoints", type=int, default=500, help="tasks of other nodes")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise SystemExit("needs root: run with sudo")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as run_dir:
        found = asyncio.run(measure(run_dir, options.tasks, options.endpoints, options.rounds))
    figures.report(*found)


async def measure(run_dir: str, tasks: int, endpoints: int, rounds: int) -> list[Figure]:
    settings = NetworkSettings(
        index=1, subnet="10.240.4.0/22", underlay_address="127.0.0.1", run_dir=run_dir
    )
    network = await NodeNetwork.open(settings)
    overlays = await OverlayNetworks.open(settings)
    try:
        state = wish(endpoints)
        print(f"network of {endpoints} endpoints: {await timed(lambda: overlays.apply(state)):.1f}")
        bare = [await timed(lambda n=n: network.attach(f"b{n}")) for n in range(tasks)]
        for number in range(tasks):
            await network.detach(f"b{number}")
        whole = [await timed(lambda n=n: attach(network, overlays, n)) for n in range(tasks)]
        print(f"attach a task: {shown(bare)} without, {shown(whole)} with an overlay network")
        each_us = await change(overlays, state, rounds, tasks)
        gone = [await timed(lambda n=n: detach(network, overlays, n)) for n in range(tasks)]
        print(f"detach a task: {shown(gone)}")
    finally:
        await overlays.close(remove=True)
        await network.close(remove=True)
    return [
        Figure(f"made with an overlay network, {tasks} tasks", statistics.median(whole), "ms"),
        Figure(f"dropped with an overlay network, {tasks} tasks", statistics.median(gone), "ms"),
        Figure("an endpoint of a network changes, for each task of the node", each_us, "us"),
    ]


async def attach(network: NodeNetwork, overlays: OverlayNetworks, number: int) -> None:
    attachment = await network.attach(f"t{number}")
    address = f"10.5.{200 + number // 200}.{1 + number % 200}/16"
    link = OverlayLink(network_id="n", interface="eth1", addresses=(address,))
    await overlays.attach(
        TaskPlace(
            task_id=f"t{number}",
            netns_path=attachment.netns_path,
            uplink="eth0",
            links=(link,),
        )
    )


async def detach(network: NodeNetwork, overlays: OverlayNetworks, number: int) -> None:
    await overlays.detach(f"t{number}")
    await network.detach(f"t{number}")


async def change(overlays: OverlayNetworks, state: OverlayState, rounds: int, tasks: int) -> float:
    """One endpoint is not ready, then ready again: microseconds for each task of the node."""
    first, *rest = state.endpoints
    other = msgspec.structs.replace(first, ready=False)
    without = msgspec.structs.replace(state, endpoints=(other, *rest))
    spent = []
    for _ in range(rounds):
        spent.append(await timed(lambda: overlays.apply(without)))
        spent.append(await timed(lambda: overlays.apply(state)))
    same = [await timed(lambda: overlays.apply(state)) for _ in range(rounds)]
    each_us = (statistics.median(spent) - statistics.median(same)) / max(tasks, 1) * 1000
    print(f"an endpoint changes: {shown(spent)}; nothing changes: {shown(same)}")
    print(f"for each task of the node: {each_us:.0f} us")
    return each_us


def wish(endpoints: int) -> OverlayState:
    members = tuple(
        OverlayEndpoint(
            network_id="n",
            task_id=f"e{number}",
            service_id=f"s{number // TASKS_PER_SERVICE}",
            node_id="n2",
            addresses=(f"10.5.{1 + number // 200}.{1 + number % 200}",),
            names=(f"web.{number}",),
            ready=True,
        )
        for number in range(endpoints)
    )
    services = tuple(
        OverlayService(
            network_id="n",
            service_id=f"s{number}",
            name=f"service{number}",
            virtual_ips=(f"10.5.100.{1 + number % 250}",),
        )
        for number in range(min(endpoints // TASKS_PER_SERVICE, 250))
    )
    return OverlayState(
        networks=(NETWORK,), services=services, endpoints=members, nodes={"n2": "127.0.0.2"}
    )


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    await call()
    return (time.perf_counter() - started) * 1000


def shown(values: list[float]) -> str:
    """Median and 95th percentile."""
    return f"{statistics.median(values):.2f} ms ({sorted(values)[int(len(values) * 0.95)]:.2f})"


if __name__ == "__main__":
    main()
