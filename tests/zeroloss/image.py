"""The image of the suite's server: one static program, compiled when it is needed.

Refuses to go on without a C compiler. The program is in C because a task takes traffic as soon as
its container has started: the server must listen before the nodes are told, within milliseconds.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

IMAGE = "polite:1"
PORT = 80
COMPILE_TIMEOUT_S = 60

_SOURCE = Path(__file__).with_name("server.c")


def find_compiler() -> str:
    """A C compiler's path; "" without one."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "tcc"))), "")


def write_image(archive: Path) -> None:
    """Write the root file system to `archive`. Raises: RuntimeError without a compiler."""
    compiler = find_compiler()
    if not compiler:
        raise RuntimeError("the server needs a C compiler: apt-get install tcc libc6-dev")
    program = archive.with_suffix(".program")
    subprocess.run(
        [compiler, "-D_GNU_SOURCE", "-static", "-o", str(program), str(_SOURCE)],
        check=True,
        timeout=COMPILE_TIMEOUT_S,
    )
    data = program.read_bytes()
    program.unlink()
    with tarfile.open(archive, mode="w") as tar:
        for directory in ("etc", "tmp"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        entry = tarfile.TarInfo("server")
        entry.size, entry.mode = len(data), 0o755
        tar.addfile(entry, io.BytesIO(data))
