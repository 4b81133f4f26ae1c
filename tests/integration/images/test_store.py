"""The image store on a real disk: fidelity, loading, names, removal, crashes, full disks."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import gzip
import io
import lzma
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time

import pytest
from backports import zstd

from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from tests.integration.images.conftest import SETTINGS, leftovers
from tests.integration.images.tars import (
    device,
    digest,
    directory,
    docker_save,
    hardlink,
    hybrid_archive,
    member,
    oci_archive,
    symlink,
    tar,
)
from worker.images.model import User
from worker.images.store import ImageStore

pytestmark = pytest.mark.root

AMD64 = {"os": "linux", "architecture": "amd64"}


@contextlib.contextmanager
def mounted(kind, target, options):
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, "-o", options, kind, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", target], check=True)


@contextlib.contextmanager
def merged(store, image, tmp_path):
    layers = store.layers(image)
    if len(layers) == 1:
        empty = tmp_path / "empty"
        empty.mkdir(exist_ok=True)
        layers = (*layers, str(empty))
    with mounted("overlay", tmp_path / "merged", f"lowerdir={':'.join(layers)}") as top:
        yield top


def write(path, content):
    path.write_bytes(content)
    return path


async def test_attributes_survive_to_the_container(store, tmp_path):
    content = tar(
        directory("./", mode=0o711, uid=5, mtime=1_111_111_111),
        directory("bin/", mode=0o2755, gid=7),
        member("bin/su", b"s" * 5000, mode=0o4755, uid=0),
        member("bin/ping", b"p", xattrs={"security.capability": CAPABILITY, "user.note": "hi"}),
        hardlink("bin/su2", "./bin/su"),
        symlink("sh", "/bin/su", uid=9, mtime=1_234_567_890),
        symlink("lib", "bin"),
        member("lib/through", b"t"),
        member("pipe", type=tarfile.FIFOTYPE, mode=0o620),
        device("null", mode=0o666),
        directory("tmp/", mode=0o1777, mtime=1_222_222_222),
        member("tmp/late", b"l", uid=70_000, gid=80_000, mode=0o600),
    )
    image = await store.import_rootfs(write(tmp_path / "a.tar", content), "web")
    with merged(store, image, tmp_path) as top:
        root_status = top.stat()
        assert (stat.S_IMODE(root_status.st_mode), root_status.st_uid) == (0o711, 5)
        assert root_status.st_mtime_ns == 1_111_111_111_000_000_000
        assert stat.S_IMODE((top / "bin").stat().st_mode) == 0o2755
        assert (top / "bin").stat().st_gid == 7
        program = (top / "bin/su").stat()
        assert (stat.S_IMODE(program.st_mode), program.st_nlink) == (0o4755, 2)
        assert program.st_ino == (top / "bin/su2").stat().st_ino
        assert os.getxattr(top / "bin/ping", "user.note") == b"hi"
        assert os.getxattr(top / "bin/ping", "security.capability") == CAPABILITY.encode("latin-1")
        link = (top / "sh").lstat()
        assert (os.readlink(top / "sh"), link.st_uid) == ("/bin/su", 9)
        assert link.st_mtime_ns == 1_234_567_890_000_000_000
        assert (top / "bin/through").read_bytes() == b"t"
        assert stat.S_ISFIFO((top / "pipe").stat().st_mode)
        null = (top / "null").stat()
        assert (stat.S_ISCHR(null.st_mode), null.st_rdev) == (True, os.makedev(1, 3))
        scratch = (top / "tmp").stat()
        assert stat.S_IMODE(scratch.st_mode) == 0o1777
        assert scratch.st_mtime_ns == 1_222_222_222_000_000_000
        late = (top / "tmp/late").stat()
        assert (late.st_uid, late.st_gid, stat.S_IMODE(late.st_mode)) == (70_000, 80_000, 0o600)


# struct vfs_cap_data, revision 2, cap_net_raw effective: latin-1 so that pax carries it
CAPABILITY = bytes([1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).decode(
    "latin-1"
)


async def test_names_that_are_not_text(store, tmp_path):
    odd = b"d\xff\xfe".decode("utf-8", "surrogateescape")
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
    ) as archive:
        archive.addfile(tarfile.TarInfo(f"{odd}/f\n"), None)
    image = await store.import_rootfs(write(tmp_path / "a.tar", out.getvalue()), "web")
    with merged(store, image, tmp_path) as top:
        assert os.listdir(os.fsencode(top)) == [b"d\xff\xfe"]
        assert os.listdir(os.fsencode(top) + b"/d\xff\xfe") == [b"f\n"]


async def test_whiteouts_opaque_and_implied_parents(store, tmp_path):
    lower = tar(
        directory("./", mode=0o751, uid=3),
        directory("tmp/", mode=0o1777, uid=11, mtime=1_000_000_000),
        member("gone", b"1"),
        directory("dir/"), member("dir/old", b"1"),
        directory("re/"), member("re/old", b"1"),
        directory("same/"), member("same/old", b"1"),
    )  # fmt: skip
    upper = tar(
        member("tmp/x", b"2"),
        member(".wh.gone", b""),
        member("dir/new", b"2"),
        member("dir/.wh..wh..opq", b""),
        member(".wh.re", b""), directory("re/"), member("re/new", b"2"),
        directory("same/"), member("same/new", b"2"), member(".wh.same", b""),
        member(".wh..wh.plnk/1.2", b"bookkeeping"),
    )  # fmt: skip
    await store.load(write(tmp_path / "a.tar", docker_save([lower, upper])))
    with merged(store, store.resolve("web:1"), tmp_path) as top:
        assert sorted(os.listdir(top)) == ["dir", "re", "same", "tmp"]
        for name in ("dir", "re", "same"):
            assert os.listdir(top / name) == ["new"]
        assert (stat.S_IMODE(top.stat().st_mode), top.stat().st_uid) == (0o751, 3)
        scratch = (top / "tmp").stat()
        assert (stat.S_IMODE(scratch.st_mode), scratch.st_uid) == (0o1777, 11)
        assert scratch.st_mtime_ns == 1_000_000_000_000_000_000


@pytest.mark.parametrize(
    ("pack", "kind"),
    [
        (lambda data: data, "tar"),
        (gzip.compress, "tar+gzip"),
        (zstd.compress, "tar+zstd"),
        (lzma.compress, "tar+gzip"),
        (bz2.compress, "tar+gzip"),
    ],
)
async def test_import_of_every_packing(store, root, pack, kind):
    plain = tar(member("a", b"x" * 2_000_000))

    async def chunks():
        packed = pack(plain)
        for at in range(0, len(packed), 50_000):
            yield packed[at : at + 50_000]

    image = await store.import_rootfs(
        chunks(), "me/web:2", changes=["CMD /run", "ENV A=b", "EXPOSE 80", "STOPSIGNAL INT"]
    )
    (layer,) = image.layers
    assert layer.diff_id == digest(plain)
    assert layer.media_type.endswith(kind)
    blob = (root / "content/blobs/sha256" / layer.blob_digest[7:]).read_bytes()
    assert digest(blob) == layer.blob_digest
    assert len(blob) == layer.blob_bytes
    if kind != "tar+zstd":
        assert (gzip.decompress(blob) if kind == "tar+gzip" else blob) == plain
    config = store.image_config(store.resolve("me/web:2"))
    assert (config.cmd, config.env) == (("/bin/sh", "-c", "/run"), ("A=b",))
    assert (config.exposed_ports, config.stop_signal) == (("80/tcp",), "INT")
    assert image.size_bytes == 2_000_000
    assert image.repo_tags == ("me/web:2",)


async def test_load_docker_save(store, tmp_path):
    base, top = tar(member("a", b"1")), tar(member("b", b"2"))
    content = docker_save(
        [base, top, base], tags=["web:1", "r.example:5000/web"], Env=["A=1"], Cmd=["/x"],
        ExposedPorts={"80/tcp": {}}, Labels={"k": "v"}, Healthcheck={"Test": ["CMD", "ok"]},
    )  # fmt: skip
    loaded = await store.load(write(tmp_path / "a.tar", gzip.compress(content)))
    assert loaded == ["web:1", "r.example:5000/web:latest"]
    image = store.resolve("web:1")
    assert image.repo_tags == ("web:1", "r.example:5000/web:latest")
    assert (image.architecture, image.os) == ("amd64", "linux")
    assert [layer.diff_id for layer in image.layers] == [digest(base), digest(top), digest(base)]
    assert len(set(store.layers(image))) == 3
    config = store.image_config(image)
    assert (config.cmd, config.labels, config.exposed_ports) == (("/x",), {"k": "v"}, ("80/tcp",))
    assert config.healthcheck is not None
    assert config.healthcheck.test == ("CMD", "ok")


async def test_load_old_docker_save_with_links(store, tmp_path):
    layer = tar(member("a", b"1"))
    content = docker_save([layer])
    rebuilt = []
    path = write(tmp_path / "a.tar", content)
    with tarfile.open(path) as archive:
        for info in archive:
            body = archive.extractfile(info).read() if info.isfile() else None
            if info.name.endswith("layer.tar"):
                rebuilt.append(member("real/layer.tar", body))
                rebuilt.append(symlink(info.name, "../real/layer.tar"))
            elif body is not None:
                rebuilt.append(member(info.name, body))
    write(path, tar(*rebuilt))
    assert await store.load(path) == ["web:1"]


async def test_load_hybrid_keeps_every_tag_and_the_manifest(store, root, tmp_path):
    content = hybrid_archive([tar(member("a", b"1")), tar(member("b", b"2"))], ["web:1", "web:2"])
    assert await store.load(write(tmp_path / "a.tar", content)) == ["web:1", "web:2"]
    image = store.resolve("web:2")
    manifest = (root / "content/blobs/sha256" / image.digest[7:]).read_bytes()
    assert b'"config"' in manifest
    assert digest(manifest) == image.digest


async def test_load_several_images_is_all_or_nothing(store, root, tmp_path):
    layer = tar(member("a", b"1"))
    good = hybrid_archive([layer], ["web:1"])
    members = {}
    for content in (good, docker_save([layer, tar(member("../x", b""))], ["web:2"])):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for info in archive:
                if info.isfile() and info.name not in ("index.json", "oci-layout"):
                    members.setdefault(info.name, []).append(archive.extractfile(info).read())
    saved = b"[" + b",".join(part.strip(b"[]") for part in members.pop("manifest.json")) + b"]"
    everything = [member(name, parts[0]) for name, parts in members.items()]
    path = write(tmp_path / "a.tar", tar(*everything, member("manifest.json", saved)))
    with pytest.raises(InvalidArgument, match=r"contains '\.\.'"):
        await store.load(path)
    assert leftovers(root) == []
    assert store.list() == []


async def test_load_oci_takes_this_platform(store, root, tmp_path):
    images = [
        ([tar(member("a", b"arm"))], {"os": "linux", "architecture": "arm64"}, {}),
        ([tar(member("a", b"amd")), tar(member("b", b"2"))], AMD64, {}),
        ([tar(member("x", b"att"))], {"os": "unknown", "architecture": "unknown"}, {}),
    ]
    assert await store.load(write(tmp_path / "a.tar", oci_archive(images))) == ["multi:2"]
    image = store.resolve("multi:2")
    assert store.resolve(f"multi@{image.digest}").id == image.id
    with open(os.path.join(store.layers(image)[1], "a"), "rb") as file:
        assert file.read() == b"amd"
    blobs = {path.name for path in (root / "content/blobs/sha256").iterdir()}
    assert blobs == {
        image.id[7:], image.digest[7:], *(layer.blob_digest[7:] for layer in image.layers),
    }  # fmt: skip


async def test_names_and_removal(store, root, tmp_path):
    base = tar(member("base", b"1" * 100))
    await store.load(write(tmp_path / "a.tar", docker_save([base], tags=["a:1", "a:2"])))
    await store.load(write(tmp_path / "b.tar", docker_save([base, tar(member("b", b""))], ["b:1"])))
    first, second = store.resolve("a:1"), store.resolve("b:1")
    running, stopped = User("c" * 64), User("d" * 64, running=False)
    with pytest.raises(FailedPrecondition, match="referenced in multiple repositories"):
        await store.remove(first.id, users={})
    assert (await store.remove("a:1", users={first.id: [running]})).untagged == ("a:1",)
    with pytest.raises(
        FailedPrecondition, match=r"\(must force\) - container cccccccccccc is using"
    ):
        await store.remove("a:2", users={first.id: [running]})
    with pytest.raises(FailedPrecondition, match="being used by stopped container dddddddddddd"):
        await store.remove(first.id, users={first.id: [stopped]})
    with pytest.raises(FailedPrecondition, match=r"cannot be forced.*running container"):
        await store.remove(first.id, users={first.id: [stopped, running]}, force=True)
    async with store.lease(first.id):
        with pytest.raises(FailedPrecondition, match="read or built upon"):
            await store.remove(first.id, users={}, force=True)
    removal = await store.remove("a:2", users={second.id: [running]})
    assert removal.deleted == (first.id,)  # its only layer is shared
    assert os.path.exists(os.path.join(store.layers(second)[1], "base"))
    with pytest.raises(NotFound, match="No such image: a:2"):
        store.resolve("a:2")
    await store.tag("b:1", "c")
    removal = await store.remove(second.id, users={}, force=True)
    assert removal.untagged == ("b:1", "c:latest")
    assert len(removal.deleted) == 3
    assert leftovers(root) == ["images.json"]


async def test_index_survives_reopening(tmp_path):
    path = write(tmp_path / "a.tar", docker_save([tar(member("a", b"1"))]))
    store = await ImageStore.open(tmp_path / "s", settings=SETTINGS)
    await store.load(path)
    image = store.resolve("web:1")
    with pytest.raises(FailedPrecondition, match="in use by another process"):
        await ImageStore.open(tmp_path / "s", settings=SETTINGS)
    await store.aclose()
    store = await ImageStore.open(tmp_path / "s", settings=SETTINGS)
    try:
        assert store.resolve("web:1") == image
        assert (await store.gc()).blobs == 0
    finally:
        await store.aclose()


async def test_concurrent_loads_share_layers(store, root, tmp_path):
    shared = [tar(member(f"s{i}", os.urandom(200_000))) for i in range(4)]
    paths = [
        write(
            tmp_path / f"{i}.tar", docker_save([*shared, tar(member(f"own{i}", b""))], [f"w:{i}"])
        )
        for i in range(4)
    ]
    loaded = await asyncio.gather(*(store.load(path) for path in paths))
    assert loaded == [[f"w:{i}"] for i in range(4)]
    assert len(list((root / "snapshots").iterdir())) == 8
    assert list((root / "content/ingest").iterdir()) == [root / "content/ingest/trash"]
    for i in range(4):
        with merged(store, store.resolve(f"w:{i}"), tmp_path) as top:
            assert sorted(os.listdir(top)) == [f"own{i}", "s0", "s1", "s2", "s3"]


async def test_one_of_two_loads_fails_and_the_other_keeps_its_layers(store, tmp_path):
    shared = [tar(member(f"s{i}", os.urandom(100_000))) for i in range(3)]
    good = write(tmp_path / "g.tar", docker_save(shared, ["good:1"]))
    bad = write(tmp_path / "b.tar", docker_save([*shared, tar(member("../x", b""))], ["bad:1"]))
    results = await asyncio.gather(store.load(good), store.load(bad), return_exceptions=True)
    assert results[0] == ["good:1"]
    assert isinstance(results[1], InvalidArgument)
    with merged(store, store.resolve("good:1"), tmp_path) as top:
        assert sorted(os.listdir(top)) == ["s0", "s1", "s2"]
    report = await store.gc()
    assert (report.blobs, report.snapshots, report.leftovers) == (0, 0, 0)


async def test_a_known_layer_under_another_blob_is_verified(store, root, tmp_path):
    layer, other = tar(member("a", b"1")), tar(member("a", b"2"))
    await store.load(write(tmp_path / "a.tar", docker_save([layer])))
    before = leftovers(root)
    forged = docker_save([layer], ["forged:1"], Cmd=["/x"]).replace(layer, other)
    with pytest.raises(InvalidArgument, match="altered or damaged"):
        await store.load(write(tmp_path / "b.tar", forged))
    assert leftovers(root) == before


async def test_full_disk(tmp_path):
    with mounted("tmpfs", tmp_path / "small", "size=4m,nr_inodes=2000") as small:
        store = await ImageStore.open(small / "images", settings=SETTINGS)
        try:
            big = write(tmp_path / "big.tar", tar(member("a", os.urandom(6_000_000))))
            saved = write(tmp_path / "saved.tar", docker_save([big.read_bytes()]))
            for attempt in (store.import_rootfs(big, "web"), store.load(saved)):
                with pytest.raises(
                    ResourceExhausted, match=r"are needed next|No space left on device"
                ):
                    await attempt
                assert leftovers(small / "images") == []
            parts = tar(*(member(f"f{i}", os.urandom(100_000)) for i in range(60)))
            with pytest.raises(ResourceExhausted, match="No space left on device"):
                await store.import_rootfs(write(tmp_path / "parts.tar", parts), "web")
            assert leftovers(small / "images") == []
            many = tar(*(member(f"f{i}", b"") for i in range(6000)))
            with pytest.raises(ResourceExhausted, match="No space left"):
                await store.import_rootfs(write(tmp_path / "many.tar", many), "web")
            assert leftovers(small / "images") == []
            fits = write(tmp_path / "fits.tar", tar(member("a", b"ok")))
            assert (await store.import_rootfs(fits, "web")).repo_tags == ("web:latest",)
        finally:
            await store.aclose()


async def test_reserve_is_kept(tmp_path):
    with mounted("tmpfs", tmp_path / "small", "size=8m") as small:
        store = await ImageStore.open(small / "images")
        path = write(tmp_path / "a.tar", tar(member("a", b"x")))
        try:
            with pytest.raises(ResourceExhausted, match="must remain"):
                await store.import_rootfs(path, "web")
            assert leftovers(small / "images") == []
        finally:
            await store.aclose()


CRASHING = """
import asyncio, pathlib, sys
from tests.integration.images.conftest import SETTINGS
from tests.integration.images.tars import member, tar
from worker.images.store import ImageStore
async def slow():
    content = tar(member("a", bytes(900_000)), member("b", bytes(900_000)))
    yield content[:1_200_000]
    print("half", flush=True)
    await asyncio.sleep(3600)
