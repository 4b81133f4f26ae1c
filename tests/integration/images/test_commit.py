"""Images from what an overlay's upper directory has changed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import subprocess

import pytest

from shoal.errors import InvalidArgument, NotFound, ResourceExhausted
from tests.integration.images.conftest import SETTINGS, leftovers
from tests.integration.images.tars import directory, member, tar
from tests.integration.images.test_store import mounted
from worker.images.store import ImageStore

pytestmark = pytest.mark.root

CAPABILITY = bytes([1, 0, 0, 2, 0, 0x20] + [0] * 14)


@contextlib.contextmanager
def overlay(layers, place):
    """A container's root: what is written to the result goes to `place`/upper."""
    for name in ("upper", "work", "root"):
        (place / name).mkdir(parents=True)
    options = f"lowerdir={':'.join(layers)},upperdir={place}/upper,workdir={place}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", place / "root"], check=True)
    try:
        yield place / "root"
    finally:
        subprocess.run(["umount", "-l", place / "root"], check=True)


async def a_base(store, tmp_path):
    content = tar(
        directory("etc/", mode=0o711), member("etc/old", b"1"), member("etc/kept", b"2"),
        directory("dir/"), member("dir/below", b"3"),
    )  # fmt: skip
    path = tmp_path / "base.tar"
    path.write_bytes(content)
    return await store.import_rootfs(path, "base", changes=["ENV A=1"])


async def test_what_was_changed_is_the_layer(store, tmp_path):
    base = await a_base(store, tmp_path)
    with overlay(store.layers(base), tmp_path / "c") as root:
        (root / "etc/old").unlink()
        subprocess.run(["rm", "-r", root / "dir"], check=True)
        (root / "dir").mkdir(mode=0o750)
        (root / "dir/new").write_bytes(b"n" * 3_000_000)
        os.link(root / "dir/new", root / "dir/again")
        os.chown(root / "dir/new", 7, 70_000)
        os.chmod(root / "dir/new", 0o4755)
        os.setxattr(root / "dir/new", "security.capability", CAPABILITY)
        os.utime(root / "dir/new", (5, 1_111_111_111))
        (root / "link").symlink_to("../../etc/shadow")
        os.mkfifo(root / "pipe")
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(root / "socket"))
        name = os.fsencode(root) + b"/d\xff"
        with open(name, "wb") as file:
            file.write(b"odd")
        image = await store.commit(
            str(tmp_path / "c/upper"), base, b'{"Env":["A=2"],"Cmd":["x"]}',
            comment="c", author="me", created_by="sh", name="made:1",
        )  # fmt: skip
    assert image.config.env == ("A=2",)
    assert (image.parent, image.repo_tags, len(image.layers)) == (base.id, ("made:1",), 2)
    with overlay(store.layers(image), tmp_path / "d") as root:
        assert sorted(os.listdir(root / "etc")) == ["kept"]
        assert stat.S_IMODE((root / "etc").stat().st_mode) == 0o711
        assert sorted(os.listdir(root / "dir")) == ["again", "new"]
        new = (root / "dir/new").stat()
        assert (new.st_uid, new.st_gid, stat.S_IMODE(new.st_mode)) == (7, 70_000, 0o4755)
        assert (new.st_nlink, new.st_size, new.st_mtime) == (2, 3_000_000, 1_111_111_111)
        assert os.getxattr(root / "dir/again", "security.capability") == CAPABILITY
        assert os.readlink(root / "link") == "../../etc/shadow"
        assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
        assert not (root / "socket").exists()
        assert b"d\xff" in os.listdir(os.fsencode(root))
    told = await store.history(image)
    assert [(one.id, one.comment) for one in told] == [
        (image.id, "c"),
        (base.id, "Imported from base.tar"),
    ]
    assert (told[0].created_by, told[0].size_bytes > 3_000_000 - 1) == ("sh", True)
    assert (await store.configuration(image)).author == "me"


