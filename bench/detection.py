"""Failure detection: how soon a dead node is known, and whether a busy one is taken for dead.

    sudo .venv/bin/python -m bench.detection [--kills 10] [--freezes 3] [--restarts 3] [--load 60]

One manager, drained, and four workers that run one task each.
 - kills: a worker's power is cut (daemons, containers, network); until the API says it is down.
 - freezes: a worker's daemons are stopped with SIGSTOP; until its task runs elsewhere.
 - restarts: a worker's process alone is killed; until its node has a new session. Nothing may be
   replaced.
 - load: eight spinning processes for so many seconds; how often a node is called down.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import msgspec

from bench import figures
from bench.figures import Figure
from bench.lab import Lab, lab, require_root
from shoal.model.enums import NodeAvailability, NodeState
from shoal.model.objects import Service
from swarmctl.lab import nodes as lab_nodes

WORKERS = ("w1", "w2", "w3", "w4")
SPINNING = 8
POLL_S = 0.01
TIMEOUT_S = 90.0
REGULAR_S = 4.0
"""Time a node beats before it is killed: so long that its beats say something."""
KNOWN_BAR_S = 2.0
REPLACED_BAR_S = 6.0


async def main(options: argparse.Namespace) -> None:
    """Measure and report."""
    found: list[Figure] = []
    async with lab(managers=1, workers=len(WORKERS)) as ours:
        manager = await ours.client.node("m1")
        drained = msgspec.structs.replace(manager.spec, availability=NodeAvailability.DRAIN)
        await ours.client.update_node(manager, drained)
        service = await ours.create("detection", replicas=len(WORKERS))
        await settled(ours, service)
        found += await load(ours, service, options.load)
        found += await restarts(ours, service, options.restarts)
        found += await kills(ours, options.kills)
        found += await freezes(ours, service, options.freezes)
    figures.report(*found)


async def kills(ours: Lab, rounds: int) -> list[Figure]:
    """Cut one worker's power after the other's."""
    taken: list[float] = []
    for number in range(rounds):
        name = WORKERS[number % len(WORKERS)]
        await asyncio.sleep(REGULAR_S)
        began = time.perf_counter()
        killing = asyncio.create_task(asyncio.to_thread(ours.kill, name))
        await state_is(ours, name, NodeState.DOWN)
        taken.append(time.perf_counter() - began)
        await killing
        print(f"  {name} killed: known after {taken[-1]:.2f} s", flush=True)
        await ours.start(name)
    return reported("node killed to known", taken, KNOWN_BAR_S)


async def freezes(ours: Lab, service: Service, rounds: int) -> list[Figure]:
    """Freeze one worker after the other."""
    taken: list[float] = []
    for number in range(rounds):
        name = WORKERS[number % len(WORKERS)]
        taken.append(await freeze(ours, service, name))
        print(f"  {name} frozen: replaced after {taken[-1]:.2f} s", flush=True)
        await ours.scale(service, 0)
        await ours.scale(service, len(WORKERS))
        await settled(ours, service)
    return reported("worker frozen to replaced", taken, REPLACED_BAR_S)


async def freeze(ours: Lab, service: Service, name: str) -> float:
    """Seconds until a frozen worker's task runs elsewhere; the worker is back on return."""
    frozen, node = await ours.client.node(name), ours.node(name)

    async def has_task() -> bool:
        return any(task.node_id == frozen.id for task in await ours.running(service))

    async def replaced() -> bool:
        tasks = await ours.running(service)
        return len(tasks) == len(WORKERS) and all(task.node_id != frozen.id for task in tasks)

    await until(has_task)
    await asyncio.sleep(REGULAR_S)
    began = time.perf_counter()
    lab_nodes.pause(ours.plan, node)
    try:
        await until(replaced)
        took = time.perf_counter() - began
    finally:
        lab_nodes.resume(ours.plan, node)
    await state_is(ours, name, NodeState.READY)
    return took


async def restarts(ours: Lab, service: Service, rounds: int) -> list[Figure]:
    """Kill the worker process, which swarmd starts again."""
    before = {task.id for task in await ours.running(service)}
    downs = downs_of(ours)
    taken: list[float] = []
    for number in range(rounds):
        name = WORKERS[number % len(WORKERS)]
        await asyncio.sleep(REGULAR_S)
        registered = events(ours, "node.registered")
        began = time.perf_counter()
        os.kill(ours.processes(name)["worker"], signal.SIGKILL)
        while events(ours, "node.registered") == registered:
            await asyncio.sleep(POLL_S)
        taken.append(time.perf_counter() - began)
        print(f"  worker process of {name} killed: back after {taken[-1]:.2f} s", flush=True)
    await asyncio.sleep(REGULAR_S)
    after = {task.id for task in await ours.running(service)}
    return [
        *reported("worker process killed to session", taken, 0),
        Figure("tasks replaced meanwhile", len(before - after), "", 0, "at most"),
        Figure("nodes called down meanwhile", downs_of(ours) - downs, "", 0, "at most"),
    ]


async def load(ours: Lab, service: Service, seconds: float) -> list[Figure]:
    """Keep every processor busy."""
    before = {task.id for task in await ours.running(service)}
    downs, suspected = downs_of(ours), events(ours, "node.suspected")
    with spinning(SPINNING):
        await asyncio.sleep(seconds)
        average = os.getloadavg()[0]
    after = {task.id for task in await ours.running(service)}
    suspected = events(ours, "node.suspected") - suspected
    print(f"  {seconds:g} s with a load of {average:.1f}: {suspected} suspicions", flush=True)
    return [
        Figure(f"false alarms in {seconds:g} s of full load", downs_of(ours) - downs, "", 0,
               "at most"),
        Figure("tasks replaced meanwhile", len(before - after), "", 0, "at most"),
    ]  # fmt: skip


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    started = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def reported(what: str, taken: list[float], bar_s: float) -> list[Figure]:
    """Worst and median; bar_s 0: without a bar."""
    if not taken:
        return []
    print(figures.spread(what, taken, "s"), flush=True)
    worst = Figure(f"{what}, worst of {len(taken)}", max(taken), "s")
    if bar_s:
        worst = msgspec.structs.replace(worst, bar=bar_s, sense="at most")
    return [worst, Figure(f"{what}, median", statistics.median(taken), "s")]


def events(ours: Lab, name: str) -> int:
    """How often the manager has logged an event."""
    return ours.log("m1").read_bytes().count(f'"event": "{name}"'.encode())


def downs_of(ours: Lab) -> int:
    """How often a node was called down."""
    return events(ours, "node.down")


async def state_is(ours: Lab, name: str, state: NodeState) -> None:
    """Wait until the API says so."""

    async def said() -> bool:
        return (await ours.client.node(name)).status.state is state

    await until(said)


async def settled(ours: Lab, service: Service) -> None:
    """Wait until every replica runs."""

    async def complete() -> bool:
        return len(await ours.running(service)) == len(WORKERS)

    await until(complete)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll an async condition."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            if await condition():
                return
            await asyncio.sleep(POLL_S)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--freezes", type=int, default=3)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--load", type=float, default=60.0, metavar="SECONDS")
    require_root()
    asyncio.run(main(parser.parse_args()))
