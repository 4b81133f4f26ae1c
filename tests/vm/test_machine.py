"""What the machine is made of; the machine itself is `make test-vm`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vm import initramfs, machine
from tests.vm.kernel import BUSYBOX, Kernel, module_files


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    made = Kernel(tmp_path / "kernel", "1.2.3")
    for path in ("a/virtio_pci.ko", "a/virtio.ko", "virtio_blk.ko", "virtiofs.ko", "overlay.ko"):
        file = made.modules / "kernel" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    (made.modules / "modules.dep").write_text(
        "kernel/a/virtio.ko:\nkernel/a/virtio_pci.ko: kernel/a/virtio.ko\nkernel/overlay.ko:\n"
        "kernel/virtio_blk.ko: kernel/a/virtio.ko\nkernel/virtiofs.ko: kernel/a/virtio.ko\n"
    )
    return made


def test_a_module_brings_what_it_needs(kernel: Kernel):
    assert [str(path) for path in module_files(kernel, "virtio_pci", "overlay")] == [
        "kernel/a/virtio.ko", "kernel/a/virtio_pci.ko", "kernel/overlay.ko",
    ]  # fmt: skip


@pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="busybox-static is not installed")
def test_the_first_root_can_be_unpacked(kernel: Kernel, tmp_path: Path):
    archive, root = tmp_path / "initramfs", tmp_path / "root"
    root.mkdir()
    initramfs.write(archive, kernel, Path("/checkout"), "/usr/bin/python3")
    with archive.open("rb") as file:
        subprocess.run([BUSYBOX, "cpio", "-i"], cwd=root, stdin=file, check=True)
    assert (root / "lib/modules/1.2.3/kernel/a/virtio.ko").read_text() == "a/virtio.ko"
    assert (root / "bin/busybox").read_bytes() == Path(BUSYBOX).read_bytes()
    subprocess.run([BUSYBOX, "sh", "-n", root / "init"], check=True)
    assert os.access(root / "init", os.X_OK)
    assert {"proc", "dev", "share", "disk", "root"} <= set(os.listdir(root))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    place = tmp_path / "checkout"
    place.mkdir()
    for name in ("kept", "changed", "removed"):
        (place / name).write_text("before")
    (place / ".gitignore").write_text("ignored\n")
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(place), *words], check=True)
    (place / "changed").write_text("after")
    (place / "removed").unlink()
    (place / "below").mkdir()
    (place / "below/new").write_text("new")
    (place / "ignored").write_text("x")
    return place


def test_the_checkout_is_copied_as_it_is(checkout: Path, tmp_path: Path):
    target = tmp_path / "copy"
    target.mkdir()
    machine.copy_checkout(checkout, target)
    assert sorted(os.listdir(target)) == [".gitignore", ".venv", "below", "changed", "kept"]
    assert (target / "changed").read_text() == "after"
    assert (target / "below/new").read_text() == "new"


def test_or_as_a_commit_has_it(checkout: Path, tmp_path: Path):
    target = tmp_path / "copy"
    target.mkdir()
    machine.copy_checkout(checkout, target, "HEAD")
    assert sorted(os.listdir(target)) == [".gitignore", ".venv", "changed", "kept", "removed"]
    assert (target / "changed").read_text() == "before"
