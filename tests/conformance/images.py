"""The image that the recordings were made with."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

BUSYBOX = "/bin/busybox"
_DIRECTORIES = ("bin", "dev", "etc", "home", "proc", "root", "run", "sbin", "sys", "tmp", "usr",
                "var")  # fmt: skip


def import_busybox(socket: Path) -> None:
    """As it was recorded: `docker import` of a tree with nothing but busybox in it."""
    subprocess.run(
        ["docker", "-H", f"unix://{socket}", "import", "-c", 'CMD ["sh"]', "-", "busybox"],
        input=busybox(), check=True, capture_output=True,
    )  # fmt: skip


def busybox() -> bytes:
    """A tar of busybox with its links, and two accounts."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in _DIRECTORIES:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(BUSYBOX, "bin/busybox")
        applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True)
        for name in applets.stdout.split():
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            if name != "busybox":
                tar.addfile(entry)
        for name, content in {
            "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\n",
            "etc/group": b"root:x:0:\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()
