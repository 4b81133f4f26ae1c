"""The first root of the machine: busybox, the modules that find the real one, a script.

A cpio archive in the kernel's "newc" form, as in its Documentation/driver-api/early-userspace.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

from tests.vm.kernel import BUSYBOX, Kernel, module_files

MODULES = ("virtio_pci", "virtio_blk", "virtiofs", "overlay")

_INIT = """\
#!/bin/busybox sh
set -e
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
modprobe -a {modules}
mount -t virtiofs share /share
mount -t ext4 -o noatime /dev/vda /disk
mkdir -p /disk/upper /disk/work /disk/checkout /disk/checkout.work /disk/tmp /disk/var
chmod 1777 /disk/tmp /disk/var
over=index=off,xino=off
lower=lowerdir=/share/kernel:/share/host
mount -t overlay -o $over,$lower,upperdir=/disk/upper,workdir=/disk/work root /root
lower=lowerdir=/share/checkout
mount -t overlay -o $over,$lower,upperdir=/disk/checkout,workdir=/disk/checkout.work \\
    checkout /root{checkout}
[ ! -d /share/host{checkout}/.venv ] || {{
    mkdir -p /root{checkout}/.venv
    mount -o bind /share/host{checkout}/.venv /root{checkout}/.venv
}}
mount -o bind /disk/tmp /root/tmp  # not overlays: containers' own need a file system below
mount -o bind /disk/var /root/var/tmp
mount -t tmpfs -o mode=755 run /root/run
mkdir /root/run/vm
mount -o bind /share/exchange /root/run/vm
umount /proc /dev
exec switch_root /root {python} -I -S {checkout}/tests/vm/guest.py
"""


def write(target: Path, kernel: Kernel, checkout: Path, python: str) -> None:
    """checkout, python: where they are, on this machine as in the virtual one."""
    script = _INIT.format(modules=" ".join(MODULES), checkout=checkout, python=python)
    modules = Path("lib/modules") / kernel.release
    files = {Path("bin/busybox"): Path(BUSYBOX).read_bytes(), Path("init"): script.encode()}
    for name in (Path("modules.dep"), *module_files(kernel, *MODULES)):
        files[modules / name] = (kernel.modules / name).read_bytes()
    with target.open("wb") as archive:
        for directory in _directories(files, "proc", "dev", "share", "disk", "root"):
            archive.write(_entry(str(directory), stat.S_IFDIR | 0o755, b""))
        for path, content in files.items():
            archive.write(_entry(str(path), stat.S_IFREG | 0o755, content))
        archive.write(_entry("TRAILER!!!", 0, b""))


def _directories(files: Iterable[Path], *more: str) -> list[Path]:
    found = {parent for path in files for parent in path.parents} - {Path()}
    return sorted(found | set(map(Path, more)))


def _entry(name: str, mode: int, content: bytes) -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(piece: bytes) -> bytes:
    return piece + bytes(-len(piece) % 4)
