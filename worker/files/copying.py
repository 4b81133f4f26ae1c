"""From one tree into another, in one process: `COPY`, `ADD` and `WORKDIR` of builds.

A tar runs through a pipe between the two, so that what reads and what writes are those of every
other copy, and neither follows a link out of its root.
"""

from __future__ import annotations

import os
import posixpath
import stat
import threading
from collections.abc import Callable

from shoal.errors import InvalidArgument, NotFound
from worker.files import jobs, paths
from worker.files.packing import Packer
from worker.files.placing import Owner, Placer
from worker.files.survey import open_content
from worker.images.decompress import Unpacker
from worker.images.model import UnpackLimits
from worker.images.tarstream import Entry, Kind, TarBytes, entries
from worker.runtime.lean import linux

DIRECTORY_MODE = 0o755
PIECE_BYTES = 256 << 10
_ROOT: Owner = (0, 0)


class Copier:
    """Into one root. owner: of all that is made; None: root's, or what an archive says."""

    def __init__(self, source: int, target: int, owner: Owner | None) -> None:
        """source: -1 when nothing will be copied."""
        self._source = source
        self._target = target
        self._owner = owner
        self._limits = UnpackLimits()

    def make_directory(self, path: str) -> bool:
        """Make it and those above it. Result: whether it was not there.

        Raises: InvalidArgument when something else is there, OSError.
        """
        if self._is_directory(path, or_nothing=True):
            return False
        placer = self._placer("/", self._owner or _ROOT)
        entry = Entry(
            name=paths.follow(self._target, path).strip("/"), kind=Kind.DIRECTORY,
            mode=DIRECTORY_MODE, uid=0, gid=0, size=0, mtime_ns=0, link="", major=0, minor=0,
            xattrs={},
        )  # fmt: skip
        placer.place(entry, TarBytes(lambda: b"", bytes_max=0, hashed=False))
        return True

    def copy(self, source: jobs.Source, destination: str) -> None:
        """One source. destination: absolute; with a closing slash for a directory.

        Raises: NotFound, InvalidArgument, OSError.
        """
        path = paths.follow(self._target, destination).rstrip("/")
        is_inside = destination.endswith("/") or self._is_directory(destination)
        if source.is_directory or source.is_archive or is_inside:
            self.make_directory(path or "/")
        if source.is_archive:
            self._unpack(source.path, path or "/")
            return
        if not source.is_directory and is_inside:
            path = f"{path}/{posixpath.basename(source.path)}"
        self._pass(source.path, path.lstrip("/"))

    def _pass(self, path: str, name: str) -> None:
        """What is at a path of the source, as that name of the target."""
        reading, writing = os.pipe()
        failures: list[BaseException] = []

        def pack() -> None:
            try:
                with os.fdopen(writing, "wb", PIECE_BYTES) as pipe:
                    self._pack(path, name, Packer(pipe.write))
            except BrokenPipeError:  # the other side says why
                return
            except BaseException as error:  # noqa: BLE001 raised again by the thread that waits
                failures.append(error)

        thread = threading.Thread(target=pack, name="pack")
        thread.start()
        try:
            self._place(lambda: os.read(reading, PIECE_BYTES), "/", self._owner or _ROOT)
        except BaseException:
            if not failures:
                raise
        finally:
            os.close(reading)
            thread.join()
        if failures:
            raise failures[0]

    def _pack(self, path: str, name: str, packer: Packer) -> None:
        fd = paths.open_inside(self._source, path, linux.O_PATH)
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                packer.pack_content(fd, name)
            else:
                packer.pack(fd, name)
        finally:
            os.close(fd)
        packer.finish()

    def _unpack(self, path: str, directory: str) -> None:
        content = open_content(self._source, path)
        try:
            unpacker = Unpacker(lambda count: os.read(content, count))
            self._place(unpacker.read, directory, self._owner)
        finally:
            os.close(content)

    def _place(self, read: Callable[[], bytes], directory: str, owner: Owner | None) -> None:
        tar = TarBytes(read, bytes_max=self._limits.unpacked_bytes_max, hashed=False)
        placer = self._placer(directory, owner)
        for entry in entries(tar, self._limits, open_end=True):
            placer.place(entry, tar)
        placer.finish()
        tar.drain()

    def _placer(self, directory: str, owner: Owner | None) -> Placer:
        return Placer(self._target, directory, keep_kinds=False, owner=owner)

    def _is_directory(self, path: str, *, or_nothing: bool = False) -> bool:
        """Whether a directory is there. or_nothing: anything else is refused."""
        try:
            held = paths.open_inside(self._target, path.rstrip("/") or "/", linux.O_PATH)
        except NotFound:
            return False
        try:
            found = stat.S_ISDIR(os.fstat(held).st_mode)
        finally:
            os.close(held)
        if or_nothing and not found:
            raise InvalidArgument(f"{path}: not a directory")
        return found
