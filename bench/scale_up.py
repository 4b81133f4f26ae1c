"""Replicas per second from 0 to 100 on one node, with a published port: Shoal, Docker Swarm.

    sudo .venv/bin/python -m bench.scale_up [--replicas 100] [--rounds 3]

The service exists with 0 replicas; the clock runs from the update until the API says that all
run. Both are polled every 20 ms. Shoal runs in every round, Swarm in the first only: it takes
half a minute, and its rate hardly varies. Where the kernel has no IPVS, Swarm's ingress does less
than it should (its tasks run, its port does not answer), which flatters Swarm.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from bench import figures
from bench.docker import Docker, docker, why_not
from bench.figures import Figure
from bench.lab import Lab, cpu_s, lab, require_root

POLL_S = 0.02
TIMEOUT_S = 300.0
PORT = 18080
BAR = 30.0


async def ours_once(ours: Lab, name: str, replicas: int) -> float:
    """Replicas per second; prints what each process of ours has used."""
    service = await ours.create(name, replicas=0, port=PORT)
    processes = ours.processes("m1")
    before = {part: cpu_s(pid) for part, pid in processes.items()}
    began = time.perf_counter()
    await ours.scale(service, replicas)
    async with asyncio.timeout(TIMEOUT_S):
        while len(await ours.running(service)) < replicas:
            await asyncio.sleep(POLL_S)
    took = time.perf_counter() - began
    used = {part: cpu_s(pid) - before[part] for part, pid in processes.items()}
    parts = ", ".join(f"{part} {value:.2f}" for part, value in used.items())
    print(f"  shoal         {replicas} in {took:.2f} s = {replicas / took:.1f}/s (cpu s: {parts})")
    await ours.remove(service)
    return replicas / took


async def theirs_once(replicas: int) -> float:
    """Replicas per second."""
    async with docker() as theirs:
        return await asyncio.to_thread(_theirs_once, theirs, replicas)


def _theirs_once(theirs: Docker, replicas: int) -> float:
    service = theirs.create("many", replicas=0, port=PORT)
    began = time.perf_counter()
    theirs.scale(service, replicas)
    while theirs.running(service) < replicas:
        if time.perf_counter() - began > TIMEOUT_S:
            raise TimeoutError(f"Swarm runs {theirs.running(service)} of {replicas}")
        time.sleep(POLL_S)
    took = time.perf_counter() - began
    print(f"  docker swarm  {replicas} in {took:.2f} s = {replicas / took:.1f}/s")
    theirs.remove(service)
    return replicas / took


async def main(replicas: int, rounds: int) -> None:
    """Measure both, report."""
    reason = why_not()
    async with lab() as ours:
        first = [await ours_once(ours, "many-0", replicas)]
    theirs = await theirs_once(replicas) if not reason else 0.0
    async with lab() as ours:
        rest = [await ours_once(ours, f"many-{n}", replicas) for n in range(1, rounds)]
    rate = statistics.median(first + rest)
    if reason:
        print(f"  docker swarm skipped: {reason}")
    else:
        figures.report(Figure("scale 0 to 100", rate / theirs, "x Swarm's rate", BAR, "at least"))
    figures.report(Figure("scale 0 to 100, rate", rate, "replicas/s"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    require_root()
    asyncio.run(main(options.replicas, options.rounds))
