"""From samples to figures with their bars. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from bench.figures import Figure, Sense

CLIENTS = (1, 16, 64, 256)
RATE_BARS = {16: 0.45, 64: 0.40, 256: 0.45}
"""Least ratio to etcd's rate, three members; one client is held to its latency instead."""
P50_BAR = 1.6
CPU_CLIENTS = 64
CPU_BAR_MS = 0.9
INSIDE_CALLERS = (1, 64)
INSIDE_BAR = 1.5
INSIDE_BAR_PER_S = 5_000
BATCH_CHANGES, BATCH_CALLERS = 200, 4
BATCH_BAR_PER_S = 15_000
FAILOVER_BAR_S = 3.0
BAR_SIZE = 3
"""The bars are those of three members; figures of one are for information."""


class Sample(msgspec.Struct, frozen=True):
    """One measurement. cpu_ms: of all members, for each write; stall_ms: of our event loop."""

    rate: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    cpu_ms: float = 0.0
    stall_ms: float = 0.0

    def words(self) -> str:
        """For a line of output."""
        said = (
            f"{self.rate:>8,.0f}/s  p50 {self.p50_ms:>6.2f} ms  p99 {self.p99_ms:>6.1f} ms"
            f"  cpu {self.cpu_ms:.3f} ms"
        )
        return said + (f"  loop late {self.stall_ms:.0f} ms" if self.stall_ms else "")


def middle(samples: Sequence[Sample]) -> Sample:
    """The median of each number."""
    columns = zip(*(msgspec.structs.astuple(one) for one in samples), strict=True)
    return Sample(*(statistics.median(column) for column in columns))


def members(size: int) -> str:
    """How many, in words."""
    return f"{size} members" if size > 1 else "1 member"


def put(size: int, clients: int, ours: Sample, theirs: Sample) -> list[Figure]:
    """Puts over gRPC."""
    what = f"put, {members(size)}, {clients} clients" if clients > 1 else f"put, {members(size)}"
    found = []
    if clients == 1:
        found.append(
            figure(size, f"{what}, 1 client, p50", ours.p50_ms / theirs.p50_ms,
                   f"{ours.p50_ms:.2f} ms : {theirs.p50_ms:.2f} ms", P50_BAR, at_most=True)
        )  # fmt: skip
    else:
        found.append(
            figure(size, what, ours.rate / theirs.rate,
                   f"{ours.rate:,.0f}/s : {theirs.rate:,.0f}/s", RATE_BARS[clients])
        )  # fmt: skip
    if clients == CPU_CLIENTS:
        ratio = ours.cpu_ms / theirs.cpu_ms
        words = f"{what}, CPU of all members (etcd {theirs.cpu_ms:.2f} ms, {ratio:.1f} x)"
        sense: Sense = "at most" if size == BAR_SIZE else ""
        found.append(Figure(words, ours.cpu_ms, "ms", CPU_BAR_MS, sense))
    return found


def inside(size: int, callers: int, ours: Sample, theirs: Sample) -> list[Figure]:
    """Transactions from inside of the leader."""
    what = f"inside, {members(size)}, {callers} callers"
    if callers == 1:
        pair = f"{ours.p50_ms:.2f} ms : {theirs.p50_ms:.2f} ms"
        ratio = ours.p50_ms / theirs.p50_ms
        return [figure(size, f"inside, {members(size)}, 1 caller, p50", ratio, pair, P50_BAR,
                       at_most=True)]  # fmt: skip
    pair = f"{ours.rate:,.0f}/s : {theirs.rate:,.0f}/s"
    sense: Sense = "at least" if size == BAR_SIZE else ""
    return [
        figure(size, what, ours.rate / theirs.rate, pair, INSIDE_BAR),
        Figure(what, ours.rate, "/s", INSIDE_BAR_PER_S, sense),
        Figure(f"{what}, p99", ours.p99_ms, "ms"),
    ]


def batch(size: int, ours: Sample, theirs: Sample) -> list[Figure]:
    """Changes in large transactions."""
    what = f"changes in batches, {members(size)}"
    pair = f"{ours.rate:,.0f}/s : {theirs.rate:,.0f}/s"
    sense: Sense = "at least" if size == BAR_SIZE else ""
    return [
        figure(size, what, ours.rate / theirs.rate, pair, 1.0),
        Figure(what, ours.rate, "/s", BATCH_BAR_PER_S, sense),
    ]


def failover(ours: Sequence[float], theirs: Sequence[float]) -> list[Figure]:
    """Seconds from the leader's death to the next write."""
    worst = p99(ours)
    beside = f"median {statistics.median(ours):.2f} s, etcd {statistics.median(theirs):.2f} s"
    what = f"leader killed to next write, p99 of {len(ours)} ({beside}, p99 {p99(theirs):.2f} s)"
    return [Figure(what, worst, "s", FAILOVER_BAR_S, "at most")]


def p99(values: Sequence[float]) -> float:
    """Of fewer than a hundred: the worst."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def figure(
    size: int, what: str, ratio: float, pair: str, bar: float, *, at_most: bool = False
) -> Figure:
    """A ratio to etcd."""
    if size != BAR_SIZE:
        return Figure(f"{what} ({pair})", ratio, "x etcd")
    return Figure(f"{what} ({pair})", ratio, "x etcd", bar, "at most" if at_most else "at least")
