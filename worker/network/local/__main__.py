"""Takes the local networks of a node off the machine, when the node is to be removed.

`python -m worker.network.local --state-dir DIR --run-dir DIR`: namespaces, links, bridges, rules
and the resolver go; `networks.json` stays with the state. Refused while the node's worker runs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from shoal.clock import SystemClock
from shoal.errors import SwarmError
from shoal.settings.paths import NodePaths
from worker.network.local.service import Networks


async def _uninstall(paths: NodePaths) -> None:
    networks = await Networks.open(paths.engine / "networks.json", paths.run, SystemClock())
    await networks.uninstall()


def main() -> None:
    """Parse the arguments and do it."""
    parser = argparse.ArgumentParser(prog="worker.network.local", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    given = parser.parse_args()
    try:
        asyncio.run(_uninstall(NodePaths(state=given.state_dir, run=given.run_dir)))
    except SwarmError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
