"""Ways to paths within volumes: each a bind mount of its own, made from a descriptor. Blocking.

What a path leads to is found once, below the volume's root; whoever writes to the volume cannot put
a link in its place afterwards. The mount is only for the container's start: what runs has its own.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from shoal.errors import FailedPrecondition, InvalidArgument
from worker.volumes import kernel


class Ways:
    """A directory of such mounts, emptied when it is opened."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self) -> None:
        """Take down what an earlier process has left. Raises: OSError."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for place in self._root.iterdir():
            self.close(str(place))

    def lead(self, volume: str, mountpoint: str, subpath: str) -> str:
        """A path that leads to what is at `subpath` now. Raises: InvalidArgument, OSError."""
        fd = _open_beneath(volume, mountpoint, subpath)
        place = str(self._root / secrets.token_hex(16))
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.mkdir(place, 0o700)
            else:
                os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            kernel.mount(f"/proc/self/fd/{fd}", place, "", kernel.MS_BIND, "")
        except OSError:
            self.close(place)
            raise
        finally:
            os.close(fd)
        return place

    def close(self, place: str) -> None:
        """Take a way down. Raises: OSError."""
        if os.path.realpath(place) in kernel.mount_points():
            kernel.umount(place)
        if os.path.isdir(place):
            os.rmdir(place)
        elif os.path.lexists(place):
            os.unlink(place)


def _open_beneath(volume: str, mountpoint: str, subpath: str) -> int:
    root = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return kernel.open_beneath(root, subpath)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.ELOOP):
            raise InvalidArgument(
                f"volume {volume}: subpath {subpath}: leads out of the volume"
            ) from None
        raise FailedPrecondition(
            f"cannot access path {mountpoint}/{subpath}: {(error.strerror or '').lower()}"
        ) from None
    finally:
        os.close(root)
