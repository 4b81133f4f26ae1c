"""One container as the supervisor sees it, and its record on disk.

The record (`state.json`) is written before the first process passes its start line, so whoever
comes after a crash finds the pid. States: created -> running -> exited (-> running again).
"""

from __future__ import annotations

import os

from worker.runtime.lean import files, tinyjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from worker.runtime.lean.loop import Client

CREATED, RUNNING, EXITED = "created", "running", "exited"
EXIT_LOST = 255
_KEPT = (
    "id", "state", "pid", "start_ticks", "boot_id", "created_at_ns", "started_at_ns",
    "finished_at_ns", "exit_code", "oom_killed", "error", "labels", "paused",
    "cgroup_parent",
)  # fmt: skip


class Container:
    """Mutable; owned by the supervisor's one thread."""

    def __init__(self, directory: str, record: dict[str, Any]) -> None:
        self.directory = directory
        self.id: str = record["id"]
        self.state: str = record.get("state", CREATED)
        self.pid: int = record.get("pid", 0)
        self.start_ticks: int = record.get("start_ticks", 0)
        self.boot_id: str = record.get("boot_id", "")
        self.created_at_ns: int = record.get("created_at_ns", 0)
        self.started_at_ns: int = record.get("started_at_ns", 0)
        self.finished_at_ns: int = record.get("finished_at_ns", 0)
        self.exit_code: int = record.get("exit_code", 0)
        self.oom_killed: bool = record.get("oom_killed", False)
        self.error: str = record.get("error", "")
        self.labels: dict[str, str] = record.get("labels", {})
        self.paused: bool = record.get("paused", False)
        self.cgroup_parent: str = record.get("cgroup_parent", "")
        # Not kept on disk:
        self.pidfd = -1
        self.status_fd = -1
        self.is_child = False
        self.is_made = False  # by a runtime of others: there, and not yet started or more
        self.failure: dict[str, Any] | None = None
        self.starting: Callable[[str], None] | None = None
        self.waiters: list[tuple[Client, dict[str, Any]]] = []
        self.terminal_waiters: list[tuple[Client, dict[str, Any]]] = []

    def status(self) -> dict[str, Any]:
        """What callers see; also the record."""
        return {name: getattr(self, name) for name in _KEPT}

    def save(self) -> None:
        """Replace the record."""
        path = f"{self.directory}/{files.STATE_FILE}"
        files.write_atomically(path, tinyjson.dumps(self.status()))

    def alive(self) -> bool:
        """True when the recorded process still runs and can be watched; opens its pidfd."""
        if self.state != RUNNING or not self.pid:
            return False
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            return False
        if files.start_ticks(self.pid) != self.start_ticks:
            self.close()
            return False
        return True

    def close(self) -> None:
        """Let go of the pidfd."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
