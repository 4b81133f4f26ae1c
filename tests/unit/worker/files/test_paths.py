"""Paths clients name, and names tars carry."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from worker.files.paths import Path, parse
from worker.files.placing import _inside

_PARTS = st.lists(st.sampled_from(["", ".", "..", "a", "bc", " "]), max_size=8)


@pytest.mark.parametrize(
    ("text", "clean", "name", "followed"),
    [
        ("/f1", "/f1", "f1", False),
        ("f1", "/f1", "f1", False),
        ("/tmp/", "/tmp", "tmp", True),
        ("/tmp/.", "/tmp", ".", True),
        ("/", "/", "/", True),
        ("", "/", "/", True),
        ("/a/../../b", "/b", "b", False),
        ("/a/..", "/", "/", True),
    ],
)
def test_as_docker_reads_them(text: str, clean: str, name: str, followed: bool):
    assert parse(text) == Path(clean, name, followed)


@given(_PARTS)
def test_a_path_stays_below_the_root(parts: list[str]):
    path = parse("/".join(parts))
    assert path.clean.startswith("/")
    assert ".." not in path.clean.split("/")
    assert path.clean == posixpath.normpath(path.clean)
    assert "/" not in path.name or path.name == "/"


@given(_PARTS)
def test_a_name_in_a_tar_stays_below_its_directory(parts: list[str]):
    text = "/".join(parts)
    leaves = not posixpath.normpath(f"x/y/{text.lstrip('/')}").startswith("x/y")
    if leaves:
        with pytest.raises(InvalidArgument, match="outside"):
            _inside(text, "entry")
        return
    name = _inside(text, "entry")
    assert not name.startswith("/")
    assert ".." not in name.split("/")


def test_no_path_holds_a_nul():
    for read in (parse, lambda text: _inside(text, "entry")):
        with pytest.raises(InvalidArgument, match="NUL"):
            read("/a\0b")
