"""Image references: docker's grammar and normal form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from shoal.model.reference import Reference, parse_reference

SHA = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("web", "docker.io/library/web", "web"),
        ("web:1.0", "docker.io/library/web:1.0", "web:1.0"),
        ("me/web", "docker.io/me/web", "me/web"),
        ("docker.io/web", "docker.io/library/web", "web"),
        ("index.docker.io/library/web:x", "docker.io/library/web:x", "web:x"),
        ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("localhost/web", "localhost/web", "localhost/web"),
        ("host:5000/a/b:t", "host:5000/a/b:t", "host:5000/a/b:t"),
        ("example.com/web", "example.com/web", "example.com/web"),
        ("[::1]:5000/web:1", "[::1]:5000/web:1", "[::1]:5000/web:1"),
        ("web:1@" + SHA, f"docker.io/library/web:1@{SHA}", f"web:1@{SHA}"),
        ("a__b/c-d.e_f", "docker.io/a__b/c-d.e_f", "a__b/c-d.e_f"),
        ("docker.io/a.b/c", "docker.io/a.b/c", "docker.io/a.b/c"),
        ("docker.io/" + "a" * 64, "docker.io/library/" + "a" * 64, "docker.io/library/" + "a" * 64),
        ("UPPER/web", "UPPER/web", "UPPER/web"),
    ],
)
def test_known_forms(text, full, familiar):
    reference = parse_reference(text)
    assert (str(reference), reference.familiar()) == (full, familiar)


def test_missing_tag_becomes_latest_only_without_a_digest():
    assert parse_reference("web").with_default_tag().tag == "latest"
    assert parse_reference("web:2").with_default_tag().tag == "2"
    assert parse_reference("web@" + SHA).with_default_tag().tag is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "empty"),
        ("Web", "lower case"),
        ("a//b", "component ''"),
        ("web:", "tag ''"),
        ("web:-x", "tag '-x'"),
        ("web:" + "t" * 129, "1 to 128"),
        ("web@sha256:12", "digest"),
        ("web@", "digest ''"),
        ("a" * 64, "64 hexadecimal"),
        ("host:99999999/web", "registry"),
        ("-host.example/web", "registry"),
        ("a___b", "component"),
        ("web\n", "component"),
        ("we b", "component"),
        ("../web", "registry"),
        ("a/" + "b" * 256, "255"),
        ("x" * 1025, "1024"),
    ],
)
def test_refusals_name_the_rule(text, rule):
    with pytest.raises(InvalidArgument, match="image reference") as caught:
        parse_reference(text)
    assert rule in caught.value.message


WORD = st.text("ab09", min_size=1, max_size=6)
COMPONENT = st.lists(
    st.tuples(WORD, st.sampled_from([".", "_", "__", "-", "--"])), max_size=2
).flatmap(lambda parts: WORD.map(lambda last: "".join(word + mark for word, mark in parts) + last))
REGISTRY = st.sampled_from(["docker.io", "localhost", "r.example", "r.example:5000", "[::1]:80"])
TAG = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@st.composite
def references(draw):
    registry = draw(REGISTRY)
    path = draw(st.lists(COMPONENT, min_size=1, max_size=4))
    if registry == "docker.io" and len(path) == 1:
        path = ["library", *path]
    return Reference(
        registry=registry,
        repository="/".join(path),
        tag=draw(TAG),
        digest=draw(st.none() | st.just(SHA)),
    )


@given(references())
def test_full_form_is_read_back(reference):
    assert parse_reference(str(reference)) == reference


@given(references())
def test_familiar_form_means_the_same(reference):
    assert parse_reference(reference.familiar()) == reference


@given(st.text(max_size=80))
def test_any_text_is_refused_or_normalises_to_itself(text):
    try:
        reference = parse_reference(text)
    except InvalidArgument:
        return
    assert parse_reference(str(reference)) == reference
    assert str(reference).isascii()
