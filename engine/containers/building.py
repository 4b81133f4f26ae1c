"""Containers of builds: one for each step, visible in `docker ps`, removed with its step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

from engine.containers.creating import Creator
from engine.containers.ground import Grounds
from engine.containers.lifecycle import Lifecycle
from engine.containers.requests import CreateRequest, HostConfig, UlimitRequest
from engine.containers.service import Containers, NodeRuntime
from engine.containers.updates import CHANGEABLE
from engine.ports import BuildStep, StepContainer
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound
from worker.files.layers import Layers

_LIMITS: Mapping[str, str] = {name: field for field, name in CHANGEABLE.items()} | {
    "pids_max": "pids_limit",
    "shm_size_bytes": "shm_size",
}


class Steps:
    """Implements `engine.ports.BuildContainers`."""

    def __init__(
        self,
        *,
        containers: Containers,
        runtime: NodeRuntime,
        creator: Creator,
        lifecycle: Lifecycle,
        grounds: Grounds,
        layers: Layers,
    ) -> None:
        self._containers = containers
        self._runtime = runtime
        self._creator = creator
        self._lifecycle = lifecycle
        self._grounds = grounds
        self._layers = layers

    async def create(self, step: BuildStep) -> StepContainer:
        """Make the container of a step; nothing runs. Raises: SwarmError."""
        container = await self._creator.create_from(_request(step), step.image)
        directory = self._layers.directory(container.id)
        return StepContainer(
            container.id,
            f"{directory}/upper",
            f"{directory}/rootfs",
            self._grounds.layers(container.record),
        )

    async def run(self, container: str) -> AsyncIterator[tuple[int, bytes]]:
        """Run it to its end, giving what it writes. Raises: SwarmError when it does not start."""
        channel = await self._runtime.attach(container, stdin=False, stdout=True, stderr=True)
        try:
            await self._lifecycle.start(container)
            async with aclosing(channel.output()) as output:  # type: ignore[type-var]
                async for piece in output:
                    yield piece
        finally:
            await channel.close()

    async def exit_code(self, container: str) -> int:
        """How it ended. Raises: FailedPrecondition when it could not be started."""
        one = self._containers.find(container)
        if one.record.failure:
            raise FailedPrecondition(one.record.failure)
        return (await self._containers.wait(container)).code

    def mounted(self, container: str) -> AbstractAsyncContextManager[str]:
        """Its root file system at a private place, while inside. Raises: SwarmError."""
        record = self._containers.find(container).record
        return self._layers.root(record.id, self._grounds.layers(record))

    async def remove(self, container: str) -> None:
        """Remove it. Idempotent. Raises: SwarmError."""
        try:
            await self._lifecycle.remove(container, force=True, volumes=True)
        except NotFound:
            return


def _request(step: BuildStep) -> CreateRequest:
    """A step in the words of `docker create`. Raises: InvalidArgument."""
    limits: dict[str, Any] = {}
    for name, value in step.limits.items():
        if name not in _LIMITS:
            raise InvalidArgument(f"limits: a build step has no limit {name}")
        limits[_LIMITS[name]] = value
    return CreateRequest(
        image=step.image.id if step.image else "",
        entrypoint=list(step.args[:1]),
        cmd=list(step.args[1:]),
        env=list(step.env),
        working_dir=step.cwd,
        user=step.user,
        labels=dict(step.labels),
        host_config=HostConfig(
            network_mode=step.network_mode,
            extra_hosts=list(step.extra_hosts) or None,
            cgroup_parent=step.cgroup_parent,
            ulimits=[
                UlimitRequest(name=name, soft=soft, hard=hard) for name, soft, hard in step.ulimits
            ]
            or None,
            **limits,
        ),
    )
