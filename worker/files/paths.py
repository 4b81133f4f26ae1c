"""Paths clients name, found inside a root.

As Docker: a path is absolute inside the container; its last part is not followed when it is a
symbolic link, unless the path ends in a slash or `/.`. No path leaves the root: the kernel resolves
links and `..` within it.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from typing import NamedTuple

from shoal.errors import InvalidArgument, NotFound
from worker.files.jobs import Found
from worker.runtime.lean import linux

LINKS_MAX = 40
PARTS_MAX = 4096
TRIES_MAX = 100
"""The kernel answers EAGAIN when something is moved while it walks."""


class Path(NamedTuple):
    """A path as Docker reads it. name: what the archive of it calls it."""

    clean: str
    name: str
    followed: bool


def parse(text: str) -> Path:
    """Raises: InvalidArgument."""
    if "\0" in text:
        raise InvalidArgument("path: it contains a NUL byte")
    clean = "/" + posixpath.normpath(f"/{text}").lstrip("/")
    last = text.rpartition("/")[2]
    name = "." if last == "." else posixpath.basename(clean) or "/"
    return Path(clean, name, followed=last in {"", ".", ".."} or clean == "/")


def open_path(root: int, path: Path) -> int:
    """An O_PATH descriptor of what is there. Raises: NotFound, InvalidArgument, OSError."""
    flags = linux.O_PATH | (os.O_DIRECTORY if path.followed else os.O_NOFOLLOW)
    return open_inside(root, path.clean, flags)


def open_inside(root: int, path: str, flags: int) -> int:
    """Open below the root, again while the kernel says so. Raises: NotFound, OSError."""
    for _ in range(TRIES_MAX):
        try:
            return linux.open_in_root(root, path, flags)
        except FileNotFoundError:
            raise NotFound(path) from None
        except NotADirectoryError:
            raise InvalidArgument(f"{path}: not a directory") from None
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    raise InvalidArgument(f"{path}: the container moves it about too fast to be found")


def follow(root: int, path: str) -> str:
    """Where a path leads through the links of a root, whether or not something is there.

    Of a root nothing else changes meanwhile. Raises: InvalidArgument, OSError.
    """
    done, left = "", [part for part in path.split("/") if part]
    for _ in range(LINKS_MAX + len(left)):
        if not left:
            return done or "/"
        part = left.pop(0)
        if part == "..":
            done = done.rpartition("/")[0]
            continue
        text = _link_text(root, f"{done}/{part}")
        if not text:
            done = f"{done}/{part}"
            continue
        done = "" if text.startswith("/") else done
        left = [each for each in text.split("/") if each not in {"", "."}] + left
        if len(left) > PARTS_MAX:
            break
    raise InvalidArgument(f"{path}: too many levels of symbolic links")


def _link_text(root: int, path: str) -> str:
    try:
        fd = open_inside(root, path, linux.O_PATH | os.O_NOFOLLOW)
    except (NotFound, InvalidArgument):
        return ""
    try:
        return os.readlink("", dir_fd=fd) if stat.S_ISLNK(os.fstat(fd).st_mode) else ""
    finally:
        os.close(fd)


def describe(root: int, fd: int, path: Path) -> Found:
    """What an opened path is."""
    found = os.fstat(fd)
    link = _destination(root, fd, path) if stat.S_ISLNK(found.st_mode) else ""
    return Found(
        name=path.name,
        size=found.st_size,
        mode=found.st_mode,
        mtime_ns=found.st_mtime_ns,
        link=link,
    )


def _destination(root: int, fd: int, path: Path) -> str:
    """Where a symbolic link ends inside the container, whether or not something is there."""
    try:
        end = open_inside(root, path.clean, linux.O_PATH)
    except (NotFound, InvalidArgument, OSError):
        text = os.readlink("", dir_fd=fd)
        joined = posixpath.join(posixpath.dirname(path.clean), text)
        return "/" + posixpath.normpath(joined).lstrip("/")
    try:
        top = os.readlink(f"/proc/self/fd/{root}")
        place = os.readlink(f"/proc/self/fd/{end}")
    finally:
        os.close(end)
    return place.removeprefix(top) or "/"
