"""One stage at work: each instruction makes an image on top of the last.

Once a step was not found in the cache, none of the stage's later ones is looked for there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from engine.build import configuration, copying
from engine.build.arguments import StageArguments
from engine.build.expansion import expand
from engine.build.ground import Ground
from engine.build.language import Instruction, arguments_of
from engine.build.output import short
from engine.build.probing import find_equal
from engine.ports import StepContainer
from shoal.errors import FailedPrecondition
from worker.files.jobs import Place
from worker.images.model import Image

Origin = Callable[[str], Awaitable[Place]]
"""From the value of `--from` to the files it stands for."""


class StageAtWork:
    """Its image so far, its configuration, its arguments. base None: from nothing."""

    def __init__(
        self,
        ground: Ground,
        base: Image | None,
        config: Mapping[str, Any],
        arguments: StageArguments,
        *,
        escape: str,
        context: Place,
        origin: Origin,
        allowed: frozenset[str] | None,
    ) -> None:
        """allowed: ids of images the cache may answer with; None: any."""
        self.image = base
        self.config, self.triggers = configuration.from_base(config)
        self._ground = ground
        self._arguments = arguments
        self._escape = escape
        self._context = context
        self._origin = origin
        self._allowed = allowed
        self._author = ""
        self._cmd_is_set = False
        self._may_probe = not ground.request.no_cache

    async def carry_out(self, written: Instruction) -> None:
        """One instruction, as it stands in the file. Raises: SwarmError."""
        variables = {**self._arguments.visible(), **configuration.environment(self.config)}
        one = expand(written, variables, self._escape)
        match one.name:
            case "RUN":
                await self._run(one)
            case "COPY" | "ADD":
                await self._copy(one)
            case _:
                await self._configure(one)

    async def say_image(self) -> None:
        """Where the stage stands."""
        await self._ground.output.line(f" ---> {short(self.image.id) if self.image else ''}")

    # -- instructions -----------------------------------------------------------------------

    async def _configure(self, one: Instruction) -> None:
        if one.name == "ARG":
            self._arguments.declare(arguments_of(one))
        if one.name == "MAINTAINER":
            self._author = one.args[0]
        config = configuration.changed(self.config, one, cmd_is_set=self._cmd_is_set)
        self._cmd_is_set = self._cmd_is_set or one.name == "CMD"
        created_by = self._comment(configuration.summary(one, config))
        if one.name == "WORKDIR":
            await self._make_working_dir(config, created_by)
        elif not await self._from_cache(config, created_by):
            await self._commit("", config, created_by)

    async def _make_working_dir(self, config: dict[str, Any], created_by: str) -> None:
        if await self._from_cache(config, created_by):
            return
        step = await self._container(created_by)
        try:
            place = self._ground.place(step)
            made = await copying.make_directory(self._ground.files, place, config["WorkingDir"])
            await self._commit(step.upper if made else "", config, created_by, say=False)
        finally:
            await self._discard(step)
        await self.say_image()

    async def _copy(self, one: Instruction) -> None:
        origin = one.flags.get("from")
        place = self._context if origin is None else await self._origin(origin)
        copy = await copying.survey(
            self._ground.files, place, one, str(self.config.get("WorkingDir") or ""),
            is_context=origin is None, fetch=self._ground.fetch,
        )  # fmt: skip
        created_by = f"{self._comment('')}{copy.summary()}"
        if await self._from_cache(self.config, created_by):
            return
        step = await self._container(created_by)
        try:
            target = self._ground.place(step)
            await copying.carry_out(self._ground.files, copy, target)
            await self._commit(step.upper, self.config, created_by, say=False)
        finally:
            await self._discard(step)
        await self.say_image()

    async def _run(self, one: Instruction) -> None:
        args = self._command(one)
        env, shown = self._arguments.for_run(configuration.environment(self.config))
        text = " ".join(args)
        created_by = " ".join([f"|{len(shown)}", *shown, text]) if shown else text
        if await self._from_cache(self.config, created_by):
            return
        ground = self._ground
        step = await ground.containers.create(ground.step(self.image, args, self.config, env))
        try:
            await ground.output.line(f" ---> Running in {short(step.id)}")
            async with aclosing(ground.containers.run(step.id)) as pieces:  # type: ignore[type-var]
                async for stream, data in pieces:
                    await ground.output.command_wrote(stream, data)
            code = await ground.containers.exit_code(step.id)
            if code:
                said = f"The command '{text}' returned a non-zero code: {code}"
                raise FailedPrecondition(said, code=code)
            await self._commit(step.upper, self.config, created_by, say=False)
        except BaseException:
            await self._discard(step)
            raise
        await ground.finished(step)
        await self.say_image()

    def _command(self, one: Instruction) -> tuple[str, ...]:
        if one.json:
            return one.args
        text = one.args[0]
        if one.heredocs:
            alone = len(one.heredocs) == 1 and text.strip().lstrip("<-").strip("'\"") == (
                one.heredocs[0].name
            )
            documents = "".join(f"{each.content}{each.name}\n" for each in one.heredocs)
            text = one.heredocs[0].content if alone else f"{text}\n{documents}"
        return (*configuration.shell(self.config), text)

    # -- images -----------------------------------------------------------------------------

    def _comment(self, summary: str) -> str:
        return f"{' '.join(configuration.shell(self.config))} #(nop) {summary}"

    async def _from_cache(self, config: Mapping[str, Any], created_by: str) -> bool:
        if not self._may_probe:
            return False
        images = self._ground.images
        made = await images.made_from("" if self.image is None else self.image.id)
        if self._allowed is not None:
            made = [one for one in made if one.id in self._allowed]
        found = find_equal(made, config, created_by)
        if found is None:
            self._may_probe = False
            return False
        self.image = await self._ground.keep(images.resolve(found))
        self.config = dict(config)
        await self._ground.output.line(" ---> Using cache")
        await self.say_image()
        return True

    async def _commit(
        self, upper: str, config: Mapping[str, Any], created_by: str, *, say: bool = True
    ) -> None:
        image = await self._ground.images.commit(
            upper,
            self.image,
            msgspec.json.encode(config),
            author=self._author,
            created_by=created_by,
        )
        self.image = await self._ground.keep(image)
        self.config = dict(config)
        if say:
            await self.say_image()

    async def _container(self, created_by: str) -> StepContainer:
        """A container nothing will run in."""
        ground = self._ground
        return await ground.containers.create(ground.step(self.image, (created_by,), self.config))

    async def _discard(self, step: StepContainer) -> None:
        """Remove it, also when the build was cancelled."""
        await asyncio.shield(self._ground.containers.remove(step.id))
