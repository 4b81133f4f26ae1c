"""A tree as a tar, written while it may be changing.

Names are opened one by one without following links, and a regular file is read through the very
descriptor that showed it to be one: what is swapped for a device or a pipe is never opened. As
Docker packs: whole seconds, hard links once, capabilities kept, sockets left out.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable

from shoal.errors import InvalidArgument

COPY_BYTES = 1 << 20
HARD_LINKS_MAX = 1_000_000
DEPTH_MAX = 500
"""One descriptor is open per level."""
_CAPABILITY = "security.capability"
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


class Packer:
    """Writes one tar; `finish` it. write: takes all bytes it is given.

    bare: without times and owners, for a hash of the content.
    """

    def __init__(
        self, write: Callable[[bytes | memoryview], object], *, bare: bool = False
    ) -> None:
        self._write = write
        self._bare = bare
        self._first_names: dict[tuple[int, int], str] = {}
        self._buffer = bytearray(COPY_BYTES)

    def pack(self, fd: int, name: str, depth: int = 0) -> None:
        """What an O_PATH descriptor stands for, and all below it, as `name`.

        Raises: OSError, InvalidArgument for what no tar can hold.
        """
        found = os.fstat(fd)
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:
            return
        entry = _entry(found, name, kind, fd)
        if self._bare:
            entry.mtime = entry.uid = entry.gid = 0
        if kind == tarfile.REGTYPE:
            self._pack_file(fd, found, entry)
            return
        self._head(entry)
        if kind == tarfile.DIRTYPE:
            if depth >= DEPTH_MAX:
                raise InvalidArgument(f"{name[:200]}: more than {DEPTH_MAX} directories deep")
            self._pack_directory(fd, name, depth)

    def pack_content(self, fd: int, below: str = "") -> None:
        """What is in a directory, with names below that one. Raises: as `pack`."""
        self._pack_directory(fd, below, 0)

    def finish(self) -> None:
        """The end-of-archive marker."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))

    def _pack_directory(self, fd: int, name: str, depth: int) -> None:
        prefix = f"{name.rstrip('/')}/" if name else ""
        try:
            listing = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # removed by now
            return
        try:
            for leaf in sorted(os.listdir(listing)):
                child = _hold(listing, leaf)
                if child < 0:
                    continue
                try:
                    self.pack(child, f"{prefix}{leaf}", depth + 1)
                finally:
                    os.close(child)
        finally:
            os.close(listing)

    def _pack_file(self, fd: int, found: os.stat_result, entry: tarfile.TarInfo) -> None:
        if found.st_nlink > 1:
            key = found.st_dev, found.st_ino
            first = self._first_names.get(key)
            if first is not None:
                entry.type, entry.linkname, entry.size = tarfile.LNKTYPE, first, 0
                self._head(entry)
                return
            if len(self._first_names) < HARD_LINKS_MAX:
                self._first_names[key] = entry.name
        content = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            entry.size = os.fstat(content).st_size
            self._head(entry)
            self._copy(content, entry.size)
        finally:
            os.close(content)

    def _copy(self, content: int, size: int) -> None:
        """Exactly `size` bytes: what a file loses meanwhile is zeros, what it gains is left out."""
        view = memoryview(self._buffer)
        missing = size
        while missing:
            count = os.readv(content, [view[: min(missing, COPY_BYTES)]])
            if count == 0:
                break
            self._write(view[:count])
            missing -= count
        missing += -size % tarfile.BLOCKSIZE
        while missing:
            count = min(missing, COPY_BYTES)
            self._write(bytes(count))
            missing -= count

    def _head(self, entry: tarfile.TarInfo) -> None:
        self._write(entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))


def _hold(directory: int, leaf: str) -> int:
    """An O_PATH descriptor of a name; -1 when it is gone by now."""
    try:
        return os.open(leaf, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return -1


def _entry(found: os.stat_result, name: str, kind: bytes, fd: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = stat.S_IMODE(found.st_mode)
    entry.uid, entry.gid = found.st_uid, found.st_gid
    entry.mtime = found.st_mtime_ns // 1_000_000_000
    if kind == tarfile.SYMTYPE:
        entry.linkname = os.readlink("", dir_fd=fd)
    elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        entry.devmajor, entry.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    elif kind == tarfile.REGTYPE:
        entry.pax_headers = _capability(fd)
    return entry


def _capability(fd: int) -> dict[str, str]:
    try:
        value = os.getxattr(f"/proc/self/fd/{fd}", _CAPABILITY)
    except OSError:  # it has none, or its file system knows none
        return {}
    return {f"SCHILY.xattr.{_CAPABILITY}": value.decode("utf-8", "surrogateescape")}
