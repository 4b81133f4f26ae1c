"""Filling an empty volume with what the image has at its place. Blocking; called in threads.

The copy is made aside, marked as whole by a rename, and only then moved in, entry by entry: a crash
leaves an empty volume or a copy that the next mount moves in. Other containers may write to the
volume meanwhile, so nothing is followed by name: every step goes through descriptors and stops at
links. Refuses to replace what is there.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat

from worker.volumes import kernel

COPYING, WHOLE = ".shoal-copying", ".shoal-copied"
DEPTH_MAX = 256
_CHUNK_BYTES = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Filling:
    """One volume. target: descriptor of its content. aside: of a directory on the same disk.

    Both are the same where the volume is a mount.
    """

    def __init__(self, target: int, aside: int) -> None:
        self._target = target
        self._aside = aside
        self._may_link = target != aside  # where others cannot put another file under the name
        self._links: dict[tuple[int, int], str] = {}

    def recover(self) -> None:
        """Finish or undo what a crash has interrupted. Raises: OSError."""
        if self._has(COPYING):
            shutil.rmtree(COPYING, dir_fd=self._aside)
        if self._has(WHOLE):
            self._move_in()

    def fill(self, source: str) -> bool:
        """Copy a directory's content, owner and mode in if the volume is empty. Raises: OSError."""
        self.recover()
        if os.listdir(self._target):
            return False
        origin = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.mkdir(COPYING, 0o700, dir_fd=self._aside)
            copy = os.open(COPYING, _DIRECTORY, dir_fd=self._aside)
            try:
                self._copy_directory(origin, copy, "")
            finally:
                os.close(copy)
        except BaseException:
            shutil.rmtree(COPYING, ignore_errors=True, dir_fd=self._aside)
            raise
        finally:
            os.close(origin)
        os.rename(COPYING, WHOLE, src_dir_fd=self._aside, dst_dir_fd=self._aside)
        self._move_in()
        return True

    def _has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._aside, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _move_in(self) -> None:
        whole = os.open(WHOLE, _DIRECTORY, dir_fd=self._aside)
        try:
            for name in os.listdir(whole):
                try:
                    kernel.rename_new(name, whole, self._target)
                except FileExistsError:
                    continue  # somebody was faster: it is theirs
            _copy_metadata(whole, self._target)
        finally:
            os.close(whole)
        shutil.rmtree(WHOLE, dir_fd=self._aside)

    def _copy_directory(self, origin: int, copy: int, path: str) -> None:
        if path.count("/") > DEPTH_MAX:
            raise OSError(errno.ENAMETOOLONG, f"more than {DEPTH_MAX} directories deep", path)
        for name in os.listdir(origin):
            self._copy_entry(origin, copy, name, f"{path}/{name}")
        _copy_metadata(origin, copy)

    def _copy_entry(self, origin: int, copy: int, name: str, path: str) -> None:
        status = os.stat(name, dir_fd=origin, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=copy)
            self._pair(origin, copy, name, path, _DIRECTORY)
        elif kind == stat.S_IFREG:
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first != path and self._may_link:
                os.link(f"{COPYING}{first}", name, src_dir_fd=self._aside, dst_dir_fd=copy)
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._pair(origin, copy, name, path, flags)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=origin), name, dir_fd=copy)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=copy, follow_symlinks=False)
        elif not (kind == stat.S_IFCHR and status.st_rdev == 0):  # 0:0 hides a name in a layer
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=copy)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=copy, follow_symlinks=False)

    def _pair(self, origin: int, copy: int, name: str, path: str, flags: int) -> None:
        """Open an entry on both sides and copy it."""
        is_directory = flags == _DIRECTORY
        source = os.open(
            name, _DIRECTORY if is_directory else os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC,
            dir_fd=origin,
        )  # fmt: skip
        try:
            target = os.open(name, flags, 0o600, dir_fd=copy)
            try:
                if is_directory:
                    self._copy_directory(source, target, path)
                else:
                    _copy_content(source, target)
                    _copy_metadata(source, target)
            finally:
                os.close(target)
        finally:
            os.close(source)


def _copy_content(source: int, target: int) -> None:
    while os.sendfile(target, source, None, _CHUNK_BYTES):
        continue


def _copy_metadata(source: int, target: int) -> None:
    """Owner, mode, attributes and times; in this order, as one changes the next."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if name.startswith("trusted.overlay."):
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM):
                raise
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
