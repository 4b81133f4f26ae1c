"""The files of containers: looked at, copied in and out, exported, compared with their image.

A container that runs is seen through its own mount namespace. One that does not is laid out for
the one who asks, with its volumes, and holds its lock meanwhile: it cannot start under them. Tasks
that have not started are left alone, as their agent starts them without asking.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from engine.containers.container import Container
from engine.containers.parts import ContainerParts
from shoal.errors import FailedPrecondition, NotFound
from worker.files.changes import Change
from worker.files.jobs import Bind, Found, LivePlace, Place, RestPlace
from worker.files.service import Files, Reading
from worker.runtime.lean.files import BUNDLE_FILE

_NOT_FILES = ("/proc", "/sys", "/dev")
_ETC_FILES = ("hosts", "hostname", "resolv.conf")


class _Mount(msgspec.Struct, frozen=True):
    destination: str
    type: str = ""


class _Bundle(msgspec.Struct, frozen=True):
    annotations: dict[str, str] = {}
    mounts: tuple[_Mount, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Directories of the layers, topmost first."""
        return tuple(self.annotations.get("dev.shoal.layers", "").split("\n"))

    @property
    def targets(self) -> tuple[str, ...]:
        """Where something is mounted that holds files of people."""
        return tuple(
            mount.destination
            for mount in self.mounts
            if mount.type in {"bind", "tmpfs"} and not mount.destination.startswith(_NOT_FILES)
        )


class ContainerFiles:
    """What `docker cp`, `diff` and `export` ask for."""

    def __init__(self, parts: ContainerParts, files: Files) -> None:
        self._containers = parts.containers
        self._runtime = parts.needs.runtime
        self._grounds = parts.grounds
        self._layers = parts.layers
        self._files = files

    async def stat(self, ref: str, path: str) -> Found:
        """What is at a path. Raises: NotFound, InvalidArgument, FailedPrecondition."""
        container = self._containers.find(ref)
        async with self._place(container) as place:
            with _told_of(path, ref):
                return await self._files.stat(place, path)

    @asynccontextmanager
    async def read(self, ref: str, path: str) -> AsyncIterator[Reading]:
        """A path and all below it. Raises: as `stat`."""
        container = self._containers.find(ref)
        async with self._place(container) as place:
            with _told_of(path, ref):
                async with self._files.read(place, path) as reading:
                    self._containers.publish(container, "archive-path")
                    yield reading

    async def write(
        self,
        ref: str,
        path: str,
        tar: AsyncIterable[bytes],
        *,
        keep_kinds: bool,
        as_user: bool,
    ) -> None:
        """Unpack a tar into a directory. as_user: what it holds is the container's user's.

        Raises: as `stat`; PermissionDenied, ResourceExhausted.
        """
        container = self._containers.find(ref)
        owner = container.record.config.user if as_user else ""
        async with self._place(container) as place:
            with _told_of(path, ref):
                await self._files.write(place, path, tar, keep_kinds=keep_kinds, owner=owner)
        self._containers.publish(container, "extract-to-dir")

    @asynccontextmanager
    async def export(self, ref: str) -> AsyncIterator[Reading]:
        """The whole root, without what is mounted in it. Raises: NotFound, FailedPrecondition."""
        container = self._containers.find(ref)
        async with (
            self._place(container, mounts=False) as place,
            self._files.read(place, "/", content_only=True) as reading,
        ):
            self._containers.publish(container, "export")
            yield reading

    async def changes(self, ref: str) -> list[Change]:
        """What it has changed of its image. Raises: NotFound, FailedPrecondition."""
        container = self._containers.find(ref)
        bundle = await self._bundle(container)
        return await self._files.changes(f"{self._directory(container)}/upper", bundle.layers)

    # -- places -----------------------------------------------------------------------------

    @asynccontextmanager
    async def _place(self, container: Container, *, mounts: bool = True) -> AsyncIterator[Place]:
        bundle = await self._bundle(container)
        if not container.has_process:
            _check_rests(container)
            async with container.lock:
                if not container.has_process:
                    async with self._at_rest(container, bundle, mounts=mounts) as rest:
                        yield rest
                    return
        async with self._live(container, bundle.targets if mounts else ()) as live:
            yield live

    @asynccontextmanager
    async def _at_rest(
        self, container: Container, bundle: _Bundle, *, mounts: bool
    ) -> AsyncIterator[RestPlace]:
        if container.removed:
            raise NotFound(f"No such container: {container.id}")
        directory = self._directory(container)
        place = RestPlace(directory, bundle.layers, read_only=container.record.host.readonly_rootfs)
        if not mounts:
            yield place
            return
        async with self._grounds.mounted(container) as sources:
            binds = [Bind(f"/etc/{name}", f"{directory}/{name}") for name in _ETC_FILES]
            binds += [
                Bind(
                    point.target,
                    sources.get(point.target, point.source),
                    read_only=point.read_only,
                    recursive=point.recursive,
                )
                for point in sorted(container.record.mounts, key=lambda one: one.target)
                if point.kind != "tmpfs"
            ]
            yield msgspec.structs.replace(place, binds=tuple(binds))

    @asynccontextmanager
    async def _live(
        self, container: Container, targets: tuple[str, ...]
    ) -> AsyncIterator[LivePlace]:
        fd = await self._open_namespace(container)
        try:
            yield LivePlace(fd, targets, self._directory(container))
        finally:
            os.close(fd)

    async def _open_namespace(self, container: Container) -> int:
        """The mount namespace of its first process.

        The process is asked for again once its directory is held: if it runs still, it is the
        container's, and not another one that has got its number. Raises: FailedPrecondition.
        """
        pid = container.status.pid if container.status is not None else 0
        try:
            process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                now = await self._runtime.status(container.id)
                if now.state == "running" and now.pid == pid:
                    return os.open("ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
            finally:
                os.close(process)
        except OSError:
            pass
        raise FailedPrecondition(f"Container {container.id} has just ended: try again")

    async def _bundle(self, container: Container) -> _Bundle:
        path = f"{self._directory(container)}/{BUNDLE_FILE}"
        try:
            content = await asyncio.to_thread(Path(path).read_bytes)
            return msgspec.json.decode(content, type=_Bundle)
        except (OSError, msgspec.MsgspecError):
            raise FailedPrecondition(
                f"Container {container.id} has no files: its making was cut short, remove it"
            ) from None

    def _directory(self, container: Container) -> str:
        return self._layers.directory(container.id)


def _check_rests(container: Container) -> None:
    if container.task and not container.has_run:
        raise FailedPrecondition(f"Container {container.id} is about to be started by its agent")


@contextmanager
def _told_of(path: str, ref: str) -> Iterator[None]:
    """A path that is not there, in Docker's words."""
    try:
        yield
    except NotFound:
        raise NotFound(f"Could not find the file {path} in container {ref}") from None
