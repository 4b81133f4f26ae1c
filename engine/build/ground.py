"""What builds call: images, registries, containers, files; and one build's share of them."""

from __future__ import annotations

import os
import posixpath
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from engine.build.context import Contexts
from engine.build.output import FetchProgress, Output, short
from engine.build.probing import Made
from engine.build.request import BuildRequest
from engine.containers import platforms
from engine.ports import BuildContainers, BuildStep, StepContainer
from shoal.errors import NotFound
from worker.files.downloads import download
from worker.files.jobs import RestPlace, TreePlace
from worker.files.service import Files
from worker.images import oci
from worker.images.model import Image

LABEL = "dev.shoal.build"
"""On every container of a build that goes with its step; what a crash left is known by it."""


class BuildImages(Protocol):
    """What a build needs of the image store."""

    def resolve(self, ref: str) -> Image:
        """Raises: NotFound."""
        ...

    async def made_from(self, parent: str) -> list[Made]:
        """Images that a step made here on top of that one; "": of nothing."""
        ...

    async def config(self, image: Image) -> Mapping[str, Any]:
        """The image's `config` object in Docker's spelling."""
        ...

    async def commit(
        self,
        upper: str,
        base: Image | None,
        config: bytes,
        *,
        author: str = "",
        created_by: str = "",
    ) -> Image:
        """One more step on `base`, see `engine.ports.Images`."""
        ...

    async def tag(self, image: Image, name: str) -> None:
        """One more name. Raises: SwarmError."""
        ...

    def lease(self, image: Image) -> Any:
        """An asynchronous context: the image stays while inside."""
        ...


class Pull(Protocol):
    """Brings an image here, telling its progress to the build's output."""

    async def __call__(self, ref: str, platform: str, output: Output) -> Image:
        """Raises: SwarmError."""
        ...


class Ground:
    """One build's. What it makes for itself goes with `opened`."""

    def __init__(
        self,
        request: BuildRequest,
        output: Output,
        *,
        images: BuildImages,
        pull: Pull,
        containers: BuildContainers,
        files: Files,
        contexts: Contexts,
    ) -> None:
        self.request = request
        self.output = output
        self.images = images
        self.containers = containers
        self.files = files
        self._pull = pull
        self._contexts = contexts
        self._stack = AsyncExitStack()
        self._roots: dict[str, RestPlace] = {}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """For as long as the build runs."""
        async with self._stack:
            yield

    async def image(self, ref: str, platform: str = "") -> Image:
        """A base: of this node, or pulled; it stays while the build runs. Raises: SwarmError."""
        platform = platform or self.request.platform
        found: Image | None = None
        if not self.request.pull:
            try:
                found = self.images.resolve(ref)
                platforms.check(found, ref, platform, oci.host_platform(os.uname().machine))
            except NotFound:
                found = None
        if found is None:
            found = await self._pull(ref, platform, self.output)
        return await self.keep(found)

    async def keep(self, image: Image) -> Image:
        """The same, which stays while the build runs."""
        await self._stack.enter_async_context(self.images.lease(image))
        return image

    async def root_of(self, image: Image | None) -> RestPlace:
        """The files of an image, to copy from. Raises: SwarmError."""
        key = "" if image is None else image.id
        if key not in self._roots:
            step = await self.containers.create(self.step(image, ("#(nop)",), {}))
            self._stack.push_async_callback(self.containers.remove, step.id)
            self._roots[key] = self.place(step)
        return self._roots[key]

    async def fetch(self, url: str, name: str) -> TreePlace:
        """A directory with what a URL leads to, as the file `name`. Raises: SwarmError."""
        directory = await self._stack.enter_async_context(self._contexts.scratch())
        told = FetchProgress(self.output)
        await download(url, directory / name, told.come)
        await told.done()
        return TreePlace(str(directory))

    def place(self, step: StepContainer) -> RestPlace:
        """Where the files of a step's container can be worked on."""
        return RestPlace(posixpath.dirname(step.upper), step.layers)

    def step(
        self,
        image: Image | None,
        args: tuple[str, ...],
        config: Mapping[str, Any],
        env: Iterable[str] = (),
    ) -> BuildStep:
        """A container's description with what the call asked for."""
        request = self.request
        return BuildStep(
            image=image,
            args=args,
            env=(*(config.get("Env") or ()), *env),
            cwd=str(config.get("WorkingDir") or ""),
            user=str(config.get("User") or ""),
            shell_text=" ".join(args),
            network_mode=request.network_mode,
            labels={LABEL: "1"} if request.remove else {},
            extra_hosts=request.extra_hosts,
            limits=request.limits,
            cgroup_parent=request.cgroup_parent,
            ulimits=tuple((one.name, one.soft, one.hard) for one in request.ulimits),
        )

    async def finished(self, step: StepContainer) -> None:
        """A step is done with its container."""
        if self.request.remove:
            await self.containers.remove(step.id)
            await self.output.line(f"Removing intermediate container {short(step.id)}")
