"""`docker commit`: an image from what a container has changed.

A container that runs is paused meanwhile, unless asked not to. That is noted in a file before, so
that the next process lets go a container whose commit a crash has cut short. The commit itself
leaves nothing behind when it fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from engine.containers.container import Container
from engine.containers.defaults import health_check, with_image, words
from engine.containers.parts import ContainerParts
from engine.containers.requests import Config, CreateRequest
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, SwarmError
from shoal.model.row import Row
from worker.images.changes import apply_changes
from worker.images.model import Image, ImageConfig
from worker.images.oci import health_document

_log = structlog.get_logger()
_NO_TRIGGERS = {
    "ONBUILD": "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
    "FROM": "FROM isn't allowed as an ONBUILD trigger",
    "MAINTAINER": "MAINTAINER isn't allowed as an ONBUILD trigger",
}


class ImageMaker(Protocol):
    """What commits need of images; part of `engine.ports.Images`."""

    def resolve(self, ref: str) -> Image:
        """Raises: NotFound."""
        ...

    async def commit(
        self,
        upper: str,
        base: Image | None,
        config: bytes,
        *,
        comment: str = "",
        author: str = "",
        created_by: str = "",
        name: str = "",
    ) -> Image:
        """One more layer on top of `base`. Raises: ResourceExhausted, InvalidArgument."""
        ...


class CommitWish(Row, frozen=True):
    """What is asked for. config: fields to set over the container's; changes: Dockerfile lines."""

    config: CreateRequest
    name: str = ""
    comment: str = ""
    author: str = ""
    changes: tuple[str, ...] = ()
    pause: bool = True


class Commits:
    """Makes images from containers. `recover` once at the start of the process."""

    def __init__(self, parts: ContainerParts, images: ImageMaker, notes: Path) -> None:
        """notes: a directory of our own, in which containers paused by us are noted."""
        self._parts = parts
        self._runtime = parts.needs.runtime
        self._images = images
        self._notes = notes

    async def recover(self) -> None:
        """Let go what a commit that was cut short has left paused. Raises: OSError."""
        self._notes.mkdir(parents=True, exist_ok=True, mode=0o700)
        for note in sorted(self._notes.iterdir()):
            await self._unpause(note.name)
            note.unlink()

    async def commit(self, ref: str, wish: CommitWish) -> Image:
        """Make the image. Raises: NotFound, InvalidArgument, ResourceExhausted."""
        container = self._parts.containers.find(ref)
        record = container.record
        base = self._images.resolve(record.image_id) if record.image_id else None
        document = document_of(effective(record.config, wish), triggers(record.config, wish))
        upper = f"{self._parts.layers.directory(container.id)}/upper"
        async with container.lock, self._still(container, pause=wish.pause):
            image = await self._images.commit(
                upper,
                base,
                document,
                comment=wish.comment,
                author=wish.author,
                created_by=" ".join(words(record.config.cmd) or ()),
                name=wish.name,
            )
        told = {"comment": wish.comment, "imageID": image.id, "imageRef": wish.name}
        self._parts.containers.publish(container, "commit", told)
        return image

    @asynccontextmanager
    async def _still(self, container: Container, *, pause: bool) -> AsyncIterator[None]:
        if not pause or container.state != "running":
            yield
            return
        note = self._notes / container.id
        await asyncio.to_thread(note.touch)
        try:
            with suppress(FailedPrecondition):  # it has just ended
                await self._runtime.pause(container.id)
            yield
        finally:
            await self._unpause(container.id)
            await asyncio.to_thread(note.unlink, missing_ok=True)

    async def _unpause(self, container: str) -> None:
        try:
            await self._runtime.unpause(container)
        except (FailedPrecondition, NotFound):  # it has ended
            return
        except SwarmError as error:
            _log.error("container.left_paused", id=container, reason=str(error))


def effective(config: Config, wish: CommitWish) -> ImageConfig:
    """What containers of the new image run by default. Raises: InvalidArgument."""
    merged = image_config(with_image(wish.config, image_config(config)))
    return apply_changes(merged, [line for line in wish.changes if not _trigger(line)])


def triggers(config: Config, wish: CommitWish) -> list[str]:
    """What builds from the new image do first. Raises: InvalidArgument."""
    added = [line for line in map(_trigger, wish.changes) if line]
    for line in added:
        refusal = _NO_TRIGGERS.get(line.split()[0].upper())
        if refusal:
            raise InvalidArgument(refusal)
    return [*(wish.config.on_build or config.on_build or ()), *added]


def _trigger(line: str) -> str:
    word, _, rest = line.strip().partition(" ")
    return rest.strip() if word.upper() == "ONBUILD" else ""


def image_config(config: Config) -> ImageConfig:
    """A container's configuration as an image has it."""
    entrypoint, command = words(config.entrypoint), words(config.cmd)
    check = config.healthcheck
    return ImageConfig(
        env=tuple(config.env or ()),
        cmd=None if command is None else tuple(command),
        entrypoint=None if entrypoint is None else tuple(entrypoint),
        user=config.user,
        working_dir=config.working_dir,
        stop_signal=config.stop_signal,
        exposed_ports=tuple(config.exposed_ports or ()),
        volumes=tuple(config.volumes or ()),
        labels=dict(config.labels or {}),
        healthcheck=None if check is None else health_check(check),
        shell=tuple(config.shell) if config.shell else None,
    )


def document_of(config: ImageConfig, on_build: Sequence[str]) -> bytes:
    """The `config` object of an image, in Docker's spelling."""
    check = config.healthcheck
    document: dict[str, Any] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Env": list(config.env),
        "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
        "Cmd": None if config.cmd is None else list(config.cmd),
        "Healthcheck": None if check is None else health_document(check),
        "Volumes": {path: {} for path in config.volumes},
        "WorkingDir": config.working_dir,
        "Labels": config.labels,
        "StopSignal": config.stop_signal,
        "Shell": None if config.shell is None else list(config.shell),
        "OnBuild": list(on_build),
    }
    return msgspec.json.encode({name: value for name, value in document.items() if value})
