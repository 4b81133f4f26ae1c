"""The index: resolving, changing, and its file."""

from __future__ import annotations

import json

import pytest

from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from shoal.model.reference import parse_reference
from worker.images import index
from worker.images.model import ImageConfig

MANIFEST = "sha256:" + "d" * 64


def record(hexadecimal, digest=MANIFEST):
    return index.ImageRecord(
        id="sha256:" + hexadecimal.ljust(64, "0"), digest=digest, created="", architecture="amd64",
        os="linux", variant="", layers=(), config=ImageConfig(),
    )  # fmt: skip


def made(**names):
    found = index.Index()
    for hexadecimal, listed in names.items():
        found = found.with_image(
            record(hexadecimal),
            [parse_reference(name).with_default_tag() for name in listed],
            images_max=10,
        )
    return found


def test_names_ids_and_prefixes():
    found = made(abc1=["web"], abd2=["cafe", "r.example/x:2"])
    first, second = "sha256:" + "abc1".ljust(64, "0"), "sha256:" + "abd2".ljust(64, "0")
    for text in ("web", "web:latest", "docker.io/library/web", first, first[7:], "abc", first[:12]):
        assert index.resolve(found, text)[0] == first
    assert index.resolve(found, "cafe")[0] == second  # a name, though it is hexadecimal
    assert index.resolve(found, f"r.example/x@{MANIFEST}")[0] == second


def test_what_is_missing_is_named_as_docker_does():
    found = made(abc1=["web"], abd2=[])
    for text, told in (("none", "none:latest"), ("web:2", "web:2"), ("f00d", "f00d:latest")):
        with pytest.raises(NotFound) as caught:
            index.resolve(found, text)
        assert caught.value.message == f"No such image: {told}"
    with pytest.raises(InvalidArgument, match="ambiguous"):
        index.resolve(found, "ab")


def test_a_name_moves_and_the_old_image_dangles():
    found = made(aaaa=["web"]).with_image(
        record("bbbb"), [parse_reference("web:latest")], images_max=10
    )
    assert found.names_of(record("aaaa").id) == ()
    assert index.resolve(found, "web")[0] == record("bbbb").id


def test_bounded():
    with pytest.raises(ResourceExhausted, match="1 images, the limit"):
        made(aaaa=[]).with_image(record("bbbb"), [], images_max=1)


def test_file_is_read_back_and_other_formats_are_refused():
    found = made(aaaa=["web", "x:2"])
    assert index.decode(index.encode(found), path="p") == found
    with pytest.raises(FailedPrecondition, match="format 3"):
        index.decode(b'{"format": 3}', path="p")
    for damaged in (b"", b"{", b'{"format": 1, "images": 3}', b"[]"):
        with pytest.raises(FailedPrecondition, match="p is damaged"):
            index.decode(damaged, path="p")


def test_format_1_is_read_and_becomes_2():
    image_id = "sha256:" + "a" * 64
    old = {
        "format": 1,
        "images": {image_id: {
            "id": image_id, "digest": MANIFEST, "created": "", "architecture": "amd64",
            "os": "linux", "variant": "", "layers": [], "config": {"env": ["A=1"]},
        }},
        "names": {"docker.io/library/web:latest": image_id},
    }  # fmt: skip
    found = index.decode(json.dumps(old).encode(), path="p")
    assert found.format == 2
    image = found.image(image_id)
    assert (image.repo_tags, image.config.env) == (("web:latest",), ("A=1",))
    assert (image.repo_digests, image.parent, image.tagged_at_ns) == ((), "", 0)
    assert json.loads(index.encode(found))["format"] == 2
