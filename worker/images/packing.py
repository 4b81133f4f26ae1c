"""Write what an overlay's upper directory has changed as a layer's tar. Runs in the child process.

The tree is a container's, so its names and links are hostile: it is walked by directory
descriptors and no link is followed. Deletions become whiteouts. Equal trees give equal tars: names
are sorted, times are whole seconds, owners are numbers. Passed over, as in Docker: sockets, which
no tar can hold. Refused: overlayfs' redirects, which name other layers' directories.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from isal import isal_zlib

from shoal.errors import InvalidArgument
from worker.images.apply import OPAQUE_XATTR
from worker.images.rules import OPAQUE_MARKER, WHITEOUT_PREFIX

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OVERLAY = "trusted.overlay."
_REDIRECTS = ("trusted.overlay.redirect", "trusted.overlay.metacopy")
_KEPT = ("user.", "trusted.", "security.capability", "system.posix_acl_")
_GZIP_LEVEL = 1
_GZIP_WBITS = 31
_PIECE_BYTES = 1 << 20
_DEPTH_MAX = 255
END = bytes(2 * tarfile.BLOCKSIZE)
"""What every tar ends with."""


class Packed(NamedTuple):
    """diff_id: digest of the tar. digest and size: of its gzip form."""

    diff_id: str
    digest: str
    size: int


class _Gzip:
    """What the tar is written to: hashed before and after it is packed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._plain = hashlib.sha256()
        self._packed = hashlib.sha256()
        self._gzip = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, _GZIP_WBITS)
        self.size = 0

    def write(self, data: bytes) -> None:
        self._plain.update(data)
        self._out(self._gzip.compress(data))

    def close(self) -> Packed:
        self._out(self._gzip.flush())
        return Packed(
            f"sha256:{self._plain.hexdigest()}", f"sha256:{self._packed.hexdigest()}", self.size
        )

    def _out(self, packed: bytes) -> None:
        self._packed.update(packed)
        self.size += len(packed)
        rest = memoryview(packed)
        while rest:
            rest = rest[os.write(self._fd, rest) :]


def pack_upper(upper: str, blob: str, check: Callable[[int], None]) -> Packed:
    """Write the gzip form of the layer to `blob`, which does not exist yet.

    check: told the bytes written so far, after each entry; it may refuse to go on. Raises
    InvalidArgument, OSError.
    """
    out = os.open(blob, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    root = os.open(upper, _DIRECTORY)
    try:
        sink = _Gzip(out)
        packer = _Packer(sink)
        for _ in packer.pack(root):
            check(sink.size)
        sink.write(END)
        return sink.close()
    finally:
        os.close(root)
        os.close(out)


class _Packer:
    """One walk over an upper directory."""

    def __init__(self, sink: _Gzip) -> None:
        self._sink = sink
        self._links: dict[tuple[int, int], str] = {}

    def pack(self, root: int) -> Iterator[None]:
        """Write all entries, stopping after each."""
        if _is_opaque(root):
            self._whiteout(OPAQUE_MARKER)
        yield from self._directory(root, "", 0)

    def _directory(self, fd: int, path: str, depth: int) -> Iterator[None]:
        if depth > _DEPTH_MAX:
            raise InvalidArgument(f"{path[:80]!r}: deeper than {_DEPTH_MAX} directories")
        for name in sorted(os.listdir(fd)):
            where = f"{path}{name}"
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:  # the container runs, and has removed it
                continue
            if stat.S_ISDIR(found.st_mode):
                yield from self._one_directory(fd, name, where, depth)
            else:
                self._leaf(fd, name, where, found)
                yield

    def _one_directory(self, parent: int, name: str, where: str, depth: int) -> Iterator[None]:
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            entry = _entry(f"{where}/", os.fstat(fd), tarfile.DIRTYPE)
            entry.pax_headers = _attributes(fd, where)
            self._sink.write(header(entry))
            if _is_opaque(fd):
                self._whiteout(f"{where}/{OPAQUE_MARKER}")
            yield
            yield from self._directory(fd, f"{where}/", depth + 1)
        finally:
            os.close(fd)

    def _leaf(self, parent: int, name: str, where: str, found: os.stat_result) -> None:
        mode = found.st_mode
        if stat.S_ISSOCK(mode):
            return
        if stat.S_ISCHR(mode) and found.st_rdev == 0:
            head, _, leaf = where.rpartition("/")
            self._whiteout(f"{head}/{WHITEOUT_PREFIX}{leaf}" if head else WHITEOUT_PREFIX + leaf)
            return
        first = self._links.get((found.st_dev, found.st_ino)) if found.st_nlink > 1 else None
        if first is not None:
            entry = _entry(where, found, tarfile.LNKTYPE)
            entry.linkname = first
            self._sink.write(header(entry))
            return
        self._links[found.st_dev, found.st_ino] = where
        if stat.S_ISREG(mode):
            self._file(parent, name, where)
        else:
            self._special(parent, name, where, found)

    def _file(self, parent: int, name: str, where: str) -> None:
        try:
            fd = os.open(name, _FILE, dir_fd=parent)
        except FileNotFoundError:
            return
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):  # replaced meanwhile
                return
            entry = _entry(where, found, tarfile.REGTYPE)
            entry.size = found.st_size
            entry.pax_headers = _attributes(fd, where)
            self._sink.write(header(entry))
            self._content(fd, found.st_size)
        finally:
            os.close(fd)

    def _content(self, fd: int, size: int) -> None:
        """Exactly the size the header says, whatever its writer does meanwhile."""
        left = size
        while left:
            data = os.read(fd, min(left, _PIECE_BYTES)) or bytes(min(left, _PIECE_BYTES))
            self._sink.write(data)
            left -= len(data)
        self._sink.write(bytes(-size % tarfile.BLOCKSIZE))

    def _special(self, parent: int, name: str, where: str, found: os.stat_result) -> None:
        mode = found.st_mode
        if stat.S_ISLNK(mode):
            entry = _entry(where, found, tarfile.SYMTYPE)
            entry.linkname = os.readlink(name, dir_fd=parent)
        elif stat.S_ISFIFO(mode):
            entry = _entry(where, found, tarfile.FIFOTYPE)
        else:
            kind = tarfile.CHRTYPE if stat.S_ISCHR(mode) else tarfile.BLKTYPE
            entry = _entry(where, found, kind)
            entry.devmajor, entry.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
        self._sink.write(header(entry))

    def _whiteout(self, where: str) -> None:
        self._sink.write(header(tarfile.TarInfo(where)))


def header(entry: tarfile.TarInfo) -> bytes:
    """An entry's header blocks. Names that are not text keep their bytes."""
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _entry(where: str, found: os.stat_result, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(where)
    entry.type = kind
    entry.mode = stat.S_IMODE(found.st_mode)
    entry.uid, entry.gid = found.st_uid, found.st_gid
    entry.mtime = int(found.st_mtime)
    return entry


def _attributes(fd: int, where: str) -> dict[str, str]:
    """Extended attributes as pax records. Raises InvalidArgument for overlayfs' redirects."""
    found = {}
    for key in os.listxattr(fd):
        if key in _REDIRECTS:
            raise InvalidArgument(f"{where[:80]!r} has {key}: it names another layer's file")
        if key.startswith(_KEPT) and not key.startswith(_OVERLAY):
            value = os.getxattr(fd, key)
            found[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
    return found


def _is_opaque(fd: int) -> bool:
    return OPAQUE_XATTR in os.listxattr(fd)
