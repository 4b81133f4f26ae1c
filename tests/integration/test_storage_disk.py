"""The log on real file systems: a full tmpfs, and ext4 whose power is cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from manager.storage.wal import Wal
from shoal.errors import ResourceExhausted
from tests.unit.manager.storage.support import IDENTITY, entries

pytestmark = pytest.mark.root


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=2m", "shoal-test", str(disk)]
    subprocess.run(["mount", *options], check=True, timeout=30)
    yield disk
    subprocess.run(["umount", str(disk)], check=True, timeout=30)


def test_a_full_disk_refuses_and_the_log_goes_on_when_there_is_space(small_disk):
    wal = Wal.create(small_disk / "raft", IDENTITY, segment_bytes=256 << 10)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(900 << 10))

    def until_full() -> None:
        while True:
            wal.append(entries(wal.last_index + 1, wal.last_index + 20, size=1000))

    try:
        for _ in range(2):
            with pytest.raises(ResourceExhausted, match="No space left on device"):
                until_full()
        full_at = wal.last_index
        assert full_at > 500
        ballast.unlink()
        wal.append(entries(full_at + 1, full_at + 300, size=1000))
    finally:
        wal.close()
    wal, recovered = Wal.open(wal.directory, IDENTITY, segment_bytes=256 << 10)
    wal.close()
    assert recovered.last_index == full_at + 300
    assert recovered.repaired is None


def test_a_full_disk_refuses_to_create_a_log_and_leaves_nothing(small_disk):
    with pytest.raises(ResourceExhausted, match="free space and try again"):
        Wal.create(small_disk / "raft", IDENTITY, segment_bytes=4 << 20)
    assert list((small_disk / "raft").iterdir()) == []
    Wal.create(small_disk / "raft", IDENTITY, segment_bytes=1 << 20).close()


def power_cuts(tmp_path: Path, cuts: int, *options: str) -> list[dict[str, int]]:
    command = ["unshare", "-m", "--propagation", "private", sys.executable]
    command += ["-m", "tests.integration.power_cut", str(tmp_path), str(cuts), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_power_cut_loses_nothing_that_was_acknowledged(tmp_path):
    results = power_cuts(tmp_path, 4)
    assert len(results) == 4
    for result in results:
        assert result["found"] >= result["acknowledged"] > 0, results


def test_the_power_cut_rig_shows_a_missing_sync(tmp_path):
    (result,) = power_cuts(tmp_path, 1, "--no-sync")
    assert result["found"] < result["acknowledged"]
