"""File systems that are mounted for a moment: what can be read and written, and what is left."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.errors import FailedPrecondition
from worker.files.layers import Layers
from worker.runtime.lean import linux

pytestmark = pytest.mark.root


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="shoal-layers-", dir="/var/tmp") as directory:
        base = Path(directory)
        for name in ("top/data", "low/data", "low/etc", "c/rootfs", "c/upper", "c/work"):
            (base / name).mkdir(parents=True)
        (base / "top/data/new").write_text("n")
        (base / "low/data/old").write_text("o")
        (base / "low/way").symlink_to("/data")
        (base / "low/out").symlink_to("../../../../../../etc")
        yield base
        assert str(base) not in Path("/proc/self/mountinfo").read_text()


def layers(base: Path) -> Layers:
    return Layers(lambda container: f"{base}/{container}")


def both(base: Path) -> tuple[str, ...]:
    return f"{base}/top", f"{base}/low"


@pytest.mark.parametrize("path", ["/data", "/way", "/out/../data"])
async def test_the_image_s_own_directory(base: Path, path: str):
    async with layers(base).content("c", both(base), path) as place:
        assert sorted(os.listdir(place)) == ["new", "old"]
        shown = subprocess.run(["ls", place], check=True, capture_output=True, text=True)
        assert shown.stdout.split() == ["new", "old"]
    assert not os.path.exists(place)


async def test_a_link_that_leads_out_stays_inside(base: Path):
    (base / "low/etc/ours").write_text("x")
    async with layers(base).content("c", both(base), "/out") as place:
        assert os.listdir(place) == ["ours"]


@pytest.mark.parametrize("path", ["/nothing", "/data/old"])
async def test_there_is_no_directory(base: Path, path: str):
    async with layers(base).content("c", both(base), path) as place:
        assert place == ""


async def test_one_layer_needs_no_mount(base: Path):
    async with layers(base).content("c", (f"{base}/low",), "/data") as place:
        assert os.listdir(place) == ["old"]


async def test_more_layers_than_a_page_of_options_names(base: Path):
    many = []
    for number in range(120):
        (base / f"{'n' * 30}{number}/data").mkdir(parents=True)
        (base / f"{'n' * 30}{number}/data/{number}").touch()
        many.append(f"{base}/{'n' * 30}{number}")
    async with layers(base).content("c", many, "/data") as place:
        assert len(os.listdir(place)) == 120


async def test_what_is_written_to_a_root_is_the_container_s(base: Path):
    async with layers(base).root("c", both(base)) as place:
        assert str(base) not in Path("/proc/self/mountinfo").read_text()
        Path(f"{place}/data/mine").write_text("m")
    assert (base / "c/upper/data/mine").read_text() == "m"
    assert not (base / "top/data/mine").exists()


async def test_a_layer_that_is_gone(base: Path):
    with pytest.raises(FailedPrecondition, match="mount"):
        async with layers(base).root("c", (f"{base}/gone",)):
            pass


async def test_what_a_crash_left_mounted_is_unmounted(base: Path):
    linux.mount("tmpfs", f"{base}/c/rootfs", "tmpfs", 0)
    layers(base).open()
    assert str(base) not in Path("/proc/self/mountinfo").read_text()
