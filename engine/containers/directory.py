"""Which containers there are, for the other parts of the engine: images, volumes, networks, builds.

Users of images and volumes are read from the records each time, never counted.
"""

from __future__ import annotations

import asyncio
import builtins
import os
from collections.abc import Callable, Mapping

from engine.containers import listing
from engine.containers.ground import Grounds
from engine.containers.service import Containers
from engine.ports import ContainerView
from shoal.clock import Clock

BLOCK_BYTES = 512


class Directory:
    """Implements `engine.ports.ContainerDirectory`."""

    def __init__(
        self,
        containers: Containers,
        grounds: Grounds,
        container_dir: Callable[[str], str],
        clock: Clock,
    ) -> None:
        self._containers = containers
        self._grounds = grounds
        self._container_dir = container_dir
        self._clock = clock

    def list(self) -> tuple[ContainerView, ...]:
        """Every container, newest first."""
        now_ns = self._clock.now_ns()
        return tuple(listing.view(one, now_ns) for one in self._containers.all())

    def resolve(self, ref: str) -> ContainerView:
        """One of them. Raises: NotFound, InvalidArgument."""
        return listing.view(self._containers.find(ref), self._clock.now_ns())

    async def sizes(self, container: str) -> tuple[int, int]:
        """Bytes of the writable layer, and of the whole root file system. Raises: NotFound."""
        record = self._containers.find(container).record
        upper = f"{self._container_dir(record.id)}/upper"
        written = await asyncio.to_thread(tree_bytes, upper)
        return written, written + self._grounds.image_bytes(record)

    async def refresh_networks(self, container: str) -> None:
        """Its networks were changed by connect or disconnect: write the record. Raises: OSError."""
        one = self._containers.find(container)
        sandbox = one.record.sandbox
        if sandbox is not None:
            sandbox = self._grounds.sandbox_now(one.record, sandbox)
            await self._containers.save(one, sandbox=sandbox)

    async def image_users(self) -> Mapping[str, frozenset[str]]:
        """Container ids by image id: `engine.ports.ImageUsers`."""
        return self._users(lambda view: (view.image_id,))

    async def volume_users(self) -> Mapping[str, frozenset[str]]:
        """Container ids by volume name: `worker.volumes.api.VolumeUsers`."""
        users = dict(self._users(lambda view: view.volumes))
        for container, names in self._containers.unreadable.items():
            for name in names:
                users[name] = users.get(name, frozenset()) | {container}
        return users

    async def running_volume_users(self) -> Mapping[str, frozenset[str]]:
        """The same, of containers that have a process."""
        running = ("running", "paused")
        return self._users(lambda view: view.volumes if view.state in running else ())

    def _users(
        self, uses: Callable[[ContainerView], builtins.list[str] | frozenset[str] | tuple[str, ...]]
    ) -> Mapping[str, frozenset[str]]:
        users: dict[str, set[str]] = {}
        for view in self.list():
            for used in uses(view):
                users.setdefault(used, set()).add(view.id)
        return {used: frozenset(ids) for used, ids in users.items()}


def tree_bytes(directory: str) -> int:
    """Space a tree takes on its disk; what vanishes meanwhile is not counted."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(f"{parent}/{name}").st_blocks * BLOCK_BYTES
            except OSError:
                continue
    return total
