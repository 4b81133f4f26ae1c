"""The containers' stdio, held so that bytes in a pipe outlive a dead logger.

A FIFO keeps its content as long as somebody has it open. The container has its own ends open for
reading and writing, which spares it SIGPIPE and lets it run on without us; once it has exited,
a hold is what keeps the last bytes for the logger. A hold ends when the logger has written its
end mark, or when the container's directory is gone. Standard input that is to end some time is open
in the container for reading only: the hold is the writer without which it would have ended.
"""

from __future__ import annotations

import os

from worker.runtime.lean.files import INPUT, INPUT_END_FILE, LOG_END_FILE, STREAMS


class Holds:
    """Descriptors by container id."""

    def __init__(self, containers_dir: str) -> None:
        self._directory = containers_dir
        self._fds: dict[str, list[int]] = {}
        self._inputs: dict[str, int] = {}
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
            self._take_input(container)

    def _take_input(self, container: str) -> None:
        path = f"{self._directory}/{container}/{INPUT}"
        if os.path.exists(f"{self._directory}/{container}/{INPUT_END_FILE}"):
            return
        try:
            self._inputs[container] = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # it has none

    def end_input(self, container: str) -> None:
        """Let go of standard input."""
        fd = self._inputs.pop(container, -1)
        if fd >= 0:
            os.close(fd)

    def keep(self, container: str, fds: list[int]) -> None:
        """Take over descriptors somebody else has opened."""
        self.release(container)
        self._fds[container] = fds
        self._take_input(container)

    def of(self, container: str) -> list[int]:
        """The descriptors held for a container."""
        return self._fds.get(container, [])

    def all(self) -> list[int]:
        """Every descriptor held."""
        return [*(fd for fds in self._fds.values() for fd in fds), *self._inputs.values()]

    def drain(self, container: str) -> None:
        """The container has exited: let go once its log is complete (see `sweep`)."""
        self.end_input(container)
        if container in self._fds:
            self.draining.add(container)
            self.sweep()

    def release(self, container: str) -> None:
        """Let go now."""
        self.draining.discard(container)
        self.end_input(container)
        for fd in self._fds.pop(container, ()):
            os.close(fd)

    def sweep(self) -> None:
        """Release every draining container whose log is complete or whose directory is gone."""
        for container in list(self.draining):
            directory = f"{self._directory}/{container}"
            if os.path.exists(f"{directory}/{LOG_END_FILE}") or not os.path.exists(directory):
                self.release(container)
