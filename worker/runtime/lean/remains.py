"""What containers leave when they have ended: control groups, processes, exit records.

A group stays busy for a moment after its last process; it is tried again for some seconds, and a
container that has been started again meanwhile keeps it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from worker.runtime.lean import cgroups, files
from worker.runtime.lean.container import RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from worker.runtime.lean.supervisor import Supervisor

_RETRY_S = 0.02
_ATTEMPTS = 250
_REAPED_S = 1.0  # by when the keeper has recorded what became its child


class Remains:
    """Takes them away for the supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._loop = supervisor.loop

    def drop_stale(self) -> None:
        """At the start: the groups of containers nobody knows any more, and old records."""
        found: set[str] = set()
        for path in self._supervisor.driver.paths(""):
            # Who still has processes is not a container's remains, or will be tried when it ends.
            found |= {n for n in os.listdir(path) if cgroups.is_empty(path + n)}
        for name in found:
            self.drop_group(name)  # does nothing for a container that runs
        self._drop_exits()

    def _drop_exits(self) -> None:
        """Remove exit records nobody will ask for."""
        supervisor = self._supervisor
        running = [c for c in supervisor.containers.values() if c.pidfd >= 0]
        expected = {f"{c.pid}.{c.start_ticks}" for c in running}
        expected |= supervisor.execs.expected_exits()
        for name in os.listdir(f"{supervisor.state_dir}/exits"):
            if name not in expected and not name.endswith(".new"):
                files.discard(f"{supervisor.state_dir}/exits/{name}")

    def end_processes(self, name: str) -> None:
        """Those that did not end with the first one, as it was not alone in its namespace."""
        try:
            left = self._supervisor.driver.processes(name)
        except OSError:
            return  # it has no group
        for pid in left:
            try:
                os.kill(pid, _signal.SIGKILL)
            except ProcessLookupError:
                continue
        if left:
            self._loop.after(_REAPED_S, self._drop_exits)  # those the keeper has reaped

    def drop_group(self, name: str, attempts: int = _ATTEMPTS) -> None:
        """Remove the container's groups, unless it runs."""
        supervisor = self._supervisor
        owner = supervisor.containers.get(name)
        if owner is not None and owner.state == RUNNING:
            return
        if supervisor.driver.remove(name):
            if owner is None:
                supervisor.driver.forget(name)
        elif attempts:
            self._loop.after(_RETRY_S, lambda: self.drop_group(name, attempts - 1))
        else:
            files.complain(f"cgroup of {name} stays busy")
