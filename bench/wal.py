"""Records per second that the log makes durable, against SQLite in WAL mode, in one run.

    python bench/wal.py [--directory DIR] [--seconds 1.0] [--rounds 3] [--size 1024] [--encrypted]

With --encrypted: against the log without encryption instead, and what CPU a record costs in both.
Each number is the median of the rounds; the two candidates alternate within a round, so that
noise hits both. Trust the ratio, not the rate. Without --directory: a temporary directory (on a
tmpfs a sync costs nothing and only the CPU is measured).
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from manager.storage.entries import Entry, HardState
from manager.storage.frames import WalIdentity
from manager.storage.keyring import KeyRing
from manager.storage.wal import Wal

BATCHES = (1, 64, 256)
RELEASE_EVERY_ENTRIES = 50_000


def main() -> None:
    options = _options()
    if options.encrypted:
        _compare_encrypted(options)
        return
    print(f"{options.size} B records, durable per batch, median of {options.rounds}")
    print(f"{'batch':>6} {'wal rec/s':>12} {'sqlite rec/s':>13} {'ratio':>7}")
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        for batch in BATCHES:
            ours: list[float] = []
            theirs: list[float] = []
            for number in range(options.rounds):
                place = Path(scratch) / f"{batch}-{number}"
                place.mkdir()
                ours.append(_wal(place, batch, options.size, options.seconds))
                theirs.append(_sqlite(place, batch, options.size, options.seconds))
            wal, lite = statistics.median(ours), statistics.median(theirs)
            print(f"{batch:>6} {wal:>12,.0f} {lite:>13,.0f} {wal / lite:>7.2f}")


def _compare_encrypted(options: argparse.Namespace) -> None:
    print(f"{options.size} B records, durable per batch, median of {options.rounds}")
    head = (
        "batch",
        "clear rec/s",
        "sealed rec/s",
        "ratio",
        "clear CPU us",
        "sealed CPU us",
        "more",
    )
    print("{:>6} {:>13} {:>13} {:>7} {:>13} {:>14} {:>6}".format(*head))
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        for batch in BATCHES:
            rates: dict[bool, list[float]] = {False: [], True: []}
            costs: dict[bool, list[float]] = {False: [], True: []}
            for number in range(options.rounds):
                for sealed in (False, True):
                    place = Path(scratch) / f"{batch}-{number}-{sealed}"
                    place.mkdir()
                    begin = time.process_time()
                    rate = _wal(place, batch, options.size, options.seconds, sealed=sealed)
                    used = time.process_time() - begin
                    rates[sealed].append(rate)
                    costs[sealed].append(used / (rate * options.seconds) * 1e6)
                    shutil.rmtree(place)
            clear, closed = (statistics.median(rates[each]) for each in (False, True))
            before, after = (statistics.median(costs[each]) for each in (False, True))
            print(
                f"{batch:>6} {clear:>13,.0f} {closed:>13,.0f} {closed / clear:>7.2f}"
                f" {before:>13.1f} {after:>14.1f} {after - before:>6.1f}"
            )


def _wal(place: Path, batch: int, size: int, seconds: float, *, sealed: bool = False) -> float:
    keys = KeyRing.create(place / "keys.json", "bench") if sealed else None
    wal = Wal.create(place / "wal", WalIdentity("bench", 1), keys=keys)
    data = _data(size)
    marked = 0

    def step(first: int) -> None:
        nonlocal marked
        new = [Entry(index, 1, 1, data) for index in range(first, first + batch)]
        wal.append(new, HardState(1, 1, first - 1))
        if first - marked > RELEASE_EVERY_ENTRIES:  # bounds the space, as snapshots do
            marked = first - 1
            wal.mark_snapshot(marked, 1)
            wal.release(marked)

    try:
        return _rate(step, batch, seconds)
    finally:
        wal.close()


def _sqlite(place: Path, batch: int, size: int, seconds: float) -> float:
    database = sqlite3.connect(place / "log.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE log (i INTEGER PRIMARY KEY, term INTEGER, kind INTEGER, d BLOB)")
    data = _data(size)

    def step(first: int) -> None:
        rows = [(index, 1, 1, data) for index in range(first, first + batch)]
        database.execute("BEGIN")
        database.executemany("INSERT INTO log VALUES (?, ?, ?, ?)", rows)
        database.execute("COMMIT")

    try:
        return _rate(step, batch, seconds)
    finally:
        database.close()


def _data(size: int) -> bytes:
    return (bytes(range(1, 256)) * (size // 255 + 1))[:size]


def _rate(step: Callable[[int], None], batch: int, seconds: float) -> float:
    index = 1
    begin = time.perf_counter()
    end = begin + seconds
    while (now := time.perf_counter()) < end:
        step(index)
        index += batch
    return (index - 1) / (now - begin)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--directory", type=Path, help="where to write (default: temporary)")
    parser.add_argument("--seconds", type=float, default=1.0, help="per candidate and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encrypted", action="store_true", help="what encryption at rest costs")
    parser.add_argument("--size", type=int, default=1024, help="bytes of one record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
