"""`python -m tests.zeroloss`: a service changed in every way under load; root.

The last line says how many requests were made and how many failed. Exit code 0: none failed but
those that were under way to a node that lost its power; 1: others did.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.zeroloss.load import Tally, has_wrk
from tests.zeroloss.run import Killed, Size, a_run

FAILURES_SHOWN = 20


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    size = _size()
    if size.wrk and not has_wrk():
        sys.exit("wrk is missing: apt-get install wrk, or go without it: --wrk 0")
    with tempfile.TemporaryDirectory(prefix="zl-") as scratch, a_run(Path(scratch), size) as run:
        changed = run.change()
        _show(changed)
        killed = run.kill() if size.kill else None
    if killed is not None:
        _show_killed(killed)
    print(f"requests {changed.requests}, failures {changed.failed}", flush=True)
    return 1 if changed.failed or (killed is not None and killed.unexpected) else 0


def _size() -> Size:
    default = Size()
    parser = argparse.ArgumentParser(prog="python -m tests.zeroloss", description=__doc__)
    parser.add_argument("--requests", type=int, default=default.requests, help="at least")
    parser.add_argument("--scalings", type=int, default=default.scalings)
    parser.add_argument("--rolls", type=int, default=default.rolls, help="in each order")
    parser.add_argument("--managers", type=int, default=default.managers)
    parser.add_argument(
        "--failovers", type=int, default=default.failovers, help="of the leading manager"
    )
    parser.add_argument("--users", type=int, default=default.users, help="per node and kind")
    parser.add_argument("--pause", type=float, default=default.pause_s, help="of a user, seconds")
    parser.add_argument("--wrk", type=int, default=default.wrk, help="connections; 0: without")
    parser.add_argument("--heartbeat", default=default.heartbeat, help="of the nodes, as 5s")
    parser.add_argument("--no-kill", dest="kill", action="store_false", help="no power cut")
    chosen = parser.parse_args()
    return Size(
        requests=chosen.requests,
        scalings=chosen.scalings,
        rolls=chosen.rolls,
        managers=chosen.managers,
        failovers=chosen.failovers,
        users=chosen.users,
        pause_s=chosen.pause,
        wrk=chosen.wrk,
        kill=chosen.kill,
        heartbeat=chosen.heartbeat,
    )


def _show(tally: Tally) -> None:
    for complaint in tally.complaints:
        print(complaint)
    for failure in tally.failures[:FAILURES_SHOWN]:
        print(f"failed: {failure}")
    if tally.failures:
        print(f"failures from {tally.failures[0].at_s:.2f} to {tally.failures[-1].at_s:.2f}")
    print(f"slowest request {tally.slowest_s:.2f} s, {len(tally.tasks)} tasks answered", flush=True)


def _show_killed(killed: Killed) -> None:
    for failure in killed.unexpected[:FAILURES_SHOWN]:
        print(f"failed without reason: {failure}")
    tally = killed.tally
    print(
        f"node killed: requests {tally.requests}, under way to it"
        f" {tally.failed - len(killed.unexpected)}, other failures {len(killed.unexpected)},"
        f" last failure after {killed.last_failure_s:.2f} s, slowest request"
        f" {tally.slowest_s:.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
