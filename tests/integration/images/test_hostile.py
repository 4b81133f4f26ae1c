"""Hostile archives: each refused with the entry and the rule, and nothing left behind."""

from __future__ import annotations

import gzip
import tarfile
import time

import pytest

from shoal.errors import InvalidArgument, SwarmError
from tests.integration.images.conftest import leftovers
from tests.integration.images.tars import (
    device,
    directory,
    docker_save,
    hardlink,
    member,
    oci_archive,
    symlink,
    tar,
)
from worker.images.model import StoreSettings, UnpackLimits
from worker.images.store import ImageStore

pytestmark = pytest.mark.root


def endless_headers():
    """Many pax headers, each within the limit, and no entry to use them up."""
    part = tar(member("a", b"", xattrs={"user.a": "x" * 60_000}))[: 512 + 60_416]
    return part * 40


HOSTILE = {
    "dot-dot": (tar(member("../escaped", b"x")), "'../escaped' contains '..'"),
    "dot-dot inside": (tar(member("a/../../escaped", b"x")), "contains '..'"),
    "absolute": (tar(member("/tmp/escaped", b"x")), "'/tmp/escaped' is an absolute path"),
    "through absolute link": (
        tar(symlink("a", "/tmp"), member("a/escaped", b"x")),
        "'a/escaped': its parent 'a' is a symbolic link that leaves the root",
    ),
    "through relative link": (
        tar(symlink("a", "../../../tmp"), member("a/escaped", b"x")),
        "leaves the root",
    ),
    "through two links": (
        tar(directory("d"), symlink("d/b", ".."), symlink("a", "d/b/.."), member("a/x", b"x")),
        "leaves the root",
    ),
    "link circle": (tar(symlink("a", "b"), symlink("b", "a"), member("a/x", b"x")), "circular"),
    "hard link out": (tar(hardlink("a", "../../etc/passwd")), "hard link target"),
    "hard link absolute": (tar(hardlink("a", "/etc/passwd")), "is an absolute path"),
    "hard link through link": (
        tar(symlink("e", "/etc"), hardlink("a", "e/passwd")),
        "leaves the root",
    ),
    "hard link to nothing": (tar(hardlink("a", "none")), "'none' is not a file of this layer"),
    "hard link to itself": (tar(hardlink("a", "a")), "not a file of this layer"),
    "hard link to itself, existing": (tar(member("a", b"x"), hardlink("a", "a")), "to itself"),
    "hard link to directory": (tar(directory("d"), hardlink("a", "d")), "not a file"),
    "whiteout of dot-dot": (tar(member(".wh...", b"")), "must name what it hides"),
    "whiteout of dot": (tar(member("d/.wh..", b"")), "must name what it hides"),
    "whiteout of nothing": (tar(member(".wh.", b"")), "must name what it hides"),
    "whiteout through link": (
        tar(symlink("a", "/tmp"), member("a/.wh.x", b"")),
        "leaves the root",
    ),
    "opaque through link": (
        tar(symlink("a", "/tmp"), member("a/.wh..wh..opq", b"")),
        "leaves the root",
    ),
    "block device": (tar(device("sda", tarfile.BLKTYPE, 8, 0)), "'sda' is a block device"),
    "overlay whiteout device": (tar(device("x", major=0, minor=0)), "character device 0:0"),
    "device bomb": (tar(*(device(f"d{i}") for i in range(65))), "more than 64 device nodes"),
    "overlay redirect": (
        tar(directory("a", xattrs={"trusted.overlay.redirect": "/x"})),
        "overlayfs' own attributes",
    ),
    "file as parent": (tar(member("a", b"x"), member("a/b", b"x")), "'a' is not a directory"),
    "root as file": (tar(member("./", b"", type=tarfile.SYMTYPE, linkname="/tmp")), "root"),
    "long name": (tar(member("n" * 300, b"")), "longer than 255 bytes"),
    "long path": (tar(member("/".join(["n" * 200] * 30).lstrip("/"), b"")), "4095 bytes"),
    "truncated": (tar(member("a", bytes(100_000)))[:50_000], "truncated"),
    "truncated gzip": (gzip.compress(tar(member("a", b"x" * 9999)))[:60], "truncated"),
    "not a tar": (b"#!/bin/sh\n" * 500, "not a tar"),
    "empty": (b"", "empty"),
    "depth": (tar(member("/".join("d" * 300), b"")), "more than 255 directories deep"),
    "depth through links": (
        tar(
            member("/".join("a" * 200) + "/x", b""),
            symlink("l", "/".join("a" * 200)),
            member("l/" + "/".join("b" * 100) + "/x", b""),
        ),
        "more than 255 directories deep",
    ),
    "device number": (tar(device("d", major=1 << 20)), "cannot exist on Linux"),
    "attribute name": (tar(member("a", b"", xattrs={"user.a\0b": "x"})), "contains a NUL byte"),
    "attribute too big": (
        tar(member("a", b"", xattrs={"user.a": "x" * 70_000})),
        "attribute 'user.a' is refused",
    ),
    "endless headers": (endless_headers(), "extended headers have"),
    "unknown type": (tar(member("a", b"", type=b"Z")), "unknown type"),
    "late evil after good": (
        tar(*(member(f"f{i}", b"x" * 1000) for i in range(50)), member("../e", b"")),
        "contains '..'",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_import(store, root, tmp_path, name):
    content, rule = HOSTILE[name]
    path = tmp_path / "hostile.tar"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument) as caught:
        await store.import_rootfs(path, "web")
    assert rule in caught.value.message
    assert leftovers(root) == []
    assert store.list() == []
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("name", ["dot-dot", "through absolute link", "device bomb", "truncated"])
async def test_hostile_layer_of_a_loaded_image(store, root, tmp_path, name):
    content, rule = HOSTILE[name]
    path = tmp_path / "hostile.tar"
    path.write_bytes(docker_save([tar(member("good", b"x")), content]))
    with pytest.raises(InvalidArgument) as caught:
        await store.load(path)
    assert rule in caught.value.message
    assert leftovers(root) == []


AMD64 = {"os": "linux", "architecture": "amd64"}
LAYER = tar(member("a", b"x"))


def _flip(blobs):
    largest = max(blobs, key=lambda key: len(blobs[key]))
    blobs[largest] = blobs[largest][:-1] + bytes([blobs[largest][-1] ^ 1])


def _drop(blobs):
    del blobs[next(iter(blobs))]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (tar(member("../manifest.json", b"[]")), "contains '..'"),
        (tar(member("x", b"")), "neither manifest.json"),
        (tar(member("manifest.json", b"[]")), "no image"),
        (tar(member("manifest.json", b"{")), "manifest.json is malformed"),
        (tar(member("manifest.json", b'[{"Config":"c","Layers":[]}]')), "'c' is missing"),
        (tar(symlink("manifest.json", "../../etc/passwd")), "leaves the archive"),
        (tar(symlink("manifest.json", "manifest.json")), "is missing"),
        (tar(device("manifest.json")), "is a character device"),
        (docker_save([LAYER], settings=b'{"rootfs":{"diff_ids":[]}}'), "diff_ids is empty"),
        (docker_save([LAYER], settings=b'{"rootfs":{"diff_ids":["x"]}}'), "sha256:"),
        (docker_save([LAYER], tags=["Bad"]), "lower case"),
        (docker_save([LAYER], architecture="s390x"), "linux/s390x"),
        (oci_archive([([LAYER], AMD64, {})], damage=_flip), "altered or damaged"),
        (oci_archive([([LAYER], AMD64, {})], damage=_drop), "is missing"),
        (oci_archive([([LAYER], {"os": "linux", "architecture": "mips"}, {})]), "linux/mips"),
    ],
    ids=str,
)
async def test_hostile_image_archives(store, root, tmp_path, content, rule):
    path = tmp_path / "archive.tar"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument) as caught:
        await store.load(path)
    assert rule in caught.value.message
    assert leftovers(root) == []


