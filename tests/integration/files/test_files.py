"""Reading and writing inside roots of containers that try to lead out of them."""

from __future__ import annotations

import asyncio
import ctypes
import io
import os
import stat
import tarfile
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shoal.errors import InvalidArgument, NotFound, ResourceExhausted, SwarmError
from worker.files.jobs import Bind, RestPlace
from worker.files.service import Files
from worker.runtime.lean import linux

pytestmark = pytest.mark.root
SECRET = "of the host"


@pytest.fixture
def base() -> Iterator[Path]:
    """`c` is a container at rest over the layer `low`; `host` is what nobody may reach."""
    with tempfile.TemporaryDirectory(prefix="shoal-files-", dir="/var/tmp") as directory:
        base = Path(directory)
        for name in ("low/etc", "low/tmp", "c/rootfs", "c/upper", "c/work", "host", "volume"):
            (base / name).mkdir(parents=True)
        (base / "host/secret").write_text(SECRET)
        (base / "low/etc/passwd").write_text("root:x:0:0::/:/sh\nweb:x:33:34::/:/sh\n")
        yield base
        assert str(base) not in Path("/proc/self/mountinfo").read_text()


def place(base: Path, *binds: Bind, read_only: bool = False) -> RestPlace:
    return RestPlace(f"{base}/c", (f"{base}/low",), binds, read_only)


async def pieces(content: bytes, size: int = 700) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


