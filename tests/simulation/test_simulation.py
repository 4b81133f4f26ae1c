"""Goal: 100 seeds survive everything, and each planted bug is found.

Method: short runs in CI (`make sim` is the long one). A bug is planted in the core or its driver
for the length of a test; the first seed that notices it ends the search.
"""

from __future__ import annotations

import random

import pytest

from manager.raft.entries import Entry, HardState, Snapshot
from tests.simulation.disk import Disk, Write
from tests.simulation.run import BUGS, run_seed


@pytest.mark.parametrize("first", range(0, 100, 10))
def test_seeds_survive(first: int) -> None:
    for seed in range(first, first + 10):
        outcome = run_seed(seed, 2_000)
        assert not outcome.failure, f"seed {seed}: {outcome.failure}"
        assert outcome.committed > 10


def test_storms_of_elections_are_survived() -> None:
    for seed in range(10):
        outcome = run_seed(seed, 4_000, "elections")
        assert not outcome.failure, f"seed {seed}: {outcome.failure}"
        assert outcome.terms > 3


def test_a_seed_replays() -> None:
    assert run_seed(7, 3_000) == run_seed(7, 3_000)


@pytest.mark.parametrize(
    ("bug", "climate", "words"),
    [
        ("missing-fsync", "any", "durable"),
        ("commit-old-term", "elections", "without committed entry"),
        ("ex-leader-acts", "any", "was answered before"),
    ],
)
def test_a_planted_bug_is_found(bug: str, climate: str, words: str) -> None:
    with BUGS[bug]():
        failures = (run_seed(seed, 5_000, climate).failure for seed in range(100))
        found = next((failure for failure in failures if failure), "")
    assert words in found


def test_a_crash_keeps_a_prefix_of_the_unsynced_writes() -> None:
    kept = set()
    for seed in range(40):
        disk = Disk(Snapshot(index=1, term=1))
        disk.write(Write((Entry(2, 1),), HardState(1, 0, 1)))
        disk.sync()
        for index in (3, 4, 5):
            disk.write(Write((Entry(index, 1),)))
        disk.crash(random.Random(seed))
        assert [entry.index for entry in disk.entries] == list(range(2, 2 + len(disk.entries)))
        kept.add(len(disk.entries))
    assert kept == {1, 2, 3, 4}
