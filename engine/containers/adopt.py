"""Takes the containers over when the process starts: what the records say, what the runtime has.

What was interrupted is finished (removals) or undone (starts); what has ended meanwhile is dealt
with now; what should run is started. Runtime containers of ours without a record are what is left
of a removal or of a creation nobody was told of: they are removed. A container whose record cannot
be read is left alone.
"""

from __future__ import annotations

import structlog

from engine.containers import restart
from engine.containers.chores import Chores
from engine.containers.config import ENGINE_LABEL
from engine.containers.container import Container
from engine.containers.ground import Grounds
from engine.containers.lifecycle import Lifecycle
from engine.containers.probing import Prober
from engine.containers.records import RecordFiles
from engine.containers.service import Containers
from shoal.errors import SwarmError
from worker.runtime.api import ContainerStatus, Runtime

_log = structlog.get_logger()


class Adopter:
    """Runs once, before anybody is served."""

    def __init__(
        self,
        *,
        files: RecordFiles,
        containers: Containers,
        runtime: Runtime,
        grounds: Grounds,
        lifecycle: Lifecycle,
        prober: Prober,
        chores: Chores,
    ) -> None:
        self._files = files
        self._containers = containers
        self._runtime = runtime
        self._grounds = grounds
        self._lifecycle = lifecycle
        self._prober = prober
        self._chores = chores

    async def adopt(self) -> None:
        """Show every container as it is. Raises: OSError, SwarmError when nothing can be known."""
        self._files.open()
        records, damaged = self._files.load()
        statuses = {status.id: status for status in await self._runtime.list()}
        for record in records:
            self._containers.add(Container(record, statuses.get(record.id)))
        self._containers.unreadable = damaged
        await self._remove_strangers(statuses, frozenset(damaged))
        for container in self._containers.all():
            await self._correct(container)
        await self._grounds.adopt(self._containers.all())
        for container in self._containers.all():
            self._go_on(container)

    async def _remove_strangers(
        self, statuses: dict[str, ContainerStatus], damaged: frozenset[str]
    ) -> None:
        known = {container.id for container in self._containers.all()} | damaged
        for status in statuses.values():
            if ENGINE_LABEL in status.labels and status.id not in known:
                _log.info("container.remains_removed", id=status.id)
                try:
                    await self._runtime.remove(status.id, force=True)
                except SwarmError as error:
                    _log.error("container.remains_kept", id=status.id, reason=str(error))

    async def _correct(self, container: Container) -> None:
        """Make the record say what the runtime knows better."""
        record, status = container.record, container.status
        if status is None:
            if record.started and not record.removing:
                await self._containers.note(container, dead=True, sandbox=None)
        elif status.state == "created" and record.started:
            await self._containers.note(container, started=False, sandbox=None)
        elif status.state == "exited" and status.error and status.exit_code in {126, 127, 128}:
            if status.started_at_ns != record.settled_ns and record.sandbox is None:
                await self._containers.note(
                    container, failure=status.error, failure_code=status.exit_code,
                    settled_ns=status.started_at_ns,
                )  # fmt: skip
        elif status.state == "running" and not record.started:
            await self._containers.note(container, started=True, failure="", failure_code=0)

    def _go_on(self, container: Container) -> None:
        record = container.record
        if record.removing:
            self._chores.start(f"removal of {record.id}", self._finish_removal(container))
        elif container.has_process:
            self._prober.begin(container)
        elif container.is_unsettled:
            self._containers.look_for_end(container)
        elif record.started and not record.dead and self._should_run(container):
            self._lifecycle.start_later(container, restart.PAUSE_MIN_S)

    def _should_run(self, container: Container) -> bool:
        record = container.record
        return restart.wanted_at_node_start(
            record.host.restart_policy,
            exit_code=container.exit_code,
            manually_stopped=record.manually_stopped,
        )

    async def _finish_removal(self, container: Container) -> None:
        async with container.lock:
            volumes = container.record.removing_volumes
            await self._lifecycle.remove_locked(container, volumes=volumes)