async def test_equal_changes_are_one_layer_and_parents_go_with_their_last_child(
    store, root, tmp_path
):
    base = await a_base(store, tmp_path)
    upper = tmp_path / "u"
    upper.mkdir()
    (upper / "x").write_bytes(b"x")
    first = await store.commit(str(upper), base, b"{}", comment="1")
    second = await store.commit(str(upper), base, b"{}", comment="2", name="second")
    third = await store.commit("", second, b'{"Cmd":["y"]}', name="third")
    assert first.layers == second.layers == third.layers
    assert first.id != second.id
    await store.remove(first.id, users={})
    await store.remove("base", users={})  # it has a child: only the name goes
    assert store.by_id(base.id).names == ()
    await store.remove("second", users={})
    removal = await store.remove("third", users={})
    assert removal.deleted[:3] == (third.id, second.id, base.id)
    assert leftovers(root) == ["images.json"]


async def test_an_image_without_layers(store, tmp_path):
    image = await store.commit("", None, b'{"Labels":{"a":"b"}}', name="nothing")
    assert image.layers == ()
    assert image.config.labels == {"a": "b"}
    assert [os.listdir(one) for one in store.layers(image)] == [[]]
    with overlay(store.layers(image), tmp_path / "c") as root:
        (root / "f").write_bytes(b"1")
        above = await store.commit(str(tmp_path / "c/upper"), image, b"{}")
    assert [one.size_bytes for one in await store.history(above)] == [1, 0]


async def test_what_cannot_be_committed_leaves_nothing(store, root, tmp_path):
    base = await a_base(store, tmp_path)
    before = leftovers(root)
    upper = tmp_path / "u"
    (upper / "d").mkdir(parents=True)
    os.setxattr(upper / "d", "trusted.overlay.redirect", b"/etc")
    with pytest.raises(InvalidArgument, match="names another layer's file"):
        await store.commit(str(upper), base, b"{}")
    with pytest.raises(InvalidArgument, match="config is malformed"):
        await store.commit("", base, b"[]")
    with pytest.raises(InvalidArgument, match="invalid image reference"):
        await store.commit("", base, b"{}", name="A B")
    assert leftovers(root) == before
    await store.remove("base", users={})
    with pytest.raises((NotFound, FileNotFoundError)):
        await store.commit("", base, b"{}")
    assert leftovers(root) == ["images.json"]


async def test_a_commit_on_a_full_disk_leaves_nothing(tmp_path):
    upper = tmp_path / "u"
    upper.mkdir()
    for name, content in (("dense", os.urandom(3_000_000)), ("light", bytes(9_000_000))):
        (upper / name).write_bytes(content)
        with mounted("tmpfs", tmp_path / "small", "size=2m"):
            store = await ImageStore.open(tmp_path / "small/s", settings=SETTINGS)
            with pytest.raises(ResourceExhausted, match="remove images or enlarge the disk"):
                await store.commit(str(upper), None, b"{}", name="a")
            assert leftovers(tmp_path / "small/s") == []
            await store.aclose()
        (upper / name).unlink()


async def test_a_commit_that_is_given_up(store, root, tmp_path):
    base = await a_base(store, tmp_path)
    before = leftovers(root)
    upper = tmp_path / "u"
    upper.mkdir()
    (upper / "big").write_bytes(os.urandom(200_000_000))
    work = asyncio.create_task(store.commit(str(upper), base, b"{}"))
    await asyncio.sleep(0.15)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert leftovers(root) == before


async def test_images_stay_over_a_restart(tmp_path):
    store = await ImageStore.open(tmp_path / "s")
    base = await a_base(store, tmp_path)
    image = await store.commit("", base, b"{}", name="a")
    await store.aclose()
    store = await ImageStore.open(tmp_path / "s")
    assert store.resolve("a") == image
    await store.aclose()
