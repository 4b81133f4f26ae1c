"""Disks whose power can be cut: ext4 in a file, mounted over a loop device.

A cut shuts the file system down without writing its journal, so what was not synced is gone, as on
a machine whose plug is pulled. Must run in a private mount namespace: any other namespace that
holds the mount would keep the dead file system alive, and mounting it again would give I/O errors.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
IMAGE_BYTES = 768 << 20
RELEASED_WITHIN_S = 20.0


class Disk:
    """One file system. `path` is where it is mounted."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / name
        self._image = directory / f"{name}.img"

    def make(self) -> None:
        """Format and mount it."""
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", str(self._image))
        self.mount()

    def mount(self) -> None:
        """Mount it; the kernel replays the journal."""
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def cut(self) -> None:
        """From here on every write and sync fails, and nothing more reaches the image."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount it and wait until the kernel has let go. Raises: TimeoutError."""
        _run("umount", str(self.path))
        end_s = time.monotonic() + RELEASED_WITHIN_S
        while self._is_attached():
            if time.monotonic() > end_s:
                raise TimeoutError(f"{self._image} is still in use")
            time.sleep(0.01)

    def remove(self) -> None:
        """Unmount it if it is mounted. The image is its directory's owner's to remove."""
        if os.path.ismount(self.path):
            _run("umount", "--lazy", str(self.path))

    def _is_attached(self) -> bool:
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                if backing.read_text().strip() == str(self._image):
                    return True
            except OSError:
                continue  # that one was let go meanwhile
        return False


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
