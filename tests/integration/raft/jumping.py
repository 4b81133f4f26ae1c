"""A manager process whose wall clock is off by what a file says, in seconds, at every moment.

`python -m tests.integration.raft.jumping FILE ARGUMENTS...`: the manager with these arguments. Time
namespaces do not cover the wall clock, and the machine's own is not the test's to set.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.integration.manager.process import ManagerProcess


class OffClock:
    """Sets one manager's clock; start the manager with `start`."""

    def __init__(self, manager: ManagerProcess, directory: Path) -> None:
        self._manager = manager
        self._file = directory / f"clock-{manager.node_id}"
        self.set(0)

    def set(self, offset_s: float) -> None:
        """From now on the clock is ahead by that much. Replaced whole: it is read at any time."""
        written = self._file.with_suffix(".new")
        written.write_text(str(offset_s))
        written.replace(self._file)

    def start(self) -> None:
        """In place of the manager's own `start`."""
        self._manager.start(module="tests.integration.raft.jumping", before=(str(self._file),))


def main() -> None:
    """Bend the clock, then be the manager."""
    file = Path(sys.argv.pop(1))
    real_ns = time.time_ns

    def time_ns() -> int:
        return real_ns() + int(float(file.read_text()) * 1e9)

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
    from manager.__main__ import main as manager_main  # after the clock was bent

    manager_main()


if __name__ == "__main__":
    main()
