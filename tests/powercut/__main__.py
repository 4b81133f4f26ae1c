"""`python -m tests.powercut --managers 3 --cuts 20`: power cuts of whole clusters; root.

Prints one JSON object a cut. Exit code 0: nothing acknowledged was lost; 1: something was. With
--no-sync the managers forget to sync, and there must be a loss.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests.powercut.rig import Settings, a_rig

PRIVATE = "--in-private-namespace"


def main() -> int:
    if PRIVATE not in sys.argv:
        _enter_private_namespace()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parser = argparse.ArgumentParser(prog="python -m tests.powercut", description=__doc__)
    parser.add_argument("--managers", type=int, default=1)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--no-sync", action="store_true", help="forget fdatasync on purpose")
    parser.add_argument(PRIVATE, dest="cpus", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = Settings(
        managers=arguments.managers,
        cuts=arguments.cuts,
        seed=arguments.seed,
        no_sync=arguments.no_sync,
        cpus=arguments.cpus,
        acks=(400, 700) if arguments.no_sync else (20, 400),
    )
    with (
        tempfile.TemporaryDirectory(prefix="pc-") as scratch,
        a_rig(Path(scratch), settings) as rig,
    ):
        for result in rig.run():
            print(msgspec.json.encode(result).decode(), flush=True)
            if result.lost:
                return 1
    return 0


def _enter_private_namespace() -> None:
    """Become this program in a mount namespace of its own, on one processor.

    A mount namespace may only be pinned from one of a lower number, and Linux 6.18 gives each
    processor numbers of its own: pinning fails with EINVAL if the outer namespace came from another
    processor. The managers' own processes run on all of them.
    """
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    words = ["unshare", "-m", "--propagation", "private", sys.executable, "-m", "tests.powercut"]
    listed = ",".join(str(cpu) for cpu in sorted(cpus))
    os.execvp(words[0], [*words, *sys.argv[1:], PRIVATE, listed])


if __name__ == "__main__":
    sys.exit(main())
