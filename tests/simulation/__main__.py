"""`python -m tests.simulation --seed N --steps M`: run one seed, or `--runs` of them in a row."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

from tests.simulation.run import BUGS, Outcome, run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000_007)
    parser.add_argument("--steps", type=int, default=50_000, help="events a run, before healing")
    parser.add_argument("--runs", type=int, default=1, help="seeds from --seed on")
    parser.add_argument("--bug", choices=sorted(BUGS), help="break the core on purpose")
    parser.add_argument("--climate", choices=["any", "elections"], default="any")
    arguments = parser.parse_args()
    total, began = 0, time.perf_counter()
    with contextlib.ExitStack() as stack:
        if arguments.bug:
            stack.enter_context(BUGS[arguments.bug]())
        for seed in range(arguments.seed, arguments.seed + arguments.runs):
            outcome = run_seed(seed, arguments.steps, arguments.climate)
            total += outcome.steps
            if outcome.failure or arguments.runs <= 20:
                _report(outcome)
            if outcome.failure:
                bug = f" --bug {arguments.bug}" if arguments.bug else ""
                climate = f" --climate {arguments.climate}" if arguments.climate != "any" else ""
                print(
                    f"again: python -m tests.simulation --seed {seed} --steps {arguments.steps}"
                    f"{climate}{bug}"
                )
                return 1
    rate = total / (time.perf_counter() - began)
    print(f"{arguments.runs} runs from seed {arguments.seed}, {total} steps, {rate:.0f} steps/s")
    return 0


def _report(outcome: Outcome) -> None:
    if outcome.failure:
        print("\n".join(outcome.story))
        print(f"seed {outcome.seed}: FAILED: {outcome.failure}")
        return
    print(
        f"seed {outcome.seed}: {outcome.steps} steps, {outcome.virtual_s:.0f} s,"
        f" {outcome.committed} commits, {outcome.answered} answered, {outcome.terms} terms,"
        f" {outcome.members} members"
    )


if __name__ == "__main__":
    sys.exit(main())
