"""Volumes on a real disk: life, mounts, copy-up, paths that want to leave, crashes, full disks."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shoal.clock import SystemClock
from shoal.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from worker.volumes import copying, kernel
from worker.volumes.local import LocalVolumes

pytestmark = pytest.mark.root


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="shoal-vol-") as directory:
        path = Path(directory)
        try:
            yield path / "volumes"
        finally:
            for point in kernel.mount_points():
                if point.startswith(f"{directory}/"):
                    kernel.umount(point)


@pytest.fixture
async def volumes(root: Path) -> AsyncIterator[LocalVolumes]:
    made = await LocalVolumes.open(root, root.parent / "ways", SystemClock())
    yield made
    made.close()


@pytest.fixture
def users(volumes: LocalVolumes) -> dict[str, frozenset[str]]:
    """What the records of containers say."""
    table: dict[str, frozenset[str]] = {}

    async def ask() -> dict[str, frozenset[str]]:
        return table

    volumes.add_users(ask, ask)
    return table


async def again(volumes: LocalVolumes, root: Path) -> LocalVolumes:
    """What the next process finds."""
    volumes.close()
    return await LocalVolumes.open(root, root.parent / "ways", SystemClock())


def image(root: Path) -> str:
    """A directory with one of everything."""
    path = root.parent / "image"
    (path / "sub").mkdir(parents=True)
    (path / "sub/file").write_text("content")
    os.chown(path / "sub/file", 7, 8)
    os.chmod(path / "sub/file", 0o4750)
    os.setxattr(path / "sub", "user.x", b"y")
    os.link(path / "sub/file", path / "twin")
    os.symlink("/etc/passwd", path / "link")
    os.mkfifo(path / "fifo", 0o640)
    os.mknod(path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chown(path, 33, 34)
    os.chmod(path, 0o2771)
    os.utime(path / "sub/file", ns=(1, 1_000_000_007))
    return str(path)


async def test_life(volumes: LocalVolumes, root: Path):
    volume = await volumes.create("v1", labels={"a": "b"})
    assert volume.mountpoint == str(root / "v1/_data")
    assert await volumes.create("v1") == volume
    Path(volume.mountpoint, "x").write_text("y" * 5000)
    assert await volumes.size_bytes("v1") == 8192
    nameless = await volumes.create()
    assert nameless.anonymous
    assert len(nameless.name) == 64
    volumes = await again(volumes, root)
    assert volumes.list() == tuple(sorted((volume, nameless), key=lambda one: one.name))
    assert volumes.get("v1") == volume
    await volumes.remove("v1")
    with pytest.raises(NotFound, match=r"^get v1: no such volume$"):
        await volumes.remove("v1")
    await volumes.remove("v1", force=True)
    assert os.listdir(root) == [nameless.name]


async def test_refused(volumes: LocalVolumes):
    with pytest.raises(NotFound, match='error looking up volume plugin x: plugin "x" not found'):
        await volumes.create("v1", driver="x")
    await volumes.create("v1", options={"type": "tmpfs", "device": "tmpfs"})
    await volumes.create("v1", options={"type": "tmpfs", "device": "tmpfs"})
    with pytest.raises(AlreadyExists, match="other options"):
        await volumes.create("v1", options={"type": "ramfs", "device": "tmpfs"})


async def test_users_keep_a_volume(volumes: LocalVolumes, users: dict[str, frozenset[str]]):
    await volumes.create("v1")
    users["v1"] = frozenset(("c2", "c1"))
    with pytest.raises(FailedPrecondition, match=r"^remove v1: volume is in use - \[c1, c2\]$"):
        await volumes.remove("v1", force=True)
    users["v1"] = frozenset(("c1",))
    await volumes.remove("v1", user="c1")
    await volumes.create("v2")
    await volumes.mount("v2", "c3")
    with pytest.raises(FailedPrecondition, match=r"\[c3\]"):
        await volumes.remove("v2")
    await volumes.unmount("v2", "c3")
    await volumes.remove("v2")


async def test_mounted_from_the_first_user_to_the_last(
    volumes: LocalVolumes, users: dict[str, frozenset[str]], root: Path
):
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=42"}
    place = (await volumes.create("v2", options=options)).mountpoint
    assert place not in kernel.mount_points()
    await volumes.mount("v2", "c1")
    await volumes.mount("v2", "c1")
    await volumes.mount("v2", "c2")
    assert os.stat(place).st_uid == 42
    assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize == 1 << 20
    Path(place, "x").write_text("y")
    users["v2"] = frozenset(("c1", "c2"))
    volumes = await again(volumes, root)

    async def ask() -> dict[str, frozenset[str]]:
        return users

    volumes.add_users(ask, ask)
    await volumes.settle()
    await volumes.unmount("v2", "c1")
    assert Path(place, "x").read_text() == "y"
    users["v2"] = frozenset()
    await volumes.settle()
    assert place not in kernel.mount_points()
    assert os.listdir(place) == []
    await volumes.mount("v2", "c1")
    await volumes.unmount("v2", "c1")
    await volumes.remove("v2")


async def test_bind_is_not_deleted_with_its_volume(volumes: LocalVolumes, root: Path):
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    options = {"type": "none", "device": str(outside), "o": "bind,ro"}
    place = (await volumes.create("v3", options=options)).mountpoint
    await volumes.mount("v3", "c1")
    assert Path(place, "precious").exists()
    with pytest.raises(OSError, match="Read-only"):
        Path(place, "new").write_text("x")
    await volumes.unmount("v3", "c1")
    kernel.mount(str(outside), place, "", kernel.MS_BIND, "")  # by hand, where none was expected
    await volumes.create("v4")
    os.mkdir(root / "v4/_data/sub")
    kernel.mount(str(outside), str(root / "v4/_data/sub"), "", kernel.MS_BIND, "")
    with pytest.raises(FailedPrecondition, match="something is mounted at"):
        await volumes.remove("v4")
    os.rename(root / "v4", root / ".removing-v4")
    volumes = await again(volumes, root)
    await volumes.remove("v3")
    assert (outside / "precious").read_text() == "x"


async def test_mounts_that_fail(volumes: LocalVolumes):
    await volumes.create("v1", options={"type": "nosuchfs", "device": "x"})
    text = r"failed to mount local volume: mount x:/.*/v1/_data: no such device \(the kernel has no"
    with pytest.raises(FailedPrecondition, match=text):
        await volumes.mount("v1", "c1")
    await volumes.remove("v1")
    await volumes.create("v2", options={"type": "none", "device": "/nosuch", "o": "bind"})
    with pytest.raises(FailedPrecondition, match=r"flags: 0x1000: no such file or directory"):
        await volumes.mount("v2", "c1")
    if "nfs" not in Path("/proc/filesystems").read_text():
        options = {"type": "nfs", "device": ":/x", "o": "addr=127.0.0.1"}
        await volumes.create("v3", options=options)
        with pytest.raises(FailedPrecondition, match="no file system nfs: load its module"):
            await volumes.mount("v3", "c1")


@pytest.mark.parametrize("options", [{}, {"type": "tmpfs", "device": "tmpfs"}])
async def test_copy_up(volumes: LocalVolumes, root: Path, options: dict[str, str]):
    source = image(root)
    place = Path((await volumes.create("v1", options=options)).mountpoint)
    await volumes.mount("v1", "c1", copy_from=source)
    assert sorted(os.listdir(place)) == ["fifo", "link", "null", "sub", "twin"]
    mine, theirs = os.stat(place / "sub/file"), os.stat(f"{source}/sub/file")
    for field in ("st_uid", "st_gid", "st_mode", "st_mtime_ns", "st_size"):
        assert getattr(mine, field) == getattr(theirs, field)
    assert os.readlink(place / "link") == "/etc/passwd"
    assert os.stat(place / "null").st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO(os.stat(place / "fifo").st_mode)
    top = os.stat(place)
    assert (top.st_uid, top.st_gid, stat.S_IMODE(top.st_mode)) == (33, 34, 0o2771)
    if not options:
        assert os.getxattr(place / "sub", "user.x") == b"y"
        assert os.path.samefile(place / "twin", place / "sub/file")
        assert sorted(os.listdir(root / "v1")) == ["_data", "volume.json"]
    (place / "sub/file").write_text("changed")
    await volumes.mount("v1", "c1", copy_from=source)
    assert (place / "sub/file").read_text() == "changed"


@pytest.mark.parametrize("step", range(1, 30))
async def test_copy_up_that_was_cut_short_is_made_again(
    volumes: LocalVolumes, root: Path, step: int
):
    """A process that dies at any step leaves a volume that is empty, or will be whole."""
    source = image(root)
    place = Path((await volumes.create("v1")).mountpoint)
    pid = os.fork()
    if pid == 0:
        _die_at(step)
        target = os.open(place, os.O_RDONLY)
        copying.Filling(target, os.open(place.parent, os.O_RDONLY)).fill(source)
        os._exit(0)
    await asyncio.to_thread(os.waitpid, pid, 0)
    await volumes.mount("v1", "c1", copy_from=source)
    assert tree(str(place)) == tree(source)
    assert sorted(os.listdir(root / "v1")) == ["_data", "volume.json"]


def tree(top: str) -> dict[str, tuple[int, ...] | str | bytes]:
    """All that a copy must keep."""
    found: dict[str, tuple[int, ...] | str | bytes] = {}
    for parent, directories, files in os.walk(top):
        for name in (*directories, *files, "."):
            path = os.path.normpath(f"{parent}/{name}")
            status, key = os.lstat(path), os.path.relpath(path, top)
            found[key] = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev)
            if stat.S_ISLNK(status.st_mode):
                found[f"{key} ->"] = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                found[f"{key} is"] = Path(path).read_bytes()
    return found


def _die_at(step: int) -> None:
    """End the process before its n-th change of the disk."""
    left = [step]

    def counted(real):  # type: ignore[no-untyped-def]
        def call(*arguments, **fields):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if not left[0]:
                os._exit(9)
            return real(*arguments, **fields)

        return call

    for name in ("mkdir", "rename", "symlink", "mknod", "link", "sendfile", "fchmod", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    kernel.rename_new = counted(kernel.rename_new)  # type: ignore[assignment]


async def test_subpath(volumes: LocalVolumes, root: Path):
    place = Path((await volumes.create("v1")).mountpoint)
    (place / "a/b").mkdir(parents=True)
    (place / "a/b/file").write_text("inside")
    os.symlink("a/b", place / "inner")
    os.symlink("/etc", place / "absolute")
    os.symlink("../../..", place / "up")
    mounted = await volumes.mount("v1", "c1", subpath="a/b")
    assert os.listdir(mounted.source) == ["file"]
    through = await volumes.mount("v1", "c1", subpath="inner/file")
    assert Path(through.source).read_text() == "inside"
    os.rename(place / "a", place / "elsewhere")
    os.symlink("/etc", place / "a")
    assert os.listdir(mounted.source) == ["file"]  # whatever is at its name now
    for path in ("absolute", "absolute/passwd", "up", "up/x", "a"):
        with pytest.raises(InvalidArgument, match="leads out of the volume"):
            await volumes.mount("v1", "c2", subpath=path)
    with pytest.raises(FailedPrecondition, match=r"cannot access path .*nosuch: no such file"):
        await volumes.mount("v1", "c2", subpath="nosuch")
    assert mounted.source in kernel.mount_points()
    await volumes.unmount("v1", "c1")
    assert os.listdir(root.parent / "ways") == []
    left = await volumes.mount("v1", "c1", subpath="elsewhere/b/file")
    volumes = await again(volumes, root)
    assert left.source not in kernel.mount_points()
    assert os.listdir(root.parent / "ways") == []
    await volumes.remove("v1")


async def test_what_a_crash_leaves_is_cleared_and_damage_is_kept(volumes: LocalVolumes, root: Path):
    for name in ("whole", "newer", "broken", "other"):
        await volumes.create(name)
        (root / name / "_data/x").write_text("x")
    (root / "newer/volume.json").write_text('{"format":2,"name":"newer"}')
    (root / "broken/volume.json").write_text("{")
    record = json.loads((root / "other/volume.json").read_text())
    (root / "other/volume.json").write_text(json.dumps(record | {"name": "another"}))
    (root / ".making-v1/_data").mkdir(parents=True)
    os.rename(root / "whole", root / ".removing-whole.1")
    volumes = await again(volumes, root)
    assert volumes.list() == ()
    assert sorted(os.listdir(root)) == ["broken", "newer", "other"]
    with pytest.raises(FailedPrecondition, match="its record cannot be read: move the directory"):
        await volumes.create("broken")
    assert (root / "broken/_data/x").read_text() == "x"


async def test_full_disk(root: Path):
    root.mkdir()
    kernel.mount("tmpfs", str(root), "tmpfs", 0, "size=256k,nr_inodes=12")
    volumes = await LocalVolumes.open(root, root.parent / "ways", SystemClock())
    try:
        with pytest.raises(ResourceExhausted, match=r"create v\d: .*No space left"):  # noqa: PT012
            for number in range(1, 9):
                await volumes.create(f"v{number}")
        left = len(volumes.list())
        assert left >= 2
        assert len(os.listdir(root)) == left
        await volumes.remove("v1")
        source = root.parent / "big"
        source.mkdir()
        (source / "file").write_bytes(b"x" * (512 << 10))
        with pytest.raises(ResourceExhausted, match="fill v2"):
            await volumes.mount("v2", "c1", copy_from=str(source))
        assert os.listdir(root / "v2/_data") == []
        assert sorted(os.listdir(root / "v2")) == ["_data", "volume.json"]
    finally:
        volumes.close()


async def test_sockets_are_copied(volumes: LocalVolumes, root: Path):
    source = root.parent / "image"
    source.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(source / "socket"))
    place = (await volumes.create("v1")).mountpoint
    await volumes.mount("v1", "c1", copy_from=str(source))
    assert stat.S_ISSOCK(os.stat(f"{place}/socket").st_mode)
