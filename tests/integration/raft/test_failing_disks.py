"""The leader's disk fails under a real cluster: the others go on, nothing acknowledged is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def test_a_leader_whose_disk_fails_or_fills_up_is_replaced_and_comes_back(tmp_path: Path):
    command = ["unshare", "-m", "--propagation", "private", sys.executable, "-m"]
    command += ["tests.integration.raft.failing_disks", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)

    full = result["full"]
    assert full["handed_over"]
    assert full["runs_on"], "a full disk is no reason to end"
    assert full["refusals"], "who waited is told"
    for fault in ("eio", "read-only"):
        assert result[fault]["code"] == 70
    for fault in ("full", "eio", "read-only"):
        assert result[fault]["lost"] == []
    assert result["acknowledged"] > 30
