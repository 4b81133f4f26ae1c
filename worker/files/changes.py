"""What a container has changed: its overlay's upper directory, against the layers below.

As overlayfs reads it: a character device 0:0 hides what is below, an opaque directory everything
below it. As Docker tells it: a file that was only copied up is no change, a directory is one when
its owner or mode differ or when something in it has changed, and of what was added everything is
told, of what was deleted only its top.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from shoal.errors import InvalidArgument, ResourceExhausted

ADDED, MODIFIED, DELETED = "A", "C", "D"
CHANGES_MAX = 1_000_000
DEPTH_MAX = 250
"""One descriptor per level and layer is open."""
_OPAQUE = "trusted.overlay.opaque"
_WHITEOUT = os.makedev(0, 0)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NS = 1_000_000_000

Change = tuple[str, str]


def find_changes(upper: str, layers: Sequence[str]) -> list[Change]:
    """Kind and absolute path of each change, parents first. layers: topmost first.

    What vanishes meanwhile is left out. Raises: OSError, InvalidArgument, ResourceExhausted.
    """
    top = os.open(upper, _DIRECTORY)
    below = [os.open(layer, _DIRECTORY) for layer in layers]
    try:
        return _Search().inside(top, below, "", alone=False)
    finally:
        _close(top, *below)


class _Pair(NamedTuple):
    """A name in the upper and in the layers; `below`: the directories that merge under it."""

    now: os.stat_result | None
    before: os.stat_result | None
    below: list[int]


class _Search:
    def __init__(self) -> None:
        self._count = 0

    def inside(self, directory: int, lowers: list[int], path: str, *, alone: bool) -> list[Change]:
        """Changes in one directory. alone: nothing of the layers shines through."""
        if path.count("/") >= DEPTH_MAX:
            raise InvalidArgument(f"{path[:200]}: more than {DEPTH_MAX} directories deep")
        names = set(os.listdir(directory))
        if alone:
            names.update(*(os.listdir(lower) for lower in lowers))
        found: list[Change] = []
        for name in sorted(names):
            before, below = _lower(lowers, name)
            pair = _Pair(_look(directory, name), before, below)
            try:
                found += self._of(directory, name, f"{path}/{name}", pair, alone=alone)
            finally:
                _close(*below)
        return found

    def _of(
        self, directory: int, name: str, path: str, pair: _Pair, *, alone: bool
    ) -> list[Change]:
        now, before = pair.now, pair.before
        if now is None or _is_whiteout(now):
            return [] if before is None else self._told(DELETED, path)
        inner = []
        if stat.S_ISDIR(now.st_mode):
            try:
                fd = os.open(name, _DIRECTORY, dir_fd=directory)
            except OSError:  # replaced by now
                return []
            try:
                inner = self.inside(fd, pair.below, path, alone=alone or _is_opaque(fd))
            finally:
                os.close(fd)
        if before is None:
            return [*self._told(ADDED, path), *inner]
        if inner or _differs(now, before):
            return [*self._told(MODIFIED, path), *inner]
        return []

    def _told(self, kind: str, path: str) -> list[Change]:
        self._count += 1
        if self._count > CHANGES_MAX:
            raise ResourceExhausted(f"the container has more than {CHANGES_MAX} changes")
        return [(kind, path)]


def _lower(lowers: list[int], name: str) -> tuple[os.stat_result | None, list[int]]:
    """What the layers have under a name, and the directories that merge under it, opened."""
    shown: os.stat_result | None = None
    merged: list[int] = []
    for lower in lowers:
        found = _look(lower, name)
        if found is None:
            continue
        if _is_whiteout(found) or (shown is not None and not stat.S_ISDIR(found.st_mode)):
            break
        shown = shown or found
        if not stat.S_ISDIR(found.st_mode):
            break
        fd = os.open(name, _DIRECTORY, dir_fd=lower)
        merged.append(fd)
        if _is_opaque(fd):
            break
    return shown, merged


def _differs(now: os.stat_result, before: os.stat_result) -> bool:
    same = (
        now.st_mode == before.st_mode
        and now.st_uid == before.st_uid
        and now.st_gid == before.st_gid
        and now.st_rdev == before.st_rdev
    )
    if not same or stat.S_ISDIR(now.st_mode):
        return not same
    return now.st_size != before.st_size or not _same_time(now.st_mtime_ns, before.st_mtime_ns)


def _same_time(one_ns: int, other_ns: int) -> bool:
    """Equal, or equal in seconds where one of them has nothing finer."""
    if one_ns % _NS and other_ns % _NS:
        return one_ns == other_ns
    return one_ns // _NS == other_ns // _NS


def _look(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == _WHITEOUT


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError:
        return False


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)
