"""What registries answer, platforms as people write them, and histories."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import Internal, InvalidArgument, NotFound
from tests.support.fakes import an_image
from worker.images import history, oci
from worker.images.model import Image, ImageConfig, Layer
from worker.images.registry.manifests import choose, parse_platform, platform_text, read
from worker.images.registry.refusals import RETRY_AFTER_MAX_S, of_pull, pause_s, read_refusal

HOST = oci.Platform(architecture="amd64", os="linux")
DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("status", "body", "text", "retryable"),
    [
        (404, {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]},
         "manifest unknown: manifest unknown", False),
        (404, {"errors": [{"code": "NAME_UNKNOWN"}]}, "name unknown", False),
        (429, {"errors": [{"code": "BUSY", "message": "x"}]}, "busy: x", True),
        (503, "<html>", 'Get "u": received unexpected HTTP status: 503 why', True),
        (401, "", "unauthorized: authentication required", False),
        (403, {"errors": None}, "denied: requested access to the resource is denied", False),
        (400, {"errors": [3]}, 'Get "u": received unexpected HTTP status: 400 why', False),
    ],
)  # fmt: skip
def test_refusals_in_the_registry_s_words(status, body, text, retryable):
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    found = read_refusal("GET", "u", status, "why", content)
    assert (found.message, found.retryable) == (text, retryable)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("MANIFEST_UNKNOWN", "manifest for web:1 not found: "),
        ("NAME_UNKNOWN", "repository web not found: "),
        ("DENIED", "pull access denied for web, repository does not exist or may require"),
    ],
)
def test_what_a_pull_is_refused_with(kind, text):
    body = json.dumps({"errors": [{"code": kind}]}).encode()
    found = of_pull(read_refusal("GET", "u", 404, "", body), "web", "web:1")
    assert isinstance(found, NotFound)
    assert found.message.startswith(text)


@given(st.integers(1, 50), st.text(max_size=8), st.floats(0, 1))
def test_pauses_are_bounded_and_grow(attempt, retry_after, spread):
    pause = pause_s(attempt, 0.5, retry_after, spread)
    assert 0.5 <= pause <= RETRY_AFTER_MAX_S * 1.25
    assert pause_s(attempt + 1, 0.5, retry_after, spread) >= pause


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", "linux/amd64"), ("linux", "linux/amd64"), ("arm64", "linux/arm64/v8"),
        ("linux/x86_64", "linux/amd64"), ("linux/arm/v6", "linux/arm/v6"),
        ("LINUX/AMD64", "linux/amd64"), ("windows/amd64", "windows/amd64"),
    ],
)  # fmt: skip
def test_platforms(text, result):
    assert platform_text(parse_platform(text, HOST)) == result


@pytest.mark.parametrize("text", ["x/y", "a/b/c/d", "linux/", "/", "linux/am d64", "nosuch"])
def test_platforms_that_do_not_exist(text):
    with pytest.raises(InvalidArgument, match="unknown operating system or architecture"):
        parse_platform(text, HOST)


def test_the_highest_variant_that_is_known_to_run():
    def entry(variant, digit):
        platform = oci.Platform(architecture="arm", os="linux", variant=variant)
        return oci.Descriptor(digest="sha256:" + digit * 64, platform=platform)

    index = oci.ImageIndex([entry("v5", "5"), entry("v7", "7"), entry("v6", "6")])
    for wished, chosen in (("v6", "6"), ("v7", "7"), ("v8", "7")):
        platform = oci.Platform(architecture="arm", os="linux", variant=wished)
        assert choose(index, platform).digest == "sha256:" + chosen * 64


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_refused(content):
    with contextlib.suppress(InvalidArgument):  # nothing else may come out of it
        read(content, "application/json", "manifest")


def with_layers(*sizes) -> Image:
    base = an_image(ImageConfig(), "sha256:top")
    fields = {name: getattr(base, name) for name in base.__struct_fields__}
    layers = tuple(Layer(DIGEST, DIGEST, DIGEST, 1, "t", size) for size in sizes)
    return Image(**{**fields, "layers": layers, "parent": "sha256:below"})


def test_steps_have_the_sizes_of_their_layers_and_the_ids_of_parents_here():
    entries = (
        history.HistoryEntry(created_by="a"),
        history.HistoryEntry(created_by="b", empty_layer=True),
        history.HistoryEntry(created_by="c"),
    )
    told = history.Configuration(history=entries)
    below = an_image(ImageConfig(), "sha256:below")
    found = history.steps(with_layers(10, 20), told, {"sha256:below": below}.get)
    assert [(one.created_by, one.size_bytes, one.id) for one in found] == [
        ("c", 20, "sha256:top"), ("b", 0, "sha256:below"), ("a", 10, ""),
    ]  # fmt: skip
    with pytest.raises(Internal, match="too many non-empty layers"):
        history.steps(with_layers(10), told, {}.get)


def test_a_step_more_keeps_what_was_before():
    base = history.read_configuration(oci.build_config(
        ImageConfig(), platform=HOST, created="t0", diff_ids=[DIGEST], comment="imported"
    ))  # fmt: skip
    step = history.HistoryEntry(created="t1", created_by="sh", author="me", comment="c")
    made = history.child_configuration(base, {"Cmd": ["x"]}, step, diff_id=DIGEST, platform=HOST)
    parsed = oci.parse_config(made, what="made", layers_max=9)
    assert (parsed.diff_ids, parsed.config.cmd) == ((DIGEST, DIGEST), ("x",))
    found = history.read_configuration(made)
    assert [one.comment for one in found.history] == ["imported", "c"]
    assert (found.author, found.created, found.architecture) == ("me", "t1", "amd64")
