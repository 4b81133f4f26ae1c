"""File systems of images and of containers that do not run, for as long as somebody uses them.

A mount is taken out of the tree of mounts as soon as it is made and lives on behind a descriptor:
nobody meets it by its name, and nothing is left of it when this process ends. Paths inside are the
image's: whoever follows them does so with `RESOLVE_IN_ROOT`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from shoal.errors import FailedPrecondition
from worker.runtime.lean import linux, rootfs

OPTIONS_BYTES_MAX = 4000
"""More lower directories than fit into one page of options are given one by one."""


class Layers:
    """container_dir: where the runtime keeps a container, by its id."""

    def __init__(self, container_dir: Callable[[str], str]) -> None:
        self._container_dir = container_dir

    def directory(self, container: str) -> str:
        """Where the runtime keeps a container."""
        return self._container_dir(container)

    def open(self) -> None:
        """Unmount what a crash between the two steps has left. Blocking. Raises: OSError.

        To be called before anybody of this process makes such a mount.
        """
        root = os.path.realpath(self._container_dir("."))
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            points = [line.split()[4] for line in file]
        for point in reversed(points):
            if point.startswith(f"{root}/"):
                linux.umount(point)

    @asynccontextmanager
    async def content(self, container: str, layers: Sequence[str], path: str) -> AsyncIterator[str]:
        """A directory of an image, while inside; "" when the image has none there.

        container: one that does not run, at whose place it is mounted for a moment. The result
        leads other processes there, too. Raises: FailedPrecondition.
        """
        place = f"{self._container_dir(container)}/rootfs"
        root = await _opened(lambda: _open_image(layers, place))
        try:
            fd = await _descriptor(lambda: _open_directory(root, path))
        finally:
            os.close(root)
        if fd < 0:
            yield ""
            return
        try:
            yield _way_to(fd)
        finally:
            os.close(fd)

    @asynccontextmanager
    async def root(self, container: str, layers: Sequence[str]) -> AsyncIterator[str]:
        """The root of a container that does not run, to read and write while inside.

        Raises: FailedPrecondition.
        """
        directory = self._container_dir(container)
        fd = await _opened(lambda: _open_container(layers, directory))
        try:
            yield _way_to(fd)
        finally:
            os.close(fd)


async def _opened(open_it: Callable[[], int]) -> int:
    try:
        return await _descriptor(open_it)
    except OSError as error:
        raise FailedPrecondition(f"mount {error.filename}: {error.strerror}") from None


async def _descriptor(open_it: Callable[[], int]) -> int:
    """What a thread opens; closed again when nobody waits for it any more."""
    opening = asyncio.ensure_future(asyncio.to_thread(open_it))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait({opening})
        if not opening.cancelled() and opening.exception() is None and opening.result() >= 0:
            os.close(opening.result())
        raise


def _way_to(fd: int) -> str:
    return f"/proc/{os.getpid()}/fd/{fd}"


def _open_container(layers: Sequence[str], directory: str) -> int:
    return _detached(rootfs.mount_overlay(list(layers), directory), f"{directory}/rootfs")


def _open_image(layers: Sequence[str], place: str) -> int:
    flags = linux.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    if len(layers) == 1:  # nothing to lay over each other
        return os.open(layers[0], flags)
    options = f"lowerdir={':'.join(map(_escape, layers))}"
    if len(os.fsencode(options)) > OPTIONS_BYTES_MAX:
        return linux.new_mount(
            "overlay", [("lowerdir+", layer) for layer in layers], source="overlay"
        )
    linux.mount("overlay", place, "overlay", linux.MS_RDONLY, options)
    return _detached(os.open(place, flags), place)


def _detached(fd: int, place: str) -> int:
    """A copy of the mount behind `fd`, which is unmounted; closes `fd`.

    A copy, because openat2 answers EAGAIN for ever to `..` in a mount that was unmounted lazily.
    """
    try:
        return linux.open_tree(fd, "", recursive=False)
    finally:
        os.close(fd)
        linux.umount(place)


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _open_directory(root: int, path: str) -> int:
    """A descriptor of a directory inside, or -1."""
    try:
        return linux.open_in_root(root, path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return -1
