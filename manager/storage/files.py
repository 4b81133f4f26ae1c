"""The few file operations storage uses, in one class, so that a test can make a disk fail.

Invariant: nothing in this package touches a file of its directory except through `FileOps`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

ZERO_CHUNK = bytes(1 << 20)
_SYNC_EVERY_BYTES = 8 << 20  # bounds how much a live fdatasync may have to wait for


class FileOps:
    """The kernel's file operations; every method raises OSError as the kernel reports it."""

    def open_dir(self, path: Path) -> int:
        """A descriptor of the directory, for `fsync` and `flock`."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def create(self, path: Path) -> int:
        """A new file, 0600; fails when it exists."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        """An existing file, for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write at `offset`; the number of bytes written, which may be fewer."""
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        """Make the file's content and size durable."""
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        """Make the file, or a directory's names, durable."""
        os.fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing `target`."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)


def write_all(files: FileOps, fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, however many calls the kernel needs."""
    view = memoryview(data)
    while view:
        written = files.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def write_zeros(files: FileOps, fd: int, start: int, end: int) -> None:
    """Fill [start, end) with zeros and make them durable, a few MiB at a time."""
    unsynced = 0
    while start < end:
        size = min(len(ZERO_CHUNK), end - start)
        write_all(files, fd, memoryview(ZERO_CHUNK)[:size], start)
        start, unsynced = start + size, unsynced + size
        if unsynced >= _SYNC_EVERY_BYTES:
            files.fdatasync(fd)
            unsynced = 0
    files.fdatasync(fd)


def discard(files: FileOps, path: Path) -> None:
    """Remove a temporary file if it can be; whatever is left is removed at the next start."""
    with contextlib.suppress(OSError):
        files.unlink(path)
