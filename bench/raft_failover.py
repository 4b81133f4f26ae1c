"""A leader is killed, again and again: seconds until the next write is accepted.

Writes are begun every 20 ms at the two members that are left, in turn, and each waits for its
answer on its own: a write that a follower passed on to the dead leader, as etcd's do, must not
hold up those after it. The clock starts before the kill and stops at the first answer to a write
that was begun after it.
"""

from __future__ import annotations

import asyncio
import itertools
import time

import grpc

from bench import figures
from bench.raft_cluster import Cluster, Server, leader_of, until_up

PAUSE_S = 0.02
SETTLE_S = 1.0
"""Time a cluster beats before its leader is killed."""
TIMEOUT_S = 60.0


async def failovers(cluster: Cluster, count: int) -> list[float]:
    """Seconds of each; every member is back in the end."""
    taken = [await once(cluster) for _ in range(count)]
    if taken:
        print(figures.spread(cluster.name, taken, "s"))
    return taken


async def once(cluster: Cluster) -> float:
    """Seconds of one."""
    leader = await leader_of(cluster)
    left = [server for server in cluster.servers if server is not leader]
    await asyncio.sleep(SETTLE_S)
    killed_s = time.perf_counter()
    await asyncio.to_thread(leader.kill)
    took = await first_write(left) - killed_s
    await leader.channel.close()
    leader.open()
    leader.start()
    await until_up(cluster, leader)
    return took


async def first_write(servers: list[Server]) -> float:
    """When the first write was acknowledged, on the clock of `time.perf_counter`."""
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def write(server: Server, number: int) -> None:
        try:
            await server.put(f"failover-{number}", b"x")
        except grpc.aio.AioRpcError:
            return
        if not done.done():
            done.set_result(time.perf_counter())

    attempts: list[asyncio.Task[None]] = []
    try:
        async with asyncio.timeout(TIMEOUT_S):
            for number in itertools.count():
                if done.done():
                    return done.result()
                server = servers[number % len(servers)]
                attempts.append(asyncio.create_task(write(server, number)))
                await asyncio.wait([done], timeout=PAUSE_S)
    finally:
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
    raise TimeoutError
