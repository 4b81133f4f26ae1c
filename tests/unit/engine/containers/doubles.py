"""Runtime, networks and volumes that only write down; and the containers over them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from engine.containers.parts import ContainerParts, Needs, run_containers
from engine.containers.requests import CreateRequest, HostConfig
from engine.events import EventBus
from shoal.clock import SystemClock
from shoal.errors import FailedPrecondition, NotFound, SwarmError
from tests.support.fakes import FakeRuntime
from tests.unit.engine.containers.asking import FACTS
from worker.images.model import Image, ImageConfig
from worker.network.local.api import (
    ContainerNetworking,
    Endpoint,
    LocalNetwork,
    Sandbox,
)
from worker.runtime.api import ContainerConfig
from worker.runtime.interactive import ExecConfig, ExecStatus
from worker.volumes.api import Volume, VolumeMount

DEADLINE_S = 40.0
IMAGE_ID = "sha256:" + "1" * 64


class Channel:
    """Output of a check that is there at once."""

    def __init__(self, output: bytes) -> None:
        self._output = output

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        yield 1, self._output

    async def close(self) -> None:
        pass


class Runtime(FakeRuntime):
    """Also configures, and runs health checks: `checks` gives their exit codes in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.checks: list[int] = []
        self.execs: list[ExecConfig] = []

    async def configure(self, config: ContainerConfig) -> None:
        await self.board.enter("configure", config.id)
        self.configs[config.id] = config

    async def exec_start(self, container: str, exec_id: str, config: ExecConfig) -> Channel:
        self.execs.append(config)
        if not self.checks:
            await asyncio.sleep(DEADLINE_S)
        return Channel(b"said")

    async def exec_status(self, exec_id: str) -> ExecStatus:
        raise NotFound(f"exec {exec_id} does not exist")

    async def exec_wait(self, exec_id: str) -> ExecStatus:
        return ExecStatus(id=exec_id, container="", exit_code=self.checks.pop(0))


class Volumes:
    def __init__(self) -> None:
        self.known: dict[str, Volume] = {}
        self.mounted: set[tuple[str, str]] = set()

    async def create(self, name: str = "", **options: Any) -> Volume:
        anonymous = not name
        name = name or f"{len(self.known):064x}"
        volume = Volume(name=name, mountpoint=f"/vol/{name}", created_at_ns=1, anonymous=anonymous)
        return self.known.setdefault(name, volume)

    def list(self) -> tuple[Volume, ...]:
        return tuple(self.known.values())

    def get(self, name: str) -> Volume:
        return self.known[name]

    async def remove(self, name: str, *, force: bool = False, user: str = "") -> None:
        del self.known[name]

    async def mount(
        self, name: str, container: str, *, subpath: str = "", copy_from: str = ""
    ) -> VolumeMount:
        self.mounted.add((name, container))
        return VolumeMount(volume=name, source=f"/vol/{name}/{subpath}".rstrip("/"))

    async def unmount(self, name: str, container: str) -> bool:
        held = (name, container) in self.mounted
        self.mounted.discard((name, container))
        return held


class Networks:
    def __init__(self) -> None:
        self.started: dict[str, ContainerNetworking] = {}
        self.adopted: Mapping[str, ContainerNetworking] | None = None
        self.failure: SwarmError | None = None
        self.names: dict[str, str] = {}

    async def refresh(self, *, patiently: bool = False) -> None:
        pass

    def list(self) -> tuple[LocalNetwork, ...]:
        return tuple(
            LocalNetwork(id=f"{number:064x}", name=name, created_at_ns=1)
            for number, name in enumerate(("bridge", "n1"))
        )

    def resolve(self, ref: str) -> LocalNetwork:
        for network in self.list():
            if ref in {network.name, network.id}:
                return network
        raise NotFound(f"network {ref} not found")

    async def start(self, wanted: ContainerNetworking) -> Sandbox:
        if self.failure is not None:
            raise self.failure
        self.started[wanted.container] = wanted
        names = {network.id: network.name for network in self.list()}
        return Sandbox(
            netns_path=f"/netns/{wanted.container[:4]}",
            endpoints=tuple(
                Endpoint(
                    id="e" * 64, network_id=network, network_name=names[network],
                    container=wanted.container, spec=spec, ipv4_address="172.30.0.2",
                    ipv4_prefix=16, gateway="172.30.0.1", mac_address="02:42:ac:1e:00:02",
                )
                for network, spec in wanted.networks
            ),
            ports=wanted.ports,
            hosts=(("172.30.0.2", wanted.hostname),),
        )  # fmt: skip

    async def stop(self, container: str) -> None:
        self.started.pop(container, None)
        if self.failure is not None:
            raise self.failure

    async def rename(self, container: str, name: str) -> None:
        self.names[container] = name

    def sandbox(self, container: str) -> Sandbox | None:
        return None

    def endpoints(self, network: str) -> tuple[Endpoint, ...]:
        return ()

    async def adopt(self, running: Mapping[str, ContainerNetworking]) -> Sequence[str]:
        self.adopted = running
        return ()


class Images:
    def __init__(self, layer: str) -> None:
        self._layer = layer

    def resolve(self, ref: str) -> Image:
        if ref not in {"busybox", IMAGE_ID}:
            raise NotFound(f"No such image: {ref}:latest")
        return Image(
            id=IMAGE_ID, digest="", names=(), repo_tags=(), created="", size_bytes=7,
            architecture="", os="linux", variant="", layers=(), config=ImageConfig(cmd=("sh",)),
        )  # fmt: skip

    def layers(self, image: Image) -> tuple[str, ...]:
        return (self._layer,)

    def list(self) -> list[Image]:
        return [self.resolve("busybox")]


class World:
    """What outlives the process: one runtime, its networks and volumes, the records."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="shoal-parts-"))
        self.runtime = Runtime()
        self.volumes = Volumes()
        self.networks = Networks()
        self.events = EventBus(SystemClock())
        self.parts: ContainerParts

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ContainerParts]:
        """The process, from its start to its end."""
        (self.base / "layer").mkdir(exist_ok=True)
        needs = Needs(
            records=self.base / "engine/containers",
            runtime=self.runtime,  # type: ignore[arg-type]  # only what is called
            container_dir=lambda container: f"{self.base}/containers/{container}",
            images=Images(str(self.base / "layer")),
            events=self.events,
            facts=FACTS,
            hostname="node-1",
            clock=SystemClock(),
            volumes=self.volumes,  # type: ignore[arg-type]
            networks=self.networks,  # type: ignore[arg-type]
        )
        async with asyncio.timeout(DEADLINE_S), run_containers(needs) as self.parts:
            yield self.parts

    async def create(self, name: str = "web", **fields: Any) -> str:
        host = {
            key: fields.pop(key) for key in tuple(fields) if key in HostConfig.__struct_fields__
        }
        request = CreateRequest(image="busybox", host_config=HostConfig(**host), **fields)
        return (await self.parts.creator.create(request, name))[0]

    async def start(self, name: str = "web", **fields: Any) -> str:
        made = await self.create(name, **fields)
        await self.parts.lifecycle.start(made)
        return made

    def actions(self) -> list[str]:
        return [event.action for event in self.events._history]

    def close(self) -> None:
        shutil.rmtree(self.base)


def busy(port: int) -> FailedPrecondition:
    return FailedPrecondition(f"Bind for 0.0.0.0:{port} failed: port is already allocated")
