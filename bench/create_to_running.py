"""Time from creating a service of one replica until the API says RUNNING: Shoal, Docker Swarm.

    sudo .venv/bin/python -m bench.create_to_running [--rounds 15]

Both have the image and keep their connection open. Swarm has no events for tasks, so its API is
polled every 5 ms. Shoal is measured in two ways: as told by its watch, the way it offers, and
polled exactly like Swarm. The contenders take turns within each round, in shuffled order.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from contextlib import AsyncExitStack

from bench import figures
from bench.docker import Docker, docker, why_not
from bench.figures import Figure
from bench.lab import Lab, lab, require_root
from shoal.api.v1 import watch_pb2, watch_pb2_grpc
from shoal.security.grpc_tls import local_channel

POLL_S = 0.005
TIMEOUT_S = 60.0
WARM_UP = 2
BAR = 1 / 6


class Watched:
    """Shoal, told by a watch on all tasks."""

    name = "shoal, watched"

    def __init__(self, ours: Lab) -> None:
        self._ours = ours
        assert ours.client.target.socket is not None
        self._channel = local_channel(ours.client.target.socket)

    async def once(self, name: str) -> float:
        """Seconds from asking to knowing."""
        tasks = watch_pb2.WatchRequest(selectors=[watch_pb2.WatchSelector(kind="task")])
        watch = watch_pb2_grpc.WatchStub(self._channel).Watch(tasks)
        messages = aiter(watch)
        await anext(messages)  # the first message: the watch is in place
        began = time.perf_counter()
        service = await self._ours.create(name, replicas=1)
        async for message in messages:
            if any(_runs(event, service.id) for event in message.events):
                break
        took = time.perf_counter() - began
        watch.cancel()
        await self._ours.remove(service)
        return took

    async def close(self) -> None:
        """Close the channel of the watch."""
        await self._channel.close()


class Polled:
    """Shoal, polled."""

    name = "shoal, polled"

    def __init__(self, ours: Lab) -> None:
        self._ours = ours

    async def once(self, name: str) -> float:
        """Seconds from asking to knowing."""
        began = time.perf_counter()
        service = await self._ours.create(name, replicas=1)
        while not await self._ours.running(service):
            await asyncio.sleep(POLL_S)
        took = time.perf_counter() - began
        await self._ours.remove(service)
        return took


class Swarm:
    """Docker Swarm, polled."""

    name = "docker swarm"

    def __init__(self, theirs: Docker) -> None:
        self._theirs = theirs

    async def once(self, name: str) -> float:
        """Seconds from asking to knowing."""
        return await asyncio.to_thread(self._once, name)

    def _once(self, name: str) -> float:
        began = time.perf_counter()
        service = self._theirs.create(name, replicas=1)
        while not self._theirs.running(service):
            time.sleep(POLL_S)
        took = time.perf_counter() - began
        self._theirs.remove(service)
        return took


async def main(rounds: int) -> None:
    """Raise both, measure, report."""
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(lab())
        watched = Watched(ours)
        stack.push_async_callback(watched.close)
        contenders: list[Watched | Polled | Swarm] = [watched, Polled(ours)]
        if reason := why_not():
            print(f"  docker swarm skipped: {reason}")
        else:
            contenders.append(Swarm(await stack.enter_async_context(docker())))
        report(await measure(contenders, rounds))


async def measure(
    contenders: list[Watched | Polled | Swarm], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds by contender."""
    taken: dict[str, list[float]] = {each.name: [] for each in contenders}
    for index in range(rounds + WARM_UP):
        for each in random.sample(contenders, len(contenders)):
            async with asyncio.timeout(TIMEOUT_S):
                took = await each.once(f"one-{index}-{each.name.split()[-1]}")
            if index >= WARM_UP:
                taken[each.name].append(took * 1000)
    return taken


def report(taken: dict[str, list[float]]) -> None:
    """The samples, and the ratios to Swarm."""
    middles = {name: statistics.median(values) for name, values in taken.items()}
    for name, values in taken.items():
        print(figures.spread(name, values, "ms"))
    swarm = middles.get(Swarm.name)
    if swarm is None:
        figures.report(Figure("create to running", middles[Watched.name], "ms"))
        return
    watched, polled = middles[Watched.name], middles[Polled.name]
    figures.report(
        Figure("create to running", watched / swarm, "x Swarm's time", BAR, "at most"),
        Figure("create to running, polled alike", polled / swarm, "x Swarm's time", BAR, "at most"),
        Figure("create to running, milliseconds", watched, "ms"),
    )


def _runs(event: watch_pb2.WatchEvent, service_id: str) -> bool:
    from shoal.api.v1 import types_pb2

    task = event.object.task
    return task.service_id == service_id and task.status.state == types_pb2.TASK_STATE_RUNNING


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    require_root()
    asyncio.run(main(options.rounds))