def tar_of(*entries: tuple[str, bytes | str | int]) -> bytes:
    """Text: a symbolic link; a number: a type of entry, whose link is the host's secret."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, what in entries:
            entry = tarfile.TarInfo(name)
            entry.mode, entry.uid, entry.gid, entry.mtime = 0o640, 5, 6, 1_700_000_000
            if isinstance(what, bytes):
                entry.size = len(what)
                tar.addfile(entry, io.BytesIO(what))
                continue
            entry.type = tarfile.SYMTYPE if isinstance(what, str) else bytes([what])
            entry.linkname = what if isinstance(what, str) else "../host/secret"
            if entry.type == tarfile.DIRTYPE:
                entry.mode, entry.linkname = 0o750, ""
            tar.addfile(entry)
    return target.getvalue()


async def read_tar(base: Path, path: str, *binds: Bind) -> dict[str, tarfile.TarInfo]:
    archive = await read_bytes(base, path, *binds)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: entry for entry in tar}


async def read_bytes(base: Path, path: str, *binds: Bind) -> bytes:
    async with Files().read(place(base, *binds), path) as reading:
        return b"".join([piece async for piece in reading.pieces()])


DIRECTORY = tarfile.DIRTYPE[0]
HARD_LINK = tarfile.LNKTYPE[0]


def outs(base: Path) -> tuple[str, ...]:
    """Ways out, if links were followed as the host follows them."""
    return f"{base}/host", "../" * 40 + f"{base}/host", "/proc/1/root" + f"{base}/host"


async def test_links_are_followed_inside(base: Path):
    for number, way in enumerate(outs(base)):
        (base / f"low/out{number}").symlink_to(way)
        with pytest.raises(NotFound):
            await read_bytes(base, f"/out{number}/secret")
    for path in ("/out0/", "/out1/../host/secret"):
        with pytest.raises(NotFound):
            await Files().stat(place(base), path)
    assert stat.S_ISLNK((await Files().stat(place(base), "/out0")).mode)
    (base / "low/in").symlink_to("../../etc/passwd")
    assert (await Files().stat(place(base), "/in")).link == "/etc/passwd"
    assert SECRET not in (await read_bytes(base, "/")).decode(errors="replace")


async def test_what_a_tar_may_not_do(base: Path):
    (base / "low/out").symlink_to(base / "host")
    files = Files()
    for hostile, words in (
        (tar_of(("../secret", b"x")), "outside"),
        (tar_of(("tmp/../../secret", b"x")), "outside"),
        (tar_of(("link", HARD_LINK)), "outside"),
        (tar_of(("etc", b"x")), "cannot overwrite directory"),
        (tar_of(("etc/passwd", DIRECTORY)), "cannot overwrite non-directory"),
        (tar_of(("cut", b"x" * 5000))[:2000], "truncated"),
        (b"no tar at all, but long enough to be taken for one" * 20, "not a tar"),
        (b"", "empty"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            await files.write(place(base), "/", pieces(hostile), keep_kinds=True)
    with pytest.raises(SwarmError):  # a link that leads nowhere inside is nothing to write into
        await files.write(place(base), "/out", pieces(tar_of(("new", b"x"))))
    through = tar_of(("way", f"{base}/host"), ("way/secret", b"taken"))
    with pytest.raises(SwarmError):
        await files.write(place(base), "/", pieces(through))
    assert (base / "host/secret").read_text() == SECRET
    assert sorted(os.listdir(base / "host")) == ["secret"]


async def test_a_link_on_the_way_is_the_container_s(base: Path):
    (base / "low/way").symlink_to("/tmp")
    await Files().write(place(base), "/way", pieces(tar_of(("one", b"1"))))
    await Files().write(place(base), "/", pieces(tar_of(("/way/two", b"2"))))
    assert sorted(os.listdir(base / "c/upper/tmp")) == ["one", "two"]


async def test_there_and_back(base: Path):
    sent = tar_of(
        ("d", DIRECTORY), ("d/f", b"content" * 1000), ("d/l", "../etc"), ("deep/er/f", b"2"),
    )  # fmt: skip
    await Files().write(place(base), "/tmp", pieces(sent))
    back = await read_tar(base, "/tmp/")
    assert set(back) == {"tmp", "tmp/d", "tmp/d/f", "tmp/d/l", "tmp/deep", "tmp/deep/er",
                         "tmp/deep/er/f"}  # fmt: skip
    one = back["tmp/d/f"]
    assert (one.size, one.mode, one.uid, one.gid, one.mtime) == (7000, 0o640, 5, 6, 1_700_000_000)
    assert (back["tmp/d"].mode, back["tmp/d"].mtime) == (0o750, 1_700_000_000)
    assert back["tmp/d/l"].linkname == "../etc"
    assert (back["tmp/deep"].mode, back["tmp/deep"].uid) == (0o755, 0)
    assert set(await read_tar(base, "/tmp/d/.")) == {".", "./f", "./l"}


async def test_owner_is_looked_up_in_the_container(base: Path):
    archive = tar_of(("f", b"x"))
    await Files().write(place(base), "/tmp", pieces(archive), owner="web")
    entry = (await read_tar(base, "/tmp/f"))["f"]
    assert (entry.uid, entry.gid) == (33, 34)
    with pytest.raises(InvalidArgument, match="unable to find user nobody-such"):
        await Files().write(place(base), "/tmp", pieces(archive), owner="nobody-such")


async def test_volumes_and_what_is_read_only(base: Path):
    (base / "volume/v").write_text("of the volume")
    writable = Bind("/data", f"{base}/volume")
    await Files().write(place(base, writable), "/data", pieces(tar_of(("w", b"w"))))
    assert (base / "volume/w").read_bytes() == b"w"
    assert set(await read_tar(base, "/data", writable)) == {"data", "data/v", "data/w"}
    fixed = Bind("/data", f"{base}/volume", read_only=True)
    for root, path, words in (
        (place(base, fixed), "/data", "mounted volume is marked read-only"),
        (place(base, writable, read_only=True), "/tmp", "container rootfs is marked read-only"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            await Files().write(root, path, pieces(tar_of(("x", b"x"))))
    await Files().write(place(base, writable, read_only=True), "/data", pieces(tar_of(("x", b"x"))))


async def test_special_files_are_told_not_opened(base: Path):
    os.mkfifo(base / "low/pipe")
    os.mknod(base / "low/disk", stat.S_IFBLK | 0o600, os.makedev(7, 250))
    os.link(base / "low/etc/passwd", base / "low/etc/again")
    back = await read_tar(base, "/")
    assert back["/pipe"].isfifo()
    assert (back["/disk"].isblk(), back["/disk"].devmajor, back["/disk"].devminor) == (True, 7, 250)
    assert back["/etc/passwd"].islnk()
    assert back["/etc/passwd"].linkname == "/etc/again"


async def test_names_that_are_no_text(base: Path):
    (base / "low/etc" / os.fsdecode(b"\xff\xfe")).write_text("x")
    (base / "low/etc" / ("n" * 200)).write_text("y")
    back = await read_tar(base, "/etc")
    assert {os.fsdecode(b"etc/\xff\xfe"), "etc/" + "n" * 200} <= set(back)


async def test_a_directory_swapped_for_a_link_while_it_is_used(base: Path):
    """The content of the host is never read or written, whatever the container does meanwhile."""
    volume = base / "volume"
    (volume / "real").mkdir()
    (volume / "real/secret").write_text("of the container")
    (volume / "link").symlink_to(f"{base}/host")
    stop = threading.Event()

    (volume / "real").rename(volume / "d")
    exchange = ctypes.CDLL(None, use_errno=True).renameat2
    names = os.fsencode(volume / "d"), os.fsencode(volume / "link")

    def swap() -> None:
        while not stop.is_set():
            assert exchange(linux.AT_FDCWD, names[0], linux.AT_FDCWD, names[1], 2) == 0

    swapper = threading.Thread(target=swap)
    swapper.start()
    bind = Bind("/data", str(volume))
    try:
        for number in range(6):
            try:
                read = await read_bytes(base, "/data/d/secret", bind)
                assert SECRET.encode() not in read
                archive = tar_of((f"d/new{number}", b"x"), ("d/secret", b"of the container"))
                await Files().write(place(base, bind), "/data", pieces(archive))
            except SwarmError:
                continue
    finally:
        stop.set()
        swapper.join()
    assert os.listdir(base / "host") == ["secret"]
    assert (base / "host/secret").read_text() == SECRET


async def test_changes(base: Path):
    low, upper = base / "low", base / "c/upper"
    for name in ("gone", "same", "touched", "kept/inner", "replaced/old", "replaced/both"):
        (low / name).parent.mkdir(exist_ok=True)
        (low / name).write_text("x")
    for name in ("new/deep", "same", "touched", "kept/inner", "replaced/both"):
        (upper / name).parent.mkdir(exist_ok=True)
        (upper / name).write_text("x")
    for name in ("same", "kept/inner", "replaced/both"):
        moment = os.stat(low / name).st_mtime_ns
        os.utime(upper / name, ns=(moment, moment))
    os.utime(upper / "touched", ns=(1, 1))
    os.mknod(upper / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(upper / "never", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(upper / "replaced", "trusted.overlay.opaque", b"y")
    assert await Files().changes(str(upper), (str(low),)) == [
        ("D", "/gone"),
        ("A", "/new"),
        ("A", "/new/deep"),
        ("C", "/replaced"),
        ("D", "/replaced/old"),
        ("C", "/touched"),
    ]


async def test_a_full_volume_is_told(base: Path):
    full = base / "full"
    full.mkdir()
    linux.mount("tmpfs", str(full), "tmpfs", 0, "size=64k")
    try:
        bind = Bind("/data", str(full))
        with pytest.raises(ResourceExhausted, match="no space left"):
            await Files().write(
                place(base, bind), "/data", pieces(tar_of(("f", b"x" * 200_000)), 1 << 16)
            )
    finally:
        linux.umount(str(full))


async def test_who_gives_up_leaves_no_process(base: Path):
    async def endless() -> AsyncIterator[bytes]:
        yield tar_of(("f", b"x" * 5000))[:2000]
        await asyncio.sleep(600)

    files = Files()
    work = asyncio.create_task(files.write(place(base), "/tmp", endless()))
    while not (mine := children()):
        await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not mine & children()


def children() -> set[int]:
    """Processes of ours that work in containers' files."""
    found = set()
    for entry in os.listdir("/proc"):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue
        if b"worker.files.child" in words and parent == str(os.getpid()):
            found.add(int(entry))
    return found
