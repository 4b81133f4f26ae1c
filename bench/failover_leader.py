"""The leader is killed: seconds until the next write is accepted.

    sudo .venv/bin/python -m bench.failover_leader [--rounds 10]

Three managers. A client creates services one after the other through the two that will be left,
turning to the other one when a call fails. The clock starts before the leader's first process is
killed (its swarmd, manager and worker, with SIGKILL) and stops at the first acknowledgement of a
write that was begun after that. Every write that was ever acknowledged must be there in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time

from bench import figures
from bench.figures import Figure
from bench.lab import Lab, lab, require_root, service_spec
from shoal.errors import SwarmError
from shoal.model.objects import Node
from swarmctl.client import Client
from swarmctl.lab import nodes, record
from swarmctl.target import Choice, parse_host

PAUSE_S = 0.01
TIMEOUT_S = 60.0
BAR_S = 3.0
MANAGERS = 3


async def main(rounds: int) -> None:
    """Measure and report."""
    numbers = itertools.count()
    acknowledged: set[str] = set()
    async with lab(managers=MANAGERS) as ours:
        await all_reachable(ours)
        taken = [await once(ours, numbers, acknowledged) for _ in range(rounds)]
        async with client_of(ours, "m1") as client:
            kept = {entry.service.spec.annotations.name for entry in await client.services()}
    print(figures.spread("shoal", taken, "s"))
    print("  all, sorted: " + " ".join(f"{one:.2f}" for one in sorted(taken)))
    worst = sorted(taken)[min(len(taken) - 1, int(len(taken) * 0.99))]
    figures.report(
        Figure("leader killed to next write, p99", worst, "s", BAR_S, "at most"),
        Figure("leader killed to next write, median", statistics.median(taken), "s"),
        Figure("acknowledged writes lost", len(acknowledged - kept), "", 0, "at most"),
    )


async def once(ours: Lab, numbers: itertools.count[int], acknowledged: set[str]) -> float:
    """Seconds for one failure; all three are back when this returns."""
    leader = next(node for node in await all_reachable(ours) if is_leader(node))
    lost = leader.description.hostname
    left = [name for name in ("m1", "m2", "m3") if name != lost]
    killed_s = float("inf")
    killing: asyncio.Task[None] | None = None
    async with client_of(ours, left[0]) as one, client_of(ours, left[1]) as other:
        clients = [one, other]
        for attempt in itertools.count():
            if attempt == 5:
                killed_s = time.perf_counter()
                killing = asyncio.create_task(asyncio.to_thread(kill, ours, lost))
            name = f"w{next(numbers)}"
            begun_s = time.perf_counter()
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await clients[0].create_service(service_spec(name, 0))
            except SwarmError:
                clients.reverse()
                await asyncio.sleep(PAUSE_S)
                continue
            acknowledged.add(name)
            # One that was under way when the leader died does not count.
            if killing is not None and killing.done() and begun_s >= killed_s:
                break
    took = time.perf_counter() - killed_s
    print(f"  {lost} lost: {took:.2f} s", flush=True)
    if killing is not None:
        await killing
    await ours.start(lost)
    return took


def kill(ours: Lab, name: str) -> None:
    """SIGKILL for the daemons of a node."""
    with record.lock(ours.plan.name):
        nodes.kill(ours.plan, ours.node(name))


async def all_reachable(ours: Lab) -> list[Node]:
    """The managers, once all of them vote and one leads."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                async with client_of(ours, "m1") as client:
                    found = [one for one in await client.nodes() if one.manager_status is not None]
            except SwarmError:
                found = []
            up = [one for one in found if one.manager_status and one.manager_status.reachable]
            if len(up) == MANAGERS and sum(map(is_leader, up)) == 1:
                return up
            await asyncio.sleep(0.1)


def is_leader(node: Node) -> bool:
    """Whether the node leads."""
    return node.manager_status is not None and node.manager_status.leader


def client_of(ours: Lab, name: str) -> Client:
    """A client of one node's daemon."""
    socket = nodes.paths_of(ours.plan, ours.node(name)).socket
    return Client(parse_host(f"unix://{socket}", Choice()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    require_root()
    asyncio.run(main(options.rounds))
