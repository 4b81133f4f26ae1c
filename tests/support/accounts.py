"""Accounts and subordinate ids that only some processes see: the machine's stay as they are.

A mount namespace in which a few files lie over /etc, held by a process that sleeps. What runs
behind `prefix` is in it, also after a restart.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

UID, GID = 1_000_000, 2_000_000
USER = "dockremap"
_OVER = 'mount -t overlay overlay -o "lowerdir=$0:/etc" /etc && echo && exec sleep infinity'
_DEADLINE_S = 40.0


class Accounts:
    """Has the user of `--userns-remap default`. Close it."""

    def __init__(self, directory: Path) -> None:
        """directory: an empty one, for the files."""
        passwd = Path("/etc/passwd").read_text()
        (directory / "passwd").write_text(f"{passwd}{USER}:x:59998:59999::/:/bin/false\n")
        (directory / "subuid").write_text(f"{USER}:{UID}:65536\n")
        (directory / "subgid").write_text(f"{USER}:{GID}:65536\n")
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", _OVER, str(directory)], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        if not self._holder.stdout.read(1):
            raise AssertionError("/etc cannot be laid over")
        self.prefix = ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt")

    def close(self) -> None:
        """Let the namespace go."""
        self._holder.kill()
        self._holder.wait(_DEADLINE_S)
        assert self._holder.stdout is not None
        self._holder.stdout.close()


def pids_of(first: int, count: int = 65536) -> list[int]:
    """Processes whose owner is one of these ids."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                owner = os.stat(f"/proc/{name}").st_uid
            except OSError:
                continue
            if first <= owner < first + count:
                found.append(int(name))
    return found
