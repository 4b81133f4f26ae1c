"""What the sources of a copy are: found by path or pattern, told apart, and hashed.

A hash is that of the tar a copy would carry, without times and owners: equal trees have equal
hashes wherever and whenever they were made. Patterns are those of Go's `filepath.Match`: `*`, `?`
and `[...]` never stand for a slash.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence

from shoal.errors import InvalidArgument, NotFound, SwarmError
from worker.files import jobs, paths
from worker.files.packing import DEPTH_MAX, Packer
from worker.images.decompress import Unpacker
from worker.images.model import UnpackLimits
from worker.images.tarstream import TarBytes, entries
from worker.runtime.lean import linux

MATCHES_MAX = 100_000
_WILD = re.compile(r"[*?\[\\]")


def survey(root: int, wanted: Sequence[str], *, archives: bool) -> list[jobs.Source]:
    """Each path, and all that each pattern matches, in the order they are to be copied.

    archives: tell which files are tars. Raises: NotFound, InvalidArgument, OSError.
    """
    found: list[jobs.Source] = []
    for one in wanted:
        clean = "/" + posixpath.normpath(f"/{one}").lstrip("/")
        if not _WILD.search(one):
            found.append(_source(root, clean, archives=archives))
            continue
        matches = re.compile(pattern_regex(clean)).fullmatch
        found += (
            _source(root, path, archives=archives) for path in _walk(root, "/") if matches(path)
        )
        if len(found) > MATCHES_MAX:
            raise InvalidArgument(f"{one}: stands for more than {MATCHES_MAX} files")
    return found


def pattern_regex(pattern: str) -> str:
    """A pattern as a regular expression. Raises: InvalidArgument `syntax error in pattern`."""
    parts = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            parts.append("[^/]*")
        elif char == "?":
            parts.append("[^/]")
        elif char == "[":
            part, at = _class_regex(pattern, at)
            parts.append(part)
        elif char == "\\":
            parts.append(re.escape(_at(pattern, at)))
            at += 1
        else:
            parts.append(re.escape(char))
    return "".join(parts)


def _class_regex(pattern: str, at: int) -> tuple[str, int]:
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[str] = []
    while not ranges or _at(pattern, at) != "]":
        first, at = _class_char(pattern, at)
        last = first
        if pattern.startswith("-", at):
            last, at = _class_char(pattern, at + 1)
        if first <= last:  # others match nothing
            ranges.append(f"{re.escape(first)}-{re.escape(last)}")
        else:
            ranges.append("")
    inside = "".join(ranges)
    if not inside:
        return ("[^/]" if negated else r"(?!)"), at + 1
    return f"(?!/)[{'^' if negated else ''}{inside}]", at + 1


def _class_char(pattern: str, at: int) -> tuple[str, int]:
    char = _at(pattern, at)
    if char in "-]":
        raise InvalidArgument(f"{pattern}: syntax error in pattern")
    return (_at(pattern, at + 1), at + 2) if char == "\\" else (char, at + 1)


def _at(pattern: str, at: int) -> str:
    if at >= len(pattern):
        raise InvalidArgument(f"{pattern}: syntax error in pattern")
    return pattern[at]


def _walk(root: int, directory: str, depth: int = 0) -> Iterator[str]:
    """Every path below, links not followed, in order."""
    if depth > DEPTH_MAX:
        raise InvalidArgument(f"{directory[:200]}: more than {DEPTH_MAX} directories deep")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    listing = paths.open_inside(root, directory, flags)
    try:
        found = [(one.name, one.is_dir(follow_symlinks=False)) for one in os.scandir(listing)]
    finally:
        os.close(listing)
    for name, is_directory in sorted(found):
        path = posixpath.join(directory, name)
        yield path
        if is_directory:
            yield from _walk(root, path, depth + 1)


def _source(root: int, path: str, *, archives: bool) -> jobs.Source:
    fd = paths.open_inside(root, path, linux.O_PATH)
    try:
        found = os.fstat(fd)
        is_directory = stat.S_ISDIR(found.st_mode)
        hasher = hashlib.sha256()
        packer = Packer(hasher.update, bare=True)
        if is_directory:
            packer.pack_content(fd)
        else:
            packer.pack(fd, "content")
        return jobs.Source(
            path=path,
            is_directory=is_directory,
            is_archive=archives and stat.S_ISREG(found.st_mode) and _is_archive(fd),
            digest=hasher.hexdigest(),
        )
    finally:
        os.close(fd)


def _is_archive(fd: int) -> bool:
    """Whether a file is a tar, packed or not: it has a first entry."""
    content = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        limits = UnpackLimits()
        unpacker = Unpacker(lambda count: os.read(content, count))
        tar = TarBytes(unpacker.read, bytes_max=limits.unpacked_bytes_max, hashed=False)
        return next(entries(tar, limits, open_end=True), None) is not None
    except SwarmError:
        return False
    finally:
        os.close(content)


def open_content(root: int, path: str) -> int:
    """A regular file, links followed, to be read. Raises: NotFound, InvalidArgument, OSError."""
    clean = "/" + posixpath.normpath(f"/{path}").lstrip("/")
    held = paths.open_inside(root, clean, linux.O_PATH)
    try:
        if not stat.S_ISREG(os.fstat(held).st_mode):
            raise InvalidArgument(f"{path}: not a regular file")
        return os.open(f"/proc/self/fd/{held}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(path) from None
    finally:
        os.close(held)


def read_small(directory: str, path: str, most: int) -> bytes:
    """A regular file below a directory. Raises: NotFound, InvalidArgument."""
    root = os.open(directory, linux.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(open_content(root, path), "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InvalidArgument(f"{path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        os.close(root)
    if len(content) > most:
        raise InvalidArgument(f"{path}: larger than {most} bytes")
    return content
