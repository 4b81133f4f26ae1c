"""Entry of the manager process; started by swarmd, not by people."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is imported

import asyncio

import structlog

from manager.app import run
from shoal.errors import InvariantViolation, SwarmError
from shoal.security.lock import LockKeys
from shoal.settings.paths import NodePaths
from shoal.settings.process import die_with_parent, read_lock_keys
from shoal.telemetry.logs import LEVELS, configure


def main() -> None:
    """Parse the arguments, run, and exit with 1 on any failure."""
    parser = argparse.ArgumentParser(prog="manager", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--log-level", choices=sorted(LEVELS), default="info")
    parser.add_argument("--parent-pid", type=int, default=0, help="end with this process")
    parser.add_argument(
        "--lock-keys-stdin", action="store_true", help="read the node's lock keys from there"
    )
    arguments = parser.parse_args()
    if arguments.parent_pid:
        die_with_parent(arguments.parent_pid)
    configure("manager", arguments.log_level)
    log = structlog.get_logger()
    paths = NodePaths(state=arguments.state_dir, run=arguments.run_dir)
    try:
        lock_keys = read_lock_keys() if arguments.lock_keys_stdin else LockKeys()
        asyncio.run(run(paths, lock_keys))
    except SwarmError as error:
        log.error("manager.failed", reason=error.message, code=error.code.value)  # noqa: TRY400 - the message says it all
        sys.exit(1)
    except InvariantViolation as error:
        log.critical("manager.broken", exc_info=error)
        sys.exit(70)


if __name__ == "__main__":
    main()
