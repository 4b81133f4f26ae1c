"""Give directories a layer's tar left out the attributes the layers below have for them.

An upper directory hides the lower one's mode and owner: a layer that brings only `tmp/x` would turn
/tmp from 1777 into whatever `mkdir` makes. So the nearest lower layer's directory is copied from,
as containerd's mkparent does; where none has it, it stays 0755 root. Walks with directory
descriptors and never follows a link. Blocks: use a thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from worker.images.apply import OPAQUE_XATTR

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Search(Enum):
    ABSENT = "absent"  # this layer does not know the path: ask the next
    HIDDEN = "hidden"  # this layer ends the search: a file, link, whiteout or opaque directory


def settle(layer: Path, implied: Sequence[bytes], lowers: Sequence[Path]) -> None:
    """Copy attributes for each implied directory of `layer`; `lowers` topmost first.

    Cost: a few system calls per directory and lower layer. Raises OSError.
    """
    for path in implied:
        fd = _find(path, lowers)
        target = os.open(os.path.join(os.fsencode(layer), path), _DIRECTORY)
        try:
            if fd is None:
                os.utime(target, ns=(0, 0))
            else:
                _copy_attributes(fd, target)
        finally:
            os.close(target)
            if fd is not None:
                os.close(fd)


def _find(path: bytes, lowers: Sequence[Path]) -> int | None:
    for lower in lowers:
        found = _walk(path, lower)
        if isinstance(found, int):
            return found
        if found is _Search.HIDDEN:
            return None
    return None


def _walk(path: bytes, lower: Path) -> int | _Search:
    fd = os.open(lower, _DIRECTORY)
    opaque = False
    for part in path.split(b"/") if path else ():
        opaque = opaque or _is_opaque(fd)
        try:
            found = os.stat(part, dir_fd=fd, follow_symlinks=False)
            following = os.open(part, _DIRECTORY, dir_fd=fd) if stat.S_ISDIR(found.st_mode) else -1
        except FileNotFoundError:
            return _Search.HIDDEN if opaque else _Search.ABSENT
        finally:
            os.close(fd)
        if following < 0:
            return _Search.HIDDEN
        fd = following
    return fd


def _is_opaque(fd: int) -> bool:
    return OPAQUE_XATTR in os.listxattr(fd)


def _copy_attributes(source: int, target: int) -> None:
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for key in os.listxattr(source):
        if not key.startswith("trusted.overlay."):
            os.setxattr(target, key, os.getxattr(source, key))
    os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))
