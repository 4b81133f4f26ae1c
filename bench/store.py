"""A store with 100,000 tasks: memory, snapshot, replay, the memory of a leader; against etcd.

    sudo .venv/bin/python -m bench.store [--tasks 100000] [--puts 100000] [--rounds 3]

Every part runs in a process of its own, a cluster of one; etcd is given records of the same size
in transactions, and restarted. The disk is that of `bench.raft`. What a task costs is measured
with everything the store keeps of it: row, indexes, names.
 - snapshot: of all tasks, sealed and synced, while 64 callers write; how late the event loop was at
   worst is seen by a task that sleeps 2 ms at a time.
 - replay: from the start of the process's work to the state, snapshot and log read.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from bench import ext4, figures, store_parts
from bench.figures import Figure
from bench.lab import require_root
from bench.priority import urgent
from bench.raft_cluster import Etcd, Server, cluster_of, until_up, why_not
from bench.raft_member import TASK_BYTES
from bench.store_parts import Memory, Replayed, Snapshot
from shoal.etcd.v1 import rpc_pb2

TASK_BAR_BYTES = 5_000
LEADER_BAR_MIB = 250 * 1_000_000 / (1 << 20)
SNAPSHOT_BAR_S = 1.5
LATE_BAR_MS = 20
TXN_PUTS = 100

P = ParamSpec("P")
T = TypeVar("T")


def main(tasks: int, puts: int, rounds: int) -> None:
    """Measure and report."""
    found: list[Figure] = []
    with ext4.disk() as disk, urgent(), tempfile.TemporaryDirectory(dir=disk) as scratch:
        memory: list[Memory] = []
        snapshots: list[Snapshot] = []
        replays: list[Replayed] = []
        theirs: list[tuple[float, float]] = []
        reason = why_not()
        if reason:
            print(f"  etcd skipped: {reason}")
        for turn in range(rounds):
            home = Path(scratch, f"{turn}")
            memory.append(apart(store_parts.memory, tasks))
            snapshots.append(apart(store_parts.snapshot, home / "ours", tasks))
            replays.append(apart(store_parts.replay, home / "ours"))
            if not reason:
                theirs.append(asyncio.run(etcd(home / "theirs", tasks)))
        leader_mib = apart(store_parts.puts, Path(scratch, "puts"), puts)
    found += store_figures(tasks, memory, snapshots)
    found.append(Figure(f"leader after {puts:,} puts of 1 KB", leader_mib, "MiB",
                        LEADER_BAR_MIB, "at most"))  # fmt: skip
    found += restart_figures(memory, replays, theirs)
    load = os.getloadavg()
    print(f"  load {load[0]:.1f} {load[1]:.1f} {load[2]:.1f}; ext4 over loop for both")
    figures.report(*found)


def apart(part: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Its result, from a new process."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(part, *args, **kwargs).result()


def store_figures(tasks: int, memory: list[Memory], snapshots: list[Snapshot]) -> list[Figure]:
    """Ours, with their bars."""

    def of(name: str, samples: list[Any]) -> float:
        return float(statistics.median(getattr(one, name) for one in samples))

    record = of("record_bytes", memory)
    size_mib = of("size_bytes", snapshots) / (1 << 20)
    snapshot = f"snapshot of {tasks:,} tasks"
    return [
        Figure(f"memory of a {record:.0f} B task", of("bytes_per_task", memory), "B",
               TASK_BAR_BYTES, "at most"),
        Figure("tasks created from the log", of("changes_per_s", memory), "/s"),
        Figure(f"full garbage collection, {tasks:,} tasks", of("collection_ms", memory), "ms"),
        Figure(f"{snapshot} ({size_mib:.0f} MiB), at rest", of("idle_s", snapshots), "s",
               SNAPSHOT_BAR_S, "at most"),
        Figure(f"{snapshot}, 64 callers write", of("busy_s", snapshots), "s"),
        Figure("loop late, 64 callers write, no snapshot", of("base_late_ms", snapshots), "ms"),
        Figure(f"{snapshot}, loop late, at rest", of("idle_late_ms", snapshots), "ms",
               LATE_BAR_MS, "at most"),
        Figure(f"{snapshot}, loop late, 64 callers write", of("busy_late_ms", snapshots), "ms",
               LATE_BAR_MS, "at most"),
    ]  # fmt: skip


def restart_figures(
    memory: list[Memory], replays: list[Replayed], theirs: list[tuple[float, float]]
) -> list[Figure]:
    """Beside etcd's, for information."""
    ours_s = statistics.median(one.snapshot_s for one in replays)
    found = [Figure("replay: snapshot and log", ours_s, "s")]
    if theirs:
        bytes_each = statistics.median(one for one, _ in theirs)
        restart_s = statistics.median(one for _, one in theirs)
        ours = statistics.median(one.bytes_per_task for one in memory)
        found += [
            Figure(f"memory of a record, etcd {bytes_each:,.0f} B", ours / bytes_each, "x etcd"),
            Figure(f"replay, etcd's restart {restart_s:.2f} s", ours_s / restart_s, "x etcd"),
        ]
    return found


async def etcd(directory: Path, records: int) -> tuple[float, float]:
    """Bytes of memory for each record, and seconds of a restart."""
    cluster = Etcd(directory, 1)
    async with cluster_of(cluster):
        server = cluster.servers[0]
        before = memory_bytes(server)
        for first in range(0, records, TXN_PUTS):
            request = rpc_pb2.TxnRequest()
            for number in range(first, first + TXN_PUTS):
                put = rpc_pb2.PutRequest(
                    key=f"task-{number:024}".encode(), value=os.urandom(TASK_BYTES)
                )
                request.success.add().request_put.CopyFrom(put)
            await server.call("/etcdserverpb.KV/Txn", request, rpc_pb2.TxnResponse, 10.0)
        used = memory_bytes(server) - before
        await asyncio.to_thread(server.kill)
        await server.channel.close()
        server.open()
        began = time.perf_counter()
        server.start()
        await until_up(cluster, server)
        return used / records, time.perf_counter() - began


def memory_bytes(server: Server) -> int:
    """Memory of a process that is in use; what of its files it has mapped does not count."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines()
    )
    return int(fields["RssAnon"].split()[0]) * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--puts", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    require_root()
    ext4.private("bench.store")
    main(given.tasks, given.puts, given.rounds)
