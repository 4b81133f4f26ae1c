"""A power cut without cutting power: a loop-mounted ext4 that is shut down without its journal.

Run inside a private mount namespace: `unshare -m --propagation private python -m
tests.integration.power_cut DIRECTORY CUTS [--no-sync]`. Prints one JSON object per cut. With
--no-sync the log skips every sync: the rig must then show losses, or it proves nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

from typing_extensions import override

from manager.storage.entries import HardState
from manager.storage.files import FileOps
from manager.storage.wal import Wal
from shoal.errors import SwarmError
from tests.unit.manager.storage.support import IDENTITY, entries

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
SEGMENT_BYTES = 64 << 10
IMAGE_BYTES = 24 << 20


class UnsyncedFiles(FileOps):
    """A disk whose owner forgot every sync."""

    @override
    def fdatasync(self, fd: int) -> None:
        """Nothing: the data stays in the page cache."""

    @override
    def fsync(self, fd: int) -> None:
        """Nothing."""


def write_forever(directory: Path, files: FileOps) -> None:
    """Append one entry at a time and say so, until the disk is gone."""
    wal, recovered = Wal.open(directory, IDENTITY, segment_bytes=SEGMENT_BYTES, files=files)
    index = recovered.last_index
    try:
        while True:
            index += 1
            wal.append(entries(index, index, size=700), HardState(1, 1, index - 1))
            os.write(1, b"%d\n" % index)
    except SwarmError as error:
        os.write(2, str(error).encode())


def cut(mounted: Path, directory: Path, acks: int, *, no_sync: bool) -> int:
    """Let a writer acknowledge some entries, cut the power, return the last it acknowledged."""
    command = [sys.executable, "-m", "tests.integration.power_cut", "write", str(directory)]
    command += ["--no-sync"] if no_sync else []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as writer:
        last = 0
        try:
            assert writer.stdout is not None
            for _ in range(acks):
                last = int(writer.stdout.readline())
            fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
            finally:
                os.close(fd)
        finally:
            writer.kill()
        rest = writer.stdout.read().split("\n")[:-1]
    return int(rest[-1]) if rest else last


def recovered_last(directory: Path) -> int:
    """The last entry after the cut; each must be what was written. -1 when the log is unusable."""
    try:
        wal, recovered = Wal.open(directory, IDENTITY, segment_bytes=SEGMENT_BYTES)
    except SwarmError:
        return -1
    wal.close()
    assert recovered.entries == tuple(entries(1, recovered.last_index, size=700))
    return recovered.last_index


def run(scratch: Path, cuts: int, *, no_sync: bool) -> None:
    """Mount, cut, mount again, compare; `cuts` times on one log."""
    image, mounted = scratch / "disk.img", scratch / "mnt"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=30)
    mount = ["mount", "-o", "loop", str(image), str(mounted)]
    directory = mounted / "raft"
    subprocess.run(mount, check=True, timeout=30)
    Wal.create(directory, IDENTITY, segment_bytes=SEGMENT_BYTES).close()
    for number in range(cuts):
        acknowledged = cut(mounted, directory, 20 + 67 * number, no_sync=no_sync)
        subprocess.run(["umount", str(mounted)], check=True, timeout=30)
        subprocess.run(mount, check=True, timeout=30)
        print(json.dumps({"acknowledged": acknowledged, "found": recovered_last(directory)}))
    subprocess.run(["umount", str(mounted)], check=True, timeout=30)


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--no-sync"]
    unsynced = "--no-sync" in sys.argv
    if arguments[0] == "write":
        write_forever(Path(arguments[1]), UnsyncedFiles() if unsynced else FileOps())
    else:
        run(Path(arguments[0]), int(arguments[1]), no_sync=unsynced)
