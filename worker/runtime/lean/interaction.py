"""Requests about running containers that are neither about their life nor about `exec`.

Terminals are passed on as descriptors, sizes and limits changed, counters and processes read.
"""

from __future__ import annotations

import os

from worker.runtime.lean import consoles, files, tinyjson
from worker.runtime.lean.container import RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from worker.runtime.lean import loop
    from worker.runtime.lean.container import Container
    from worker.runtime.lean.supervisor import Supervisor

    Request = dict[str, Any]


class Interaction:
    """Serves such requests with what the supervisor owns."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def terminal(self, client: loop.Client, request: Request) -> None:
        """Reply with the master of the terminal, as soon as the container has one."""
        container = self._supervisor.find(request)
        if container.state == RUNNING and container.status_fd < 0:
            self._pass_terminal(container, client, request)
        else:
            waiters = [w for w in container.terminal_waiters if w[0].open]
            container.terminal_waiters = [*waiters, (client, request)]

    def started(self, container: Container) -> None:
        """Its program runs now."""
        waiters, container.terminal_waiters = container.terminal_waiters, []
        for client, request in waiters:
            self._pass_terminal(container, client, request)

    def _pass_terminal(self, container: Container, client: loop.Client, request: Request) -> None:
        master = self._supervisor.terminals.master(container.id)
        if master < 0:
            reason = f"container {container.id} has no terminal"
            refusal = self._supervisor.refused("failed_precondition", reason)
            self._supervisor.refuse(client, request, refusal)
        else:
            client.send({"seq": request["seq"], "result": container.status()}, [master])

    def resize(self, client: loop.Client, request: Request) -> None:
        """Change the size of the container's terminal."""
        container = self._supervisor.running(request)
        master = self._supervisor.terminals.master(container.id)
        if master < 0:
            raise self._supervisor.refused(
                "failed_precondition", f"container {container.id} has no terminal"
            )
        consoles.set_size(master, request["height"], request["width"])
        self._supervisor.reply(client, request, container)

    def end_input(self, client: loop.Client, request: Request) -> None:
        """End standard input for this run; it is at its end once no client has it open either."""
        container = self._supervisor.find(request)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        os.close(os.open(f"{container.directory}/{files.INPUT_END_FILE}", flags, 0o600))
        self._supervisor.holds.end_input(container.id)
        self._supervisor.neighbours.tell_keeper(files.END_INPUT, container.id)
        self._supervisor.reply(client, request, container)

    def processes(self, client: loop.Client, request: Request) -> None:
        """Host pids of every process of the container."""
        container = self._supervisor.running(request)
        pids = self._supervisor.driver.processes(container.id)
        client.send({"seq": request["seq"], "result": sorted(pids)})

    def counters(self, client: loop.Client, request: Request) -> None:
        """All the container's control groups count."""
        container = self._supervisor.running(request)
        result = self._supervisor.driver.counters(container.id)
        client.send({"seq": request["seq"], "result": result})

    def update(self, client: loop.Client, request: Request) -> None:
        """Change limits: of the groups if it runs, and of the bundle for its next start."""
        container = self._supervisor.find(request)
        path = f"{container.directory}/{files.BUNDLE_FILE}"
        bundle = tinyjson.loads(files.read_text(path))
        changes = request["resources"]
        resources = bundle["linux"]["resources"]
        merged = {name: resources.get(name, {}) | values for name, values in changes.items()}
        if container.state == RUNNING:
            try:
                self._supervisor.driver.update(container.id, changes, merged)
            except (OSError, ValueError) as error:
                reason = str(error)
                if isinstance(error, OSError):
                    reason = f"{error.filename or 'update'}: {error.strerror or error}"
                raise self._supervisor.refused("invalid_argument", reason) from None
        resources |= merged
        files.write_atomically(path, tinyjson.dumps(bundle))
        self._supervisor.reply(client, request, container)
