"""An image with a Python in it: the machine's own, with the libraries it needs, and the probe."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

PYTHON = Path("/usr/bin/python3")
PROBE = Path(__file__).parent / "probe.py"
COMMAND = ("/bin/python3", "-I", "-S", "/probe.py")
_LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "ensurepip", "distutils", "__pycache__",
             "pydoc_data", "tkinter", "unittest", "dist-packages", "config-3")  # fmt: skip


def write_rootfs(target: Path) -> None:
    """A root file system as a tar. Raises: OSError, CalledProcessError."""
    real = PYTHON.resolve(strict=True)
    library = Path(f"/usr/lib/{real.name}")
    with tarfile.open(target, "w") as tar:
        for name in ("bin", "etc", "tmp", "root", "proc", "sys", "dev", "run"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(real, "bin/python3")
        for path in _libraries(real, *sorted(library.glob("lib-dynload/*.so"))):
            tar.add(path.resolve(), str(path).lstrip("/"))
        tar.add(library, str(library).lstrip("/"), filter=_wanted)
        tar.add(PROBE, "probe.py")
        add_file(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")


def add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """One more file."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _libraries(*files: Path) -> list[Path]:
    told = subprocess.run(
        ["ldd", *map(str, files)], check=True, capture_output=True, text=True
    ).stdout  # fmt: skip
    words = {word for line in told.splitlines() for word in line.split() if word.startswith("/")}
    return sorted(Path(word) for word in words if not word.endswith(":"))


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = entry.name.split("/")
    if any(part.startswith(left_out) for part in parts for left_out in _LEFT_OUT):
        return None
    return entry