async def test_wrong_diff_id_is_refused(store, root, tmp_path):
    other = tar(member("b", b"other"))
    path = tmp_path / "archive.tar"
    content = docker_save([LAYER])
    path.write_bytes(content.replace(LAYER, other.ljust(len(LAYER), b"\0")))
    with pytest.raises(InvalidArgument, match="altered or damaged"):
        await store.load(path)
    assert leftovers(root) == []


async def test_limits_are_named(tmp_path):
    limits = UnpackLimits(
        free_bytes_reserve=0, archive_bytes_max=50_000, unpacked_bytes_max=40_000, entries_max=3
    )
    root = tmp_path / "limited"
    store = await ImageStore.open(root, settings=StoreSettings(limits=limits))
    path = tmp_path / "big.tar"
    try:
        for content, rule in (
            (gzip.compress(tar(member("zeros", bytes(1_000_000)))), "more than 40000 bytes"),
            (tar(*(member(f"f{i}", b"") for i in range(4))), "more than 3 entries"),
        ):
            path.write_bytes(content)
            with pytest.raises(InvalidArgument, match=rule):
                await store.import_rootfs(path, "web")
            assert leftovers(root) == []
    finally:
        await store.aclose()


async def test_archive_over_its_limit(tmp_path):
    limits = UnpackLimits(free_bytes_reserve=0, archive_bytes_max=50_000)
    store = await ImageStore.open(tmp_path / "s", settings=StoreSettings(limits=limits))
    path = tmp_path / "big.tar"
    path.write_bytes(tar(member("a", bytes(100_000))))
    try:
        with pytest.raises(InvalidArgument, match="archive_bytes_max"):
            await store.import_rootfs(path, "web")
        assert leftovers(tmp_path / "s") == []
    finally:
        await store.aclose()


async def test_a_source_that_fails_leaves_nothing(store, root):
    async def broken():
        yield tar(member("a", bytes(300_000)))[:200_000]
        raise ConnectionAbortedError("client went away")

    with pytest.raises(ConnectionAbortedError):
        await store.import_rootfs(broken(), "web")
    assert leftovers(root) == []


async def test_a_source_that_goes_on_after_the_refusal(store, root):
    async def endless():
        deadline = time.monotonic() + 30
        yield tar(member("../e", b""))
        while time.monotonic() < deadline:
            yield bytes(1 << 20)

    with pytest.raises(SwarmError, match=r"contains '\.\.'"):
        await store.import_rootfs(endless(), "web")
    assert leftovers(root) == []
