"""Everything of the engine's containers, put together and started in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from engine.containers.adopt import Adopter
from engine.containers.building import Steps
from engine.containers.checks import NodeFacts
from engine.containers.chores import Chores
from engine.containers.connecting import Connections
from engine.containers.creating import Creator
from engine.containers.directory import Directory
from engine.containers.filling import Filler
from engine.containers.ground import Grounds, ImageSource
from engine.containers.lifecycle import Lifecycle
from engine.containers.probing import Prober
from engine.containers.prune import Pruner
from engine.containers.records import RecordFiles
from engine.containers.service import Containers, NodeRuntime
from engine.ports import Events
from shoal.aio.supervise import Supervisor
from shoal.clock import Clock
from worker.files.layers import Layers
from worker.logs.api import Logs
from worker.network.local.api import LocalNetworks
from worker.runtime.api import IdMap
from worker.volumes.api import Volumes


class Needs(NamedTuple):
    """What containers call. volumes, networks, logs: None when this node has none."""

    records: Path
    runtime: NodeRuntime
    container_dir: Callable[[str], str]
    images: ImageSource
    events: Events
    facts: NodeFacts
    hostname: str
    clock: Clock
    volumes: Volumes | None = None
    networks: LocalNetworks | None = None
    logs: Logs | None = None
    userns: IdMap | None = None


class ContainerParts(NamedTuple):
    """What the rest of the engine uses."""

    needs: Needs
    containers: Containers
    directory: Directory
    grounds: Grounds
    layers: Layers
    creator: Creator
    lifecycle: Lifecycle
    pruner: Pruner
    steps: Steps
    chores: Chores
    connections: Connections

    async def wait_broken(self) -> None:
        """Wait until an invariant was found broken, and raise that."""
        await self.chores.wait_broken()


@asynccontextmanager
async def run_containers(needs: Needs) -> AsyncIterator[ContainerParts]:
    """Containers that have been taken over and are followed, until the context is left."""
    files = RecordFiles(needs.records)
    chores = Chores()
    containers = Containers(files, needs.runtime, needs.container_dir, needs.events)
    layers = Layers(needs.container_dir)
    empty = needs.records.parent / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    grounds = Grounds(
        containers, needs.images, needs.volumes, needs.networks, str(empty),
        container_dir=needs.container_dir, userns=needs.userns,
    )  # fmt: skip
    filler = Filler(containers, needs.volumes, grounds, layers)
    prober = Prober(containers, needs.runtime, chores, needs.clock)
    lifecycle = Lifecycle(
        containers=containers,
        runtime=needs.runtime,
        grounds=grounds,
        volumes=needs.volumes,
        filler=filler,
        prober=prober,
        facts=needs.facts,
        chores=chores,
    )
    directory = Directory(containers, grounds, needs.container_dir, needs.clock)
    connections = Connections(containers, grounds, needs.networks, needs.container_dir)
    creator = Creator(
        containers=containers,
        runtime=needs.runtime,
        images=needs.images,
        grounds=grounds,
        filler=filler,
        volumes=needs.volumes,
        logs=needs.logs,
        facts=needs.facts,
        hostname=needs.hostname,
        clock=needs.clock,
    )
    adopter = Adopter(
        files=files,
        containers=containers,
        runtime=needs.runtime,
        grounds=grounds,
        lifecycle=lifecycle,
        prober=prober,
        chores=chores,
    )
    steps = Steps(
        containers=containers,
        runtime=needs.runtime,
        creator=creator,
        lifecycle=lifecycle,
        grounds=grounds,
        layers=layers,
    )
    pruner = Pruner(containers, lifecycle, directory, needs.events, needs.clock)
    try:
        await adopter.adopt()
        async with Supervisor() as supervisor:
            supervisor.start("containers", containers.follow)
            yield ContainerParts(
                needs, containers, directory, grounds, layers, creator, lifecycle, pruner, steps,
                chores,
                connections,
            )  # fmt: skip
    finally:
        await chores.close()
