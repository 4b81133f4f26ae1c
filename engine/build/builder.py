"""All stages of a build in order; the last one's image gets the names.

At most BUILDS_MAX builds run at once, others wait their turn. Whatever ends a build, its containers
and its context are removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from engine.build import language
from engine.build.arguments import Arguments, StageArguments
from engine.build.context import Contexts
from engine.build.expansion import expand, expand_word
from engine.build.ground import LABEL, BuildImages, Ground, Pull
from engine.build.language import Dockerfile, Instruction, Stage
from engine.build.output import Output
from engine.build.request import BuildRequest
from engine.build.stage import StageAtWork
from engine.ports import BuildContainers, ContainerView
from shoal.errors import InvalidArgument, NotFound
from worker.files.jobs import Place, TreePlace
from worker.files.service import Files
from worker.images.model import Image

BUILDS_MAX = 4
SCRATCH = "scratch"


class Prepared:
    """A build whose context is here and whose Dockerfile can be read."""

    def __init__(self, request: BuildRequest, dockerfile: Dockerfile, context: TreePlace) -> None:
        self.request = request
        self.dockerfile = dockerfile
        self.context = context


class Builder:
    """One per node."""

    def __init__(
        self, *, images: BuildImages, containers: BuildContainers, files: Files, contexts: Contexts
    ) -> None:
        self._images = images
        self._containers = containers
        self._files = files
        self._contexts = contexts
        self._turns = asyncio.Semaphore(BUILDS_MAX)

    async def open(self, containers: Iterable[ContainerView]) -> None:
        """Remove what builds left behind that ended with their process. Raises: OSError."""
        await asyncio.to_thread(self._contexts.open)
        for one in containers:
            if LABEL in one.labels:
                await self._containers.remove(one.id)

    @asynccontextmanager
    async def prepared(
        self, request: BuildRequest, tar: AsyncIterable[bytes]
    ) -> AsyncIterator[Prepared]:
        """Take a context in and read its Dockerfile. Raises: InvalidArgument."""
        async with self._turns, self._contexts.received(tar) as context:
            text = await self._contexts.dockerfile(context, request.dockerfile)
            dockerfile = language.parse_dockerfile(text, request.dockerfile)
            dockerfile.until(request.target)
            yield Prepared(request, dockerfile, context)

    async def build(self, prepared: Prepared, output: Output, pull: Pull) -> Image:
        """Carry it out. Raises: SwarmError."""
        ground = Ground(
            prepared.request, output,
            images=self._images, pull=pull, containers=self._containers, files=self._files,
            contexts=self._contexts,
        )  # fmt: skip
        async with ground.opened():
            image = await _Build(prepared, ground).run()
            await output.done(image.id)
            for tag in prepared.request.tags:
                name = tag.with_default_tag()
                await self._images.tag(image, str(name))
                await output.tagged(name.familiar())
            return image


class _Build:
    """One build at work."""

    def __init__(self, prepared: Prepared, ground: Ground) -> None:
        request, dockerfile = prepared.request, prepared.dockerfile
        self._ground = ground
        self._output = ground.output
        self._context: Place = prepared.context
        self._dockerfile = dockerfile
        self._stages = _with_labels(dockerfile.until(request.target), request.labels)
        self._arguments = Arguments(request.build_args)
        self._results: list[Image | None] = []
        self._configs: list[Mapping[str, Any]] = []
        self._step = 0
        self._steps = len(dockerfile.metas) + sum(1 + len(one.steps) for one in self._stages)

    async def run(self) -> Image:
        """Raises: SwarmError."""
        for name, default in self._dockerfile.metas:
            await self._say_step(f"ARG {name}" if default is None else f"ARG {name}={default}")
            self._arguments.declare_meta(
                name,
                None
                if default is None
                else expand_word(default, self._arguments.metas, self._dockerfile.escape),
            )
        allowed = self._chain(self._ground.request.cache_from)
        for stage in self._stages:
            await self._say_step(stage.start.text)
            at_work = await self._begin(stage, allowed)
            for one in stage.steps:
                await self._say_step(one.text)
                await at_work.carry_out(one)
            self._results.append(at_work.image)
            self._configs.append(at_work.config)
        image = self._results[-1]
        if image is None:
            raise InvalidArgument("No image was generated. Is your Dockerfile empty?")
        if unused := self._arguments.unused():
            listed = " ".join(unused)
            await self._output.line(
                f"[Warning] One or more build-args [{listed}] were not consumed"
            )
        return image

    async def _say_step(self, text: str) -> None:
        self._step += 1
        await self._output.say(f"Step {self._step}/{self._steps} : {text}")
        await self._output.say("\n")

    async def _begin(self, stage: Stage, allowed: frozenset[str] | None) -> StageAtWork:
        start = expand(stage.start, self._arguments.metas, self._dockerfile.escape)
        base, config = await self._base(start.args[0], start.flags.get("platform", ""))
        at_work = StageAtWork(
            self._ground,
            base,
            config,
            StageArguments(self._arguments),
            escape=self._dockerfile.escape,
            context=self._context,
            origin=self._origin,
            allowed=allowed,
        )
        await at_work.say_image()
        await self._run_triggers(at_work)
        return at_work

    async def _base(self, ref: str, platform: str) -> tuple[Image | None, Mapping[str, Any]]:
        if not ref:
            raise InvalidArgument(f"base name ({ref}) should not be blank")
        at = language.find_stage(self._stages[: len(self._results)], ref)
        if at is not None and not ref.isdecimal():
            return self._results[at], self._configs[at]
        if ref.lower() == SCRATCH:
            return None, {}
        image = await self._ground.image(ref, platform)
        return image, await self._ground.images.config(image)

    async def _run_triggers(self, at_work: StageAtWork) -> None:
        triggers = at_work.triggers
        if not triggers:
            return
        ending = "s" if len(triggers) > 1 else ""
        await self._output.line(f"# Executing {len(triggers)} build trigger{ending}")
        for text in triggers:
            await at_work.carry_out(language.parse_trigger(text))

    async def _origin(self, ref: str) -> Place:
        """The files `--from` means: an earlier stage's, or an image's."""
        at = language.find_stage(self._stages[: len(self._results)], ref)
        if at is not None:
            return await self._ground.root_of(self._results[at])
        if ref.isascii() and ref.isdecimal():
            raise InvalidArgument(
                f"invalid from flag value {ref}: refers to current or later build stage"
            )
        return await self._ground.root_of(await self._ground.image(ref))

    def _chain(self, refs: tuple[str, ...]) -> frozenset[str] | None:
        """The images the cache may answer with: those and all they were made from here."""
        if not refs:
            return None
        found: set[str] = set()
        for ref in refs:
            try:
                image = self._ground.images.resolve(ref)
                while image.id not in found:
                    found.add(image.id)
                    if image.parent:
                        image = self._ground.images.resolve(image.parent)
            except NotFound:
                continue
        return frozenset(found)


def _with_labels(stages: tuple[Stage, ...], labels: Mapping[str, str]) -> tuple[Stage, ...]:
    """The labels of the call as a last instruction."""
    if not labels:
        return stages
    words = " ".join(f"{name}={value}" for name, value in sorted(labels.items()))
    args = tuple(word for pair in sorted(labels.items()) for word in pair)
    label = Instruction(name="LABEL", text=f"LABEL {words}", line=0, args=args, literal=True)
    last = stages[-1]
    return (*stages[:-1], last.replaced(steps=(*last.steps, label)))
