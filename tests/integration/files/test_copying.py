"""Copies of builds: what sources are, where they go, and that neither side is left."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from shoal.errors import InvalidArgument, NotFound, SwarmError
from tests.integration.files.test_files import base, place  # noqa: F401 a fixture
from worker.files.jobs import CopyJob, TreePlace
from worker.files.service import Files

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path) -> TreePlace:
    (tmp_path / "d/sub").mkdir(parents=True)
    (tmp_path / "d/a").write_text("a")
    (tmp_path / "d/sub/b").write_text("b")
    (tmp_path / "f1").write_text("one")
    (tmp_path / "to-f1").symlink_to("f1")
    (tmp_path / "out").symlink_to("/etc/hostname")
    with tarfile.open(tmp_path / "t.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "d", "packed")
    return TreePlace(str(tmp_path))


async def copied(base: Path, tree: TreePlace, to: str, *wanted: str, owner: str = "") -> None:  # noqa: F811
    files = Files()
    found = await files.survey(tree, wanted, archives=True)
    await files.copy(CopyJob(tree, tuple(found), place(base), to, owner))


async def test_a_survey_tells_what_there_is(tree):
    files = Files()
    found = await files.survey(tree, ["f*", "d", "to-f1", "t.tar.xz"], archives=True)
    assert [(one.path, one.is_directory, one.is_archive) for one in found] == [
        ("/f1", False, False), ("/d", True, False), ("/to-f1", False, False),
        ("/t.tar.xz", False, True),
    ]  # fmt: skip
    assert found[0].digest == found[2].digest, "a link is what it leads to"
    (Path(tree.directory) / "d/sub/b").chmod(0o700)
    assert (await files.survey(tree, ["d"]))[0].digest != found[1].digest
    assert await files.survey(tree, ["x*"]) == []
    for missing in ("x", "out", "../x", "f1/x"):
        with pytest.raises((NotFound, InvalidArgument)):
            await files.survey(tree, [missing])


async def test_files_go_into_directories_and_onto_names(base, tree):  # noqa: F811
    await copied(base, tree, "/tmp", "f1")
    await copied(base, tree, "/new/dir/", "f1")
    await copied(base, tree, "/new/name", "to-f1", owner="web")
    await copied(base, tree, "/content", "d", owner="3:4")
    await copied(base, tree, "/unpacked", "t.tar.xz")
    upper = base / "c/upper"
    assert (upper / "tmp/f1").read_text() == "one"
    assert (upper / "new/dir/f1").read_text() == "one"
    name = os.lstat(upper / "new/name")
    assert (stat.S_ISREG(name.st_mode), name.st_uid, name.st_gid) == (True, 33, 34)
    assert sorted(os.listdir(upper / "content")) == ["a", "sub"]
    assert os.lstat(upper / "content").st_gid == 4
    assert (upper / "unpacked/packed/sub/b").read_text() == "b"


async def test_links_of_the_target_are_followed_inside_it(base, tree):  # noqa: F811
    (base / "low/esc").symlink_to(base / "host")
    (base / "low/loop").symlink_to("loop")
    (base / "low/file").write_text("x")
    await copied(base, tree, "/esc/f1", "f1")
    await copied(base, tree, "/esc/", "d")
    assert sorted(os.listdir(base / "host")) == ["secret"]
    assert (base / f"c/upper/{base}/host/f1").read_text() == "one"
    for to in ("/loop/", "/file/"):
        with pytest.raises(SwarmError):
            await copied(base, tree, to, "f1")


async def test_a_directory_is_made_once(base):  # noqa: F811
    files = Files()
    assert await files.copy(CopyJob(None, (), place(base), "/w/x"))
    assert not await files.copy(CopyJob(None, (), place(base), "/w/x"))
    assert not await files.copy(CopyJob(None, (), place(base), "/"))


async def test_small_files_are_read_whole_or_not_at_all(tree):
    files = Files()
    assert await files.content(tree, "to-f1", 3) == b"one"
    with pytest.raises(InvalidArgument, match="larger than 2 bytes"):
        await files.content(tree, "f1", 2)
    with pytest.raises(InvalidArgument, match="not a regular file"):
        await files.content(tree, "d", 9)
    with pytest.raises(NotFound):
        await files.content(tree, "out", 9)
