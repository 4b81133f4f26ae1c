"""`python -m tests.names`: names are asked for in every task while services and nodes change; root.

The last line says how many answers were judged, and how many were wrong. Exit code 0: none.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.names.report import show
from tests.names.run import Size, change
from tests.names.stage import a_stage


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    size = _size()
    with (
        tempfile.TemporaryDirectory(prefix="names-") as scratch,
        a_stage(
            Path(scratch), managers=size.managers, workers=size.workers, pause_s=size.pause_s
        ) as stage,
    ):
        with stage.playing():
            change(stage, size)
        outcome = stage.judged()
    show(outcome)
    print(f"answers {outcome.judged}, wrong {len(outcome.wrong)}", flush=True)
    return 1 if outcome.wrong else 0


def _size() -> Size:
    default = Size()
    parser = argparse.ArgumentParser(prog="python -m tests.names", description=__doc__)
    parser.add_argument("--managers", type=int, default=default.managers)
    parser.add_argument("--workers", type=int, default=default.workers, help="at least 2")
    parser.add_argument("--rounds", type=int, default=default.rounds)
    parser.add_argument("--pause", type=float, default=default.pause_s, help="of an asker, seconds")
    parser.add_argument("--no-kill", dest="kill", action="store_false", help="no power cuts")
    chosen = parser.parse_args()
    return Size(
        managers=chosen.managers,
        workers=chosen.workers,
        rounds=chosen.rounds,
        pause_s=chosen.pause,
        kill=chosen.kill,
    )


if __name__ == "__main__":
    sys.exit(main())
