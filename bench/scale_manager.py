"""The product's manager process with one probe more: how late its event loop is.

Each time that the loop is later than `NOTED_S`, a line goes to the file: when (seconds of the
system-wide monotonic clock) and how late (seconds). Started by `bench.scale`; ends with it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import TextIO

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is imported

from manager.app import run
from shoal.settings.paths import NodePaths
from shoal.settings.process import die_with_parent
from shoal.telemetry.logs import configure

PROBE_S = 0.002
NOTED_S = 0.005


async def watch_loop(noted: TextIO) -> None:
    """Note how late the loop is, for ever."""
    while True:
        asked = time.monotonic()
        await asyncio.sleep(PROBE_S)
        late = time.monotonic() - asked - PROBE_S
        if late > NOTED_S:
            noted.write(f"{time.monotonic():.4f} {late:.4f}\n")


async def main(paths: NodePaths, stalls: Path) -> None:
    """Run the manager until it is told to stop."""
    with stalls.open("w", buffering=1) as noted:
        probe = asyncio.create_task(watch_loop(noted))
        try:
            await run(paths)
        finally:
            probe.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--stalls", type=Path, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args()
    die_with_parent(options.parent_pid)
    configure("manager", "warning")
    asyncio.run(main(NodePaths(state=options.state_dir, run=options.run_dir), options.stalls))
