"""Marks of images: equal for all names of one image, and found again among others."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shoal.errors import InvalidArgument
from shoal.model.images import MARK_BYTES, MARKS_MAX, check_marks, holds, join, mark_of

DIGEST = "sha256:" + "a" * 64
NAMES = st.from_regex(r"[a-z]{1,6}(:[a-z0-9]{1,4})?", fullmatch=True)


def test_all_names_of_an_image_have_one_mark():
    names = ("web", "web:latest", "library/web", "docker.io/library/web:latest")
    assert len({mark_of(name) for name in names}) == 1
    assert mark_of("web:1") != mark_of("web:2")
    assert mark_of(f"web:1@{DIGEST}") == mark_of(f"web@{DIGEST}") != mark_of("web:1")
    assert len(mark_of("web")) == MARK_BYTES


def test_what_is_no_name_has_no_mark_and_is_nowhere():
    assert mark_of("") == mark_of("WEB:1") == mark_of("a" * 64) == b""
    assert join(["", "WEB:1"]) == b""
    assert not holds(join(["web"]), b"")


@given(st.lists(NAMES, max_size=20), NAMES)
def test_exactly_those_that_were_joined_are_held(names, other):
    marks = join(names)
    check_marks(marks)
    assert all(holds(marks, mark_of(name)) for name in names)
    assert holds(marks, mark_of(other)) == (mark_of(other) in map(mark_of, names))
    assert join(reversed(names)) == marks


@given(st.binary(min_size=32, max_size=64).filter(lambda data: len(data) % MARK_BYTES == 0),
       st.integers(0, 24))  # fmt: skip
def test_what_lies_across_two_marks_is_none(marks, start):
    mark = marks[start : start + MARK_BYTES]
    pieces = [marks[at : at + MARK_BYTES] for at in range(0, len(marks), MARK_BYTES)]
    assert holds(marks, mark) == (mark in pieces)


def test_the_first_names_are_told_where_there_are_too_many():
    names = [f"web:{number}" for number in range(MARKS_MAX + 1)]
    marks = join(names)
    assert len(marks) == MARKS_MAX * MARK_BYTES
    assert holds(marks, mark_of(names[0]))
    assert not holds(marks, mark_of(names[-1]))


@pytest.mark.parametrize("marks", [bytes(7), bytes(MARK_BYTES * (MARKS_MAX + 1))])
def test_what_no_node_would_tell_is_refused(marks):
    with pytest.raises(InvalidArgument, match=r"images: .* bytes, must be up to 256 marks"):
        check_marks(marks)
