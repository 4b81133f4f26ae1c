"""Images of a node through the docker command line: looking, naming, removing, moving."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from typing import Any

import pytest

from tests.integration.engine.daemon import DOCKER, EngineNode
from tests.integration.engine.seeded import ask, ok, refused, seeded_node

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(DOCKER is None, reason="the docker command line is not installed"),
]
MAKE_NODE = seeded_node


def inspected(node: EngineNode, name: str) -> dict[str, Any]:
    status, words = ask(node, "GET", f"/images/{name}/json")
    assert status == 200, words
    assert isinstance(words, dict)
    return words


def test_lists_and_filters(node: EngineNode) -> None:
    ok(node, "tag", "busybox", "r.example:5000/lib/bb:v1")
    ok(node, "tag", "busybox", "bb:1")
    shown = {tag for one in ask(node, "GET", "/images/json")[1] for tag in one["RepoTags"]}
    assert {"busybox:latest", "bb:1", "r.example:5000/lib/bb:v1"} <= shown
    one = "{{.Repository}}:{{.Tag}}"
    for wish, found in {
        "reference=busybox": ["busybox:latest"],
        "reference=b*": ["bb:1", "busybox:latest"],
        "reference=*/*/bb": ["r.example:5000/lib/bb:v1"],
        "reference=bb:[0-9]": ["bb:1"],
        "dangling=true": [],
        "label=none": [],
        "since=busybox": [],
    }.items():
        assert sorted(ok(node, "images", "-f", wish, "--format", one).split()) == found, wish
    assert refused(node, "images", "-f", "bad=1") == "Invalid filter 'bad'"
    assert "syntax error in pattern" in refused(node, "images", "-f", "reference=[a")
    ok(node, "rmi", "r.example:5000/lib/bb:v1", "bb:1")


def test_inspection_and_history(node: EngineNode) -> None:
    words = inspected(node, "busybox")
    assert words["RepoTags"] == ["busybox:latest"]
    assert words["Config"]["Env"] == ["FROM=image"]
    assert words["Metadata"]["LastTagTime"] > "2020"
    assert "ContainerConfig" not in words
    status, old = ask(node, "GET", "/v1.41/images/busybox/json")
    assert (status, old["VirtualSize"], old["Container"]) == (200, words["Size"], "")
    assert "Imported from" in ok(node, "history", "busybox")
    assert refused(node, "history", "nosuch") == "No such image: nosuch:latest"
    assert refused(node, "image", "inspect", "nosuch:1") == (
        "no such image: nosuch:1: No such image: nosuch:1"
    )
    assert refused(node, "tag", "nosuch", "a:b") == "No such image: nosuch:latest"
    assert "asks no search index" in refused(node, "search", "busybox")


def test_removals(node: EngineNode) -> None:
    ok(node, "tag", "busybox", "other/x:1")
    ok(node, "tag", "busybox", "other/x:2")
    image_id = str(inspected(node, "busybox")["Id"])
    assert refused(node, "rmi", image_id) == (
        f"conflict: unable to delete {image_id[7:19]} (must be forced) - image is referenced in"
        " multiple repositories"
    )
    assert ok(node, "rmi", "other/x:1", "other/x:2") == "Untagged: other/x:1\nUntagged: other/x:2"
    container = ok(node, "create", "--network", "none", "--name", "user", "busybox", "top")
    assert refused(node, "rmi", "busybox") == (
        'conflict: unable to remove repository reference "busybox" (must force) - container'
        f" {container[:12]} is using its referenced image {image_id[7:19]}"
    )
    assert ok(node, "rmi", "-f", "busybox") == "Untagged: busybox:latest"
    assert ok(node, "images", "-q", "--no-trunc", "-f", "dangling=true") == image_id
    assert "stopped container" in refused(node, "rmi", image_id)
    assert ok(node, "image", "prune", "-af") == "Total reclaimed space: 0B"
    assert ok(node, "start", "user") == "user"  # its layers have stayed
    ok(node, "tag", image_id, "busybox")
    ok(node, "rm", "-f", "user")
    assert refused(node, "rmi", "nosuch") == "No such image: nosuch:latest"


def test_prune(node: EngineNode) -> None:
    archive = _tar({"f": b"x" * 1000})
    for name in ("p1", "p2"):
        _docker_in(node, archive, "import", "-c", f"LABEL which={name}", "-", name)
    ok(node, "rmi", "--no-prune", "p2")
    _docker_in(node, archive, "import", "-c", "LABEL which=p1", "-", "p1")  # the first is nameless
    assert ok(node, "image", "prune", "-af", "--filter", "label=none") == (
        "Total reclaimed space: 0B"
    )
    assert "deleted: sha256:" in ok(node, "image", "prune", "-f")
    assert "untagged: p1:latest" in ok(node, "image", "prune", "-af", "--filter", "label=which=p1")
    assert ok(node, "images", "-q", "p1") == ""


def test_save_and_load(node: EngineNode) -> None:
    ok(node, "tag", "busybox", "saved/x:1")
    ok(node, "tag", "busybox", "saved/x:2")
    content = subprocess.run(
        [str(DOCKER), "-H", f"unix://{node.socket}", "save", "saved/x"],
        check=True, capture_output=True, timeout=60,
    ).stdout  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert found[0]["RepoTags"] == ["saved/x:1", "saved/x:2"]
    ok(node, "rmi", "saved/x:1", "saved/x:2")
    assert _docker_in(node, content, "load") == "Loaded image: saved/x:1\nLoaded image: saved/x:2"
    assert inspected(node, "saved/x:1")["Id"] == inspected(node, "busybox")["Id"]
    assert refused(node, "save", "nosuch:1") == "reference does not exist"
    ran = _ran_in(node, b"junk\n", "load")
    assert (ran.returncode, ran.stderr.decode().strip()) == (
        1, "Error processing tar file(exit status 1): unexpected EOF",
    )  # fmt: skip
    ok(node, "rmi", "saved/x:1", "saved/x:2")


def test_what_is_used_of_the_disk(node: EngineNode) -> None:
    ok(node, "create", "--network", "none", "--name", "df", "-v", "dfvol:/v", "busybox")
    ok(node, "tag", "busybox", "busybox:df")
    try:
        status, words = ask(node, "GET", "/system/df")
        assert status == 200
        assert words["LayersSize"] >= inspected(node, "busybox")["Size"]
        (image,) = (one for one in words["Images"] if "busybox:df" in one["RepoTags"])
        assert (image["Containers"], image["SharedSize"]) == (1, 0)
        (container,) = words["Containers"]
        assert (container["Names"], container["SizeRootFs"] > 0) == (["/df"], True)
        (volume,) = words["Volumes"]
        assert (volume["Name"], volume["UsageData"]["RefCount"]) == ("dfvol", 1)
        assert words["BuildCache"] == []
        shown = ok(node, "system", "df")
        assert re.search(r"Images +\d+ +1 ", shown), shown
        assert "dfvol" in ok(node, "system", "df", "-v")
        assert ask(node, "GET", "/system/df?type=volume")[1]["Images"] is None
        assert ask(node, "GET", "/system/df?type=x")[0] == 400
    finally:
        ok(node, "rm", "-fv", "df")
        ok(node, "volume", "rm", "dfvol")
        ok(node, "rmi", "busybox:df")


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _ran_in(
    node: EngineNode, content: bytes, *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(DOCKER), "-H", f"unix://{node.socket}", *arguments],
        input=content, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def _docker_in(node: EngineNode, content: bytes, *arguments: str) -> str:
    ran = _ran_in(node, content, *arguments)
    assert ran.returncode == 0, ran
    return ran.stdout.decode().strip()
