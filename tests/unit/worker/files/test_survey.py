"""Patterns of copies, as Go's filepath.Match has them."""

from __future__ import annotations

import re

import pytest

from shoal.errors import InvalidArgument
from worker.files.survey import pattern_regex


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("abc", "abc", True), ("*", "abc", True), ("*c", "abc", True), ("a*", "a", True),
        ("a*", "ab/c", False), ("a*/b", "abc/b", True), ("a*/b", "a/c/b", False),
        ("a?c", "abc", True), ("a?c", "a/c", False), ("ab[c]", "abc", True),
        ("ab[b-d]", "abc", True), ("ab[e-g]", "abc", False), ("ab[^c]", "abc", False),
        ("ab[^e-g]", "abc", True), ("a\\*b", "a*b", True), ("a\\*b", "ab", False),
        ("a[^a]b", "a/b", False), ("[\\-x]", "-", True),
        ("[x\\-]", "x", True), ("[x\\-]", "z", False),
        ("[c-a]", "b", False), (".x", ".x", True), (".x", "ax", False),
    ],
)  # fmt: skip
def test_patterns(pattern, name, matches):
    assert bool(re.fullmatch(pattern_regex(pattern), name)) is matches


@pytest.mark.parametrize("pattern", ["[", "[^", "[^bc", "a[", "a[]", "[]a]", "[-]", "[x-]", "a\\"])
def test_malformed_patterns(pattern):
    with pytest.raises(InvalidArgument, match="syntax error in pattern"):
        pattern_regex(pattern)
