"""Cost of one endpoint change in the slot maps: own netlink against an `nft -f` subprocess.

Both do the same work in the same run, interleaved, in a network namespace of this process alone:
delete one element and add it with another address, in one transaction. Also printed: attaching and
detaching tasks, and a whole `set_ports` that takes one of six tasks out. Needs root.

    sudo .venv/bin/python -m bench.network_update [--ports 100] [--rounds 50]
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

import structlog

from worker.network.api import Endpoint, NetworkSettings, PublishedPort
from worker.network.netns import CLONE_NEWNET
from worker.network.nft import Element, NftSocket, endpoint_value, slot_key
from worker.network.node import NodeNetwork

TASKS = tuple(f"10.240.8.{n}" for n in range(2, 8))
FIRST_PORT = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ports", type=int, default=100, help="published ports (64 slots each)")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise SystemExit("needs root: run with sudo")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as run_dir:
        asyncio.run(measure(run_dir, ports=options.ports, rounds=options.rounds))


async def measure(run_dir: str, *, ports: int, rounds: int) -> None:
    network = await NodeNetwork.open(
        NetworkSettings(
            index=1, subnet="10.240.4.0/22", underlay_address="127.0.0.1", run_dir=run_dir
        )
    )
    try:
        started = time.perf_counter()
        await network.set_ports([published(n, TASKS) for n in range(ports)])
        print(f"load {ports} ports, {64 * ports} slots: {ms(started):.1f} ms")
        change_one_element(rounds)
        await change_one_service(network, ports, rounds)
        await tasks_come_and_go(network, rounds)
    finally:
        await network.close(remove=True)


def change_one_element(rounds: int) -> None:
    nft = NftSocket()
    key = slot_key(6, FIRST_PORT, 0)
    costs: dict[str, list[float]] = {"own netlink": [], "nft -f": []}
    for index in range(rounds):
        new = Endpoint(f"10.240.9.{index % 200}", 80)
        by_netlink(nft, key, new)  # the subprocess before it left the caches cold
        for _ in range(10):
            costs["own netlink"].append(timed(lambda new=new: by_netlink(nft, key, new)))
        costs["nft -f"].append(timed(lambda new=new: by_subprocess(new)))
    nft.close()
    for name, values in costs.items():
        report(f"one element, {name}", values)
    ratio = statistics.median(costs["nft -f"]) / statistics.median(costs["own netlink"])
    print(f"ratio of medians: {ratio:.0f}")


def by_netlink(nft: NftSocket, key: bytes, endpoint: Endpoint) -> None:
    nft.apply([Element("slots", key)], [Element("slots", key, endpoint_value(endpoint))])


def by_subprocess(endpoint: Endpoint) -> None:
    where = f"6 . {FIRST_PORT} . 0"
    text = (
        f"delete element inet shoal slots {{ {where} }}\n"
        f"add element inet shoal slots {{ {where} : {endpoint.address} . {endpoint.port} }}\n"
    )
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


async def change_one_service(network: NodeNetwork, ports: int, rounds: int) -> None:
    costs: list[float] = []
    for index in range(rounds):
        last = published(ports - 1, TASKS[index % 2 :])
        wanted = [*(published(n, TASKS) for n in range(ports - 1)), last]
        started = time.perf_counter()
        await network.set_ports(wanted)
        costs.append(ms(started))
    report(f"set_ports, one task more or less of one of {ports} ports", costs)


async def tasks_come_and_go(network: NodeNetwork, rounds: int) -> None:
    attach: list[float] = []
    detach: list[float] = []
    for index in range(rounds):
        started = time.perf_counter()
        await network.attach(f"{index:011d}")
        attach.append(ms(started))
    for index in range(rounds):
        started = time.perf_counter()
        await network.detach(f"{index:011d}")
        detach.append(ms(started))
    report("attach a task", attach)
    report("detach a task", detach)


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
    print(f"{name}: quartile {low:.3f}  median {middle:.3f}  p95 {p95:.3f} ms")


if __name__ == "__main__":
    main()
