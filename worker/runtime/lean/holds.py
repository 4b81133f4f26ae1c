"""Read ends of the containers' stdio, held so that bytes in a pipe outlive a dead logger.

A FIFO keeps its content as long as somebody has it open. The container has its own ends open for
reading and writing, which spares it SIGPIPE and lets it run on without us; once it has exited,
a hold is what keeps the last bytes for the logger. A hold ends when the logger has written its
end mark, or when the container's directory is gone.
"""

from __future__ import annotations

import os

from worker.runtime.lean.files import LOG_END_FILE, STREAMS


class Holds:
    """Descriptors by container id."""

    def __init__(self, containers_dir: str) -> None:
        self._directory = containers_dir
        self._fds: dict[str, list[int]] = {}
        self.draining: set[str] = set()

    def take(self, container: str) -> None:
        """Open both streams for reading; a container without FIFOs is ignored."""
        if container in self._fds:
            return
        fds = []
        for stream in STREAMS:
            try:
                path = f"{self._directory}/{container}/{stream}"
                fds.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError:
                continue
        if fds:
            self._fds[container] = fds

    def keep(self, container: str, fds: list[int]) -> None:
        """Take over descriptors somebody else has opened."""
        self.release(container)
        self._fds[container] = fds

    def of(self, container: str) -> list[int]:
        """The descriptors held for a container."""
        return self._fds.get(container, [])

    def all(self) -> list[int]:
        """Every descriptor held."""
        return [fd for fds in self._fds.values() for fd in fds]

    def drain(self, container: str) -> None:
        """The container has exited: let go once its log is complete (see `sweep`)."""
        if container in self._fds:
            self.draining.add(container)
            self.sweep()

    def release(self, container: str) -> None:
        """Let go now."""
        self.draining.discard(container)
        for fd in self._fds.pop(container, ()):
            os.close(fd)

    def sweep(self) -> None:
        """Release every draining container whose log is complete or whose directory is gone."""
        for container in list(self.draining):
            directory = f"{self._directory}/{container}"
            if os.path.exists(f"{directory}/{LOG_END_FILE}") or not os.path.exists(directory):
                self.release(container)
