"""The tmpfs with one task's secrets and configs: made, changed below its container, removed.

Blocking; called in threads. The file `ids` says whose contents are in place, where they may change;
it is not shown to the container. A changed file is written beside and renamed over the one before,
so a reader has the one or the other. A reader that has one open keeps it, and its memory.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from shoal.model.row import Row
from worker.volumes import kernel

_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
_INODES_SPARE = 8
_IDS = "ids"
_NEXT = "next"


class File(Row, frozen=True):
    """One file to be made. target: in the container; path: in the tmpfs; uid, gid: of the node."""

    target: str
    path: str
    content: bytes
    uid: int
    gid: int
    mode: int

    @override
    def __repr__(self) -> str:
        """What logs and errors may show of it."""
        return f"File({self.target!r}, {len(self.content)} bytes)"


def make(place: Path, files: Sequence[File], ids: tuple[str, ...] | None) -> None:
    """Make it anew, exactly as large as the files are. ids: of contents that may change."""
    remove(place)
    place.mkdir(mode=0o700, parents=True)
    try:
        _mount(place, _options(files, spare=0 if ids is None else _ids_size(ids)))
        for file in files:
            path = place / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, file)
        if ids is not None:
            mark(place, ids)
    except OSError:
        remove(place)
        raise


def swap(place: Path, files: Sequence[File]) -> None:
    """Put other contents in place of those there are. Cut short, it may be done again."""
    _mount(place, _options(files, spare=_used_bytes(place)), kernel.MS_REMOUNT)
    for file in files:
        path = place / file.path
        if path.exists() and path.read_bytes() == file.content:
            continue
        beside = place / _NEXT
        beside.unlink(missing_ok=True)
        _write(beside, file)
        beside.rename(path)


def ids_in(place: Path) -> tuple[str, ...]:
    """Whose contents are in place; () where nobody has said."""
    try:
        return tuple((place / _IDS).read_text().split())
    except FileNotFoundError:
        return ()


def mark(place: Path, ids: tuple[str, ...]) -> None:
    """Say whose contents are in place."""
    beside = place / _NEXT
    beside.write_text("\n".join(ids))
    beside.rename(place / _IDS)


def remove(place: Path) -> None:
    """Delete the files before the mount: another mount namespace may still have a copy of it."""
    for name in entries(place):
        with contextlib.suppress(FileNotFoundError):
            path = place / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    with contextlib.suppress(FileNotFoundError):
        while os.path.ismount(place):
            kernel.detach(str(place))
        place.rmdir()


def entries(directory: Path) -> list[str]:
    """Names in a directory; none where there is none."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _options(files: Sequence[File], *, spare: int) -> str:
    pages = sum(_pages(len(file.content)) for file in files) + _pages(spare)
    # A file may be there twice for a moment, and each may have directories of its own.
    inodes = 2 * len(files) + sum(file.path.count("/") for file in files) + _INODES_SPARE
    return f"mode=0700,size={pages * mmap.PAGESIZE},nr_inodes={inodes}"


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE)


def _ids_size(ids: tuple[str, ...]) -> int:
    """Bytes for the file of ids, twice."""
    return 2 * _pages(sum(len(one) + 1 for one in ids)) * mmap.PAGESIZE


def _mount(place: Path, options: str, flags: int = 0) -> None:
    try:
        kernel.mount("tmpfs", str(place), "tmpfs", _FLAGS | flags, f"{options},noswap")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        kernel.mount("tmpfs", str(place), "tmpfs", _FLAGS | flags, options)


def _write(path: Path, file: File) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(os.dup(fd), "wb") as stream:
            stream.write(file.content)
        os.fchown(fd, file.uid, file.gid)
        os.fchmod(fd, file.mode)
    finally:
        os.close(fd)


def _used_bytes(place: Path) -> int:
    """What it holds, with what readers still have open of contents that are gone."""
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize
