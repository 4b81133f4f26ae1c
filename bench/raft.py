"""Writes of one and of three members, against etcd's, in one run.

    sudo .venv/bin/python -m bench.raft [--rounds 3] [--seconds 1.5] [--kills 10]

Both keep their logs on the same disk (ext4 in a file, see `bench.ext4`) and take turns, so that
noise hits both; every figure is the median of the rounds, every ratio that of the medians.
 - put: 1 KB over gRPC to the leader, etcd's own request to both, loaded by h2load. Ours is what a
   call costs in a manager without what the control API does for it (validation, defaults).
 - inside: 1 KB in a transaction of its own, from callers inside of the leader, as dispatcher and
   planners write; against etcd's puts from as many clients.
 - batch: 200 changes of tasks in one entry, from four callers inside; against etcd transactions of
   100 compared puts of the same size, from four clients.
 - failover: the leader gets SIGKILL; until a write is accepted that was begun after it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench import ext4, figures, h2load, raft_table
from bench.figures import Figure
from bench.lab import require_root
from bench.priority import urgent
from bench.raft_cluster import Cluster, Etcd, Shoal, cluster_of, leader_of, used_s, why_not
from bench.raft_failover import failovers
from bench.raft_member import TASK_BYTES, VALUE_BYTES, Load
from bench.raft_table import BATCH_CALLERS, BATCH_CHANGES, CLIENTS, INSIDE_CALLERS, Sample
from shoal.etcd.v1 import rpc_pb2

TXN_PUTS = 100
"""etcd takes at most 128 operations in a transaction."""

Turn = Callable[[], Awaitable[Sample]]


async def main(options: argparse.Namespace) -> None:
    """Measure and report."""
    if reason := why_not():
        print(f"  skipped: {reason}")
        return
    found: list[Figure] = []
    with ext4.disk() as disk, urgent():
        for size in (1, 3):
            with tempfile.TemporaryDirectory(dir=disk, ignore_cleanup_errors=True) as scratch:
                ours, theirs = Shoal(Path(scratch, "o"), size), Etcd(Path(scratch, "t"), size)
                async with cluster_of(ours), cluster_of(theirs):
                    found += await writes(ours, theirs, options.rounds, options.seconds)
                    if size > 1 and options.kills:
                        found += raft_table.failover(
                            await failovers(ours, options.kills),
                            await failovers(theirs, options.kills),
                        )
    load = os.getloadavg()
    print(f"  load {load[0]:.1f} {load[1]:.1f} {load[2]:.1f}; ext4 over loop for both")
    figures.report(*found)


async def writes(ours: Shoal, theirs: Etcd, rounds: int, seconds: float) -> list[Figure]:
    """All kinds of writes, in turns."""
    size, found = len(ours.servers), []
    for clients in CLIENTS:
        turns: dict[str, Turn] = {
            "put": lambda: puts(ours, clients, seconds),  # noqa: B023 - called within the iteration
            "etcd": lambda: puts(theirs, clients, seconds),  # noqa: B023
        }
        if clients in INSIDE_CALLERS:
            turns["inside"] = lambda: inside(ours, Load(clients, seconds))  # noqa: B023
        taken = await in_turns(f"{raft_table.members(size)}, {clients} clients", turns, rounds)
        found += raft_table.put(size, clients, taken["put"], taken["etcd"])
        if "inside" in taken:
            found += raft_table.inside(size, clients, taken["inside"], taken["etcd"])
    batches: dict[str, Turn] = {
        "batch": lambda: inside(ours, Load(BATCH_CALLERS, seconds, BATCH_CHANGES)),
        "etcd": lambda: transactions(theirs, seconds),
    }
    taken = await in_turns(f"{raft_table.members(size)}, batches", batches, rounds)
    return found + raft_table.batch(size, taken["batch"], taken["etcd"])


async def in_turns(title: str, turns: dict[str, Turn], rounds: int) -> dict[str, Sample]:
    """The middle of each one's samples, taken in turns; prints them."""
    samples: dict[str, list[Sample]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            samples[name].append(await turn())
    taken = {name: raft_table.middle(some) for name, some in samples.items()}
    for name, some in samples.items():
        rates = " ".join(f"{one.rate:,.0f}" for one in some)
        print(f"  {title:24} {name:7} {taken[name].words()}  all: {rates}", flush=True)
    return taken


async def puts(cluster: Cluster, clients: int, seconds: float) -> Sample:
    """The Put of etcd, to the leader."""
    request = rpc_pb2.PutRequest(key=b"measured", value=os.urandom(VALUE_BYTES))
    return await over_grpc(cluster, "Put", request, clients, seconds)


async def transactions(theirs: Etcd, seconds: float) -> Sample:
    """Compared puts in transactions; the rate is that of the puts."""
    request = rpc_pb2.TxnRequest()
    for number in range(TXN_PUTS):
        key = f"batch-{number:024}".encode()
        request.compare.add(
            key=key,
            target=rpc_pb2.Compare.MOD,
            result=rpc_pb2.Compare.GREATER,
            mod_revision=-1,
        )
        request.success.add().request_put.CopyFrom(
            rpc_pb2.PutRequest(key=key, value=os.urandom(TASK_BYTES))
        )
    sample = await over_grpc(theirs, "Txn", request, BATCH_CALLERS, seconds)
    return Sample(sample.rate * TXN_PUTS, sample.p50_ms, sample.p99_ms, sample.cpu_ms / TXN_PUTS)


async def over_grpc(
    cluster: Cluster,
    method: str,
    request: rpc_pb2.PutRequest | rpc_pb2.TxnRequest,
    clients: int,
    seconds: float,
) -> Sample:
    """Load the leader from outside, and make sure that what was answered was done."""
    leader = await leader_of(cluster)
    revision, used = await leader.put("count", b""), used_s(cluster)
    taken = await h2load.load(
        leader.port, f"/etcdserverpb.KV/{method}", request, clients=clients, seconds=seconds
    )
    used = used_s(cluster) - used
    done = await leader.put("count", b"") - revision - 1
    if done < taken.answered:
        raise RuntimeError(f"{cluster.name}: {taken.answered} answers, {done} writes")
    return Sample(taken.rate, taken.p50_ms, taken.p99_ms, used * 1000 / done)


async def inside(ours: Shoal, load: Load) -> Sample:
    """Writes from inside of our leader; the rate is that of the changes."""
    leader, used = await leader_of(ours), used_s(ours)
    done = (await ours.load(leader, load)).load
    if done is None:
        raise RuntimeError("the member did not do what it was asked for")
    changes = done.transactions * load.changes
    return Sample(
        changes / done.seconds,
        done.p50_ms,
        done.p99_ms,
        (used_s(ours) - used) * 1000 / changes,
        done.stall_ms,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one measurement")
    parser.add_argument("--kills", type=int, default=10, help="of each leader")
    given = parser.parse_args()
    require_root()
    ext4.private("bench.raft")
    asyncio.run(main(given))
