"""A swarmd with scripted processes, as a process of its own: for tests that kill it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import swarmd.__main__ as entry
from shoal.telemetry import logs
from swarmd.app import Daemon
from swarmd.children import MANAGER, daemon_command
from swarmd.settings import DaemonSettings, make_paths

CHILD = Path(__file__).with_name("child.py")


def scripted(settings: DaemonSettings, name: str) -> list[str]:
    """The command line of `child.py`."""
    import os

    return [
        sys.executable, "-P", str(CHILD), name,
        "--state-dir", str(settings.paths.state),
        "--run-dir", str(settings.paths.run),
        "--parent-pid", str(os.getpid()),
    ]  # fmt: skip


def with_real_manager(settings: DaemonSettings, name: str) -> list[str]:
    """Only the worker is `child.py`."""
    return daemon_command(settings, name) if name == MANAGER else scripted(settings, name)


def main() -> None:
    """daemon.py BASE [manager]: serve on BASE/state and BASE/run until SIGTERM.

    manager: with a real one.
    """
    base = Path(sys.argv[1])
    logs.configure("swarmd", "info")
    settings = DaemonSettings(
        paths=make_paths(base / "state", base / "run"), hostname="node-1", metrics_address=""
    )
    command = with_real_manager if sys.argv[2:] == ["manager"] else scripted
    asyncio.run(entry.serve(Daemon(settings, command=command)))


if __name__ == "__main__":
    main()
