"""YAML of Compose files: what scalars mean, where faults are, and what is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from swarmctl.compose.tree import BYTES_MAX, DEPTH_MAX, read_document, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("on", "on"), ("22:22", "22:22"), ("0440", 0o440), ("0o17", 15),
        ("0x1f", 31), ("12", 12), ("-3", -3), ("1.5", 1.5), ("1e3", 1000.0), ("true", True),
        ("False", False), ("~", None), ("", None), ("null", None), ("1.2.3", "1.2.3"),
        ("2001-01-01", "2001-01-01"), ("08", 8.0), ("3.8", 3.8), ("=", "="), ("0xzz", "0xzz"),
        ("1e999", "1e999"), (".inf", ".inf"), (".nan", ".nan"),
    ],
)  # fmt: skip
def test_plain_scalars_mean_what_they_mean_to_docker(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_text_in_quotes_stays_text():
    assert read_document("a: '12'\nb: \"true\"\nc: !!str 5\n", "f").value == {
        "a": "12", "b": "true", "c": "5",
    }  # fmt: skip


def test_merge_keys_give_what_is_not_there():
    text = "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz:\n  <<: [*x, *y]\n  a: 0\n"
    document = read_document(text, "f")
    assert document.value["z"] == {"a": 0, "b": 2, "c": 4}
    assert document.places.of(("z", "c")).line == 2
    assert document.places.of(("z", "a")).line == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "f:2: yaml: mapping key 'a' is there already"),
        ("a:\n  - b\n  c: d\n", "f:3: yaml:"),
        ("- 1\n", "f:1: top-level object must be a mapping"),
        ("", "f:1: top-level object must be a mapping"),
        ("a: 1\n---\nb: 2\n", "f:2: yaml: a second document"),
        ("a: *b\n", "f:1: yaml: alias *b has no anchor before it"),
        ("a: !!python/object:os.x 1\n", "is not known"),
        ("1: a\n", "f:1: yaml: key '1' must be text"),
        ("? [a]\n: 1\n", "f:1: yaml: a key must be text"),
        ("a: {<<: 5}\n", "map merge requires a map"),
        ("a: &a [*a]\n", f"nested more than {DEPTH_MAX} deep"),
        ("a: &a {<<: *a}\n", f"nested more than {DEPTH_MAX} deep"),
        ("a: " + "[" * 100_000, f"nested more than {DEPTH_MAX} deep"),
        ("a: '" + "x" * BYTES_MAX + "'", "bytes, at most"),
    ],
)
def test_what_is_no_file_of_ours_is_refused_with_its_line(text, message):
    with pytest.raises(InvalidArgument) as caught:
        read_document(text, "f")
    assert message in caught.value.message


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}]}}"])
def test_a_billion_laughs_end_early(form):
    lines = ["a0: &a0 {k: [x, x, x, x, x, x, x, x, x]}"]
    lines += [f"a{n}: &a{n} {form.format(', '.join([f'*a{n - 1}'] * 10))}" for n in range(1, 12)]
    with pytest.raises(InvalidArgument, match="more than 50000 values"):
        read_document("\n".join(lines), "f")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        document = read_document(text, "f")
    except InvalidArgument:
        return
    assert isinstance(document.value, dict)
