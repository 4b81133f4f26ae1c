"""A disk of its own for both contenders: ext4 in a file, mounted over a loop device.

The mount lives in a mount namespace that nobody else has (`private` enters it by starting the
program anew), and the file has no name any more once it is mounted: whatever ends the program,
nothing is left behind. Deleted files and other programs' journals do not slow it down.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DIRECTORY_VARIABLE = "SHOAL_BENCH_DIR"
IMAGE_BYTES = 6 << 30
"""Sparse: only what is written takes space."""

_ENTERED_VARIABLE = "SHOAL_BENCH_PRIVATE"


def private(module: str) -> None:
    """Start `python -m MODULE` anew, with its arguments, unless the namespace is private yet."""
    if os.environ.get(_ENTERED_VARIABLE):
        return
    os.environ[_ENTERED_VARIABLE] = "1"
    unshare = shutil.which("unshare") or "/usr/bin/unshare"
    words = ["--mount", "--propagation", "private", sys.executable, "-m", module, *sys.argv[1:]]
    os.execv(unshare, [unshare, *words])


@contextmanager
def disk() -> Iterator[Path]:
    """Where it is mounted."""
    base = os.environ.get(DIRECTORY_VARIABLE, "/var/tmp")
    with tempfile.TemporaryDirectory(prefix="shoal-bench-", dir=base) as scratch:
        image, mounted = Path(scratch, "image"), Path(scratch, "disk")
        mounted.mkdir()
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
        _run("mount", "-o", "loop", str(image), str(mounted))
        image.unlink()
        try:
            yield mounted
        finally:
            _run("umount", "--lazy", str(mounted))


def _run(*words: str) -> None:
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(words, check=True, env=environment, timeout=120)