async def main():
    store = await ImageStore.open(pathlib.Path(sys.argv[1]), settings=SETTINGS)
    await store.import_rootfs(slow(), "web")
asyncio.run(main())
"""


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_killed_in_the_middle_leaves_nothing(tmp_path):
    root = tmp_path / "images"
    process = subprocess.Popen(
        [sys.executable, "-c", CRASHING, str(root)], stdout=subprocess.PIPE,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__)))),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        until(lambda: any(path.endswith("/fs/a") for path in leftovers(root)))
        (unpacking,) = children(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    until(lambda: not _runs(unpacking))  # it dies with its parent
    assert leftovers(root) != []
    store = await ImageStore.open(root, settings=SETTINGS)
    try:
        await store.gc()
        assert leftovers(root) == []
        assert store.list() == []
    finally:
        await store.aclose()


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_gc_removes_published_orphans_and_a_load_replaces_them(store, root, tmp_path):
    layer = tar(member("a", b"1"))
    orphan = root / "snapshots" / digest(layer)[7:]
    (orphan / "fs").mkdir(parents=True)
    (orphan / "fs" / "half").write_bytes(b"of a crash")
    (root / "content/blobs/sha256" / ("e" * 64)).write_bytes(b"of a crash")
    (root / "content/ingest" / "stray").mkdir()
    await store.load(write(tmp_path / "a.tar", docker_save([layer])))
    assert os.listdir(store.layers(store.resolve("web:1"))[0]) == ["a"]
    report = await store.gc()
    assert (report.blobs, report.snapshots, report.leftovers) == (1, 0, 1)
    assert (await store.gc()).freed_bytes == 0


async def test_cancelled_import_leaves_nothing(store, root):
    started = asyncio.Event()

    async def stuck():
        yield tar(member("a", bytes(900_000)))[:800_000]
        started.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(store.import_rootfs(stuck(), "web"))
    await started.wait()
    with pytest.raises(FailedPrecondition, match="busy with 1 jobs"):
        await store.aclose()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leftovers(root) == []


async def test_what_cannot_be_read_is_named(store, tmp_path):
    with pytest.raises(NotFound, match="No such file"):
        await store.load(tmp_path / "none.tar")
    with pytest.raises(InvalidArgument, match="not a regular file"):
        await store.import_rootfs(tmp_path, "web")
    with pytest.raises(InvalidArgument, match="cannot contain a digest"):
        await store.import_rootfs(tmp_path / "x", "web@sha256:" + "a" * 64)
