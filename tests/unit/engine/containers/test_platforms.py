"""Images and the platforms containers are wanted on."""

from __future__ import annotations

import msgspec
import pytest

from engine.containers import platforms
from shoal.errors import InvalidArgument, NotFound
from worker.images.model import Image, ImageConfig
from worker.images.oci import Platform

HOST = Platform(os="linux", architecture="amd64")
IMAGE = Image(
    id="sha256:" + "0" * 64, digest="", names=(), repo_tags=(), created="", size_bytes=0,
    architecture="amd64", os="linux", variant="", layers=(), config=ImageConfig(),
)  # fmt: skip
FOREIGN = msgspec.structs.replace(IMAGE, architecture="arm64", variant="v8")
ANY = msgspec.structs.replace(IMAGE, architecture="")


@pytest.mark.parametrize("wanted", ["", "linux", "amd64", "linux/amd64", "x86_64"])
def test_the_image_is_for_it(wanted):
    platforms.check(IMAGE, "web", wanted, HOST)
    platforms.check(ANY, "web", wanted, HOST)


@pytest.mark.parametrize("wanted", ["linux/arm64", "windows/amd64", "linux/arm/v7"])
def test_the_image_is_for_another(wanted):
    words = f"image with reference web was found .* wanted {wanted}.*, actual: linux/amd64$"
    with pytest.raises(NotFound, match=words):
        platforms.check(IMAGE, "web", wanted, HOST)


def test_what_is_no_platform():
    with pytest.raises(InvalidArgument, match='"linux/abacus": unknown operating system'):
        platforms.check(IMAGE, "web", "linux/abacus", HOST)


def test_an_image_of_another_platform_is_told_when_nobody_asked_for_one():
    assert not platforms.warning(IMAGE, HOST)
    assert not platforms.warning(ANY, HOST)
    said = platforms.warning(FOREIGN, HOST)
    assert "(linux/arm64/v8) does not match the detected host platform (linux/amd64)" in said
