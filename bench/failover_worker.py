"""A worker's power is cut: seconds until the task it ran runs on the other worker.

    sudo .venv/bin/python -m bench.failover_worker [--rounds 5]

One replica, two workers, the manager drained. The clock starts before the node's first process is
killed (daemons, containers, network, as `lab kill --hard`) and stops when the API says that a task
of the service runs on the other node. The node then comes back, and the roles change.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import msgspec

from bench import figures
from bench.figures import Figure
from bench.lab import Lab, lab, require_root
from shoal.model.enums import NodeAvailability
from shoal.model.objects import Service, Task

POLL_S = 0.01
TIMEOUT_S = 60.0
BAR_S = 6.0


async def main(rounds: int) -> None:
    """Measure and report."""
    async with lab(managers=1, workers=2) as ours:
        manager = await ours.client.node("m1")
        drained = msgspec.structs.replace(manager.spec, availability=NodeAvailability.DRAIN)
        await ours.client.update_node(manager, drained)
        service = await ours.create("failover", replicas=1)
        taken = [await once(ours, service) for _ in range(rounds)]
    print(figures.spread("shoal", taken, "s"))
    figures.report(
        Figure("worker killed to replaced, worst", max(taken), "s", BAR_S, "at most"),
        Figure("worker killed to replaced, median", statistics.median(taken), "s"),
    )


async def once(ours: Lab, service: Service) -> float:
    """Seconds for one failure; the node is back when this returns."""
    names = {node.id: node.description.hostname for node in await ours.client.nodes()}
    lost = await running_elsewhere(ours, service, "")
    began = time.perf_counter()
    killing = asyncio.create_task(asyncio.to_thread(ours.kill, names[lost.node_id]))
    await running_elsewhere(ours, service, lost.node_id)
    took = time.perf_counter() - began
    await killing
    print(f"  {names[lost.node_id]} lost: {took:.2f} s", flush=True)
    await ours.start(names[lost.node_id])
    return took


async def running_elsewhere(ours: Lab, service: Service, node_id: str) -> Task:
    """The service's task, once it runs on another node than this one."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            tasks = await ours.running(service)
            if tasks and all(task.node_id != node_id for task in tasks):
                return tasks[0]
            await asyncio.sleep(POLL_S)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    require_root()
    asyncio.run(main(options.rounds))
