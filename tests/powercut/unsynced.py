"""swarmd and manager as they are, but for one forgotten sync: `unsynced PROCESS ARGUMENTS...`.

The rig must find the loss, or it proves nothing. swarmd runs its manager through this file as well;
in the manager the log's sync returns at once. Segments are still made durable before they are used
and directories are synced, so that exactly one mistake is tested: answers before fdatasync.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys

import swarmd.app
from manager.storage import files
from swarmd.children import MANAGER, daemon_command
from swarmd.settings import DaemonSettings

MODULE = "tests.powercut.unsynced"
SYNCED = 20
"""So many are made: the cluster itself shall not be lost, which would be too easy to see."""


def forgetful_command(settings: DaemonSettings, name: str) -> list[str]:
    """As `daemon_command`, with this file in front of the manager."""
    command = daemon_command(settings, name)
    if name == MANAGER:
        command[3] = MODULE
        command.insert(4, MANAGER)
    return command


def forget_syncs() -> None:
    """Make the sync of the log do nothing after the first SYNCED; new segments are still synced."""
    real = files.FileOps.fdatasync
    syncs = itertools.count()

    def fdatasync(self: files.FileOps, fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".wal") and next(syncs) >= SYNCED:
            return
        real(self, fd)

    files.FileOps.fdatasync = fdatasync  # type: ignore[method-assign]


def main() -> None:
    process = sys.argv.pop(1)
    if process == MANAGER:
        from manager.__main__ import main as run

        forget_syncs()
        run()
        return
    import swarmd.__main__ as entry

    made = functools.partial(swarmd.app.Daemon, command=forgetful_command)
    setattr(entry, "Daemon", made)  # noqa: B010 - the type checker rightly sees a class there
    entry.main()


if __name__ == "__main__":
    main()
