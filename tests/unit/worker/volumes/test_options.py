"""Names and options of volumes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from worker.volumes import options


@pytest.mark.parametrize("name", ["v1", "a.b-c_d", "0x", "A" * 255])
def test_names(name):
    assert options.check_name(name) == name


@pytest.mark.parametrize("name", ["", "v", "bad name", ".x", "-x", "a/b", "a\n", "ä1", "A" * 256])
def test_bad_names(name):
    with pytest.raises(InvalidArgument, match="create "):
        options.check_name(name)


def test_no_options_is_a_directory():
    assert options.mount_plan("v1", {}) is None


def test_tmpfs():
    plan = options.mount_plan(
        "v", {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=7,noexec"}
    )
    assert plan == options.MountPlan("tmpfs", "tmpfs", 8, "size=1m,uid=7")
    assert plan.text("/t") == "mount tmpfs:/t, flags: 0x8, data: size=1m,uid=7"


def test_bind():
    plan = options.mount_plan("v", {"type": "none", "device": "/srv", "o": "rbind,ro,rslave"})
    assert plan == options.MountPlan("none", "/srv", 4096 | 16384 | 1, "", 1 << 19 | 16384)


def test_nfs_has_an_address():
    asked = {"type": "nfs4", "device": ":/x", "o": "addr=files.example,rw,soft"}
    plan = options.mount_plan("v", asked)
    assert plan == options.MountPlan(
        "nfs4", ":/x", 0, "addr=files.example,soft", 0, "files.example"
    )


def test_the_last_word_wins():
    plan = options.mount_plan("v", {"type": "t", "device": "d", "o": "ro,rw,nosuid,suid,nodev"})
    assert plan is not None
    assert plan.flags == 4


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"x": "y"}, 'create v: invalid option: "x"'),
        ({"type": "tmpfs"}, 'create v: missing required option: "device"'),
        ({"device": "tmpfs"}, 'create v: missing required option: "type"'),
        ({"o": "ro"}, 'create v: missing required option: "type"'),
        ({"size": "1g"}, "create v: quota size requested but no quota support"),
        (
            {"type": "none", "device": "x", "o": "bind"},
            "create v: device: a bind needs an absolute",
        ),
        ({"type": "t", "device": "d", "o": "remount"}, 'create v: o: "remount" is not possible'),
    ],
)
def test_refused(asked, text):
    with pytest.raises(InvalidArgument, match=f"^{text}"):
        options.mount_plan("v", asked)


@pytest.mark.parametrize("path", ["a", "a/b", "./a", "a/../b", "a/..", ""])
def test_subpaths(path):
    assert options.check_subpath(path) == path


@pytest.mark.parametrize("path", ["/a", "..", "../a", "a/../../b", "a/../..", "x\0y"])
def test_subpaths_that_leave(path):
    with pytest.raises(InvalidArgument, match="relative path within the volume"):
        options.check_subpath(path)


@given(st.lists(st.sampled_from(["a", "..", ".", "", "b"]), min_size=1))
def test_a_subpath_is_refused_exactly_when_a_step_of_it_is_outside(parts):
    path = "/".join(parts)
    depth, lowest = 0, 0
    for part in parts:
        depth += -1 if part == ".." else int(part in "ab" and part != "")
        lowest = min(lowest, depth)
    if path.startswith("/") or lowest < 0:
        with pytest.raises(InvalidArgument):
            options.check_subpath(path)
    else:
        assert options.check_subpath(path) == path
