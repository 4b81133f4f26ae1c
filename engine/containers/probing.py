"""Has the health of every running container checked that has a check (`worker.health`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from engine.containers.chores import Chores
from engine.containers.container import Container
from engine.containers.defaults import health_check
from engine.containers.service import Containers
from shoal.clock import Clock
from worker.health.core import Health, check_of
from worker.health.probing import Probing
from worker.runtime.interactive import InteractiveRuntime


class Prober:
    """One loop per running container that has a check."""

    def __init__(
        self, containers: Containers, runtime: InteractiveRuntime, chores: Chores, clock: Clock
    ) -> None:
        self._containers = containers
        self._probing = Probing(runtime, clock)
        self._chores = chores
        self._loops: dict[str, asyncio.Task[None]] = {}

    def begin(self, container: Container) -> None:
        """The container runs: check it from now on."""
        config = container.record.config
        asked = config.healthcheck
        check = None if asked is None else check_of(health_check(asked), config.shell)
        if check is None:
            container.health = None
            return
        container.health = Health()
        started_ns = container.status.started_at_ns if container.status else 0
        work = self._probing.follow(_Checked(container, self._containers), check, started_ns)
        self._loops[container.id] = self._chores.begin(f"health of {container.id}", work)

    async def end(self, container: Container) -> None:
        """The container has ended: its last health stays to be seen."""
        loop = self._loops.pop(container.id, None)
        if loop is not None:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)


class _Checked:
    """A container of the engine. Implements `worker.health.probing.Checked`."""

    def __init__(self, container: Container, containers: Containers) -> None:
        self._container = container
        self._containers = containers

    @property
    def id(self) -> str:
        return self._container.id

    @property
    def health(self) -> Health:
        return self._container.health or Health()

    @property
    def lives(self) -> bool:
        return self._container.has_process

    @property
    def answers(self) -> bool:
        return self._container.state == "running"

    async def begins(self, exec_id: str) -> None:
        """Nothing to keep: the engine's containers begin their checks anew."""

    async def judged(self, health: Health) -> None:
        before = self.health.status
        self._container.health = health
        if health.status != before:
            self.told(f"health_status: {health.status}", {})
        self._container.wake()

    def told(self, action: str, attributes: Mapping[str, str]) -> None:
        self._containers.publish(self._container, action, attributes)
