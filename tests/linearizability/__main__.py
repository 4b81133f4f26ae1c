"""`python -m tests.linearizability --managers 3 --seconds 300`: the long mode; root."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from tests.linearizability.bugs import BUGS, LOST_EVENT
from tests.linearizability.clients import Workload
from tests.linearizability.run import Settings, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.linearizability", description=__doc__)
    parser.add_argument("--managers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run")
    parser.add_argument("--runs", type=int, default=1, help="seeds from --seed on")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument(
        "--bug", choices=sorted([*BUGS, LOST_EVENT]), default="", help="break the way on purpose"
    )
    parser.add_argument("--no-trouble", action="store_true", help="leave the managers alone")
    arguments = parser.parse_args()
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        settings = Settings(
            managers=arguments.managers,
            duration_s=arguments.seconds,
            seed=seed,
            bug=arguments.bug,
            trouble=not arguments.no_trouble,
            workload=Workload(clients=arguments.clients),
        )
        report = asyncio.run(run(settings))
        print(f"seed {seed}, {settings.managers} managers: {report.summary()}", flush=True)
        if report.findings.faults:
            print("\n".join(report.findings.faults))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
