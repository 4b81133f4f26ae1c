"""Real file systems that fail under a real manager: nothing acknowledged is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("eio", "Input/output error"), ("read-only", "Read-only file system")],
)
def test_a_disk_that_fails_ends_the_manager_and_loses_nothing(
    tmp_path: Path, fault: str, reason: str
):
    command = ["unshare", "-m", "--propagation", "private", sys.executable, "-m"]
    command += ["tests.integration.manager.failing_disk", str(tmp_path), fault]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["lost"] == []
    # The manager's own writes may meet the disk first; then the call is not even begun.
    assert result["refused"] in ("Unavailable", "NotBegun")
    assert result["code"] == 70
    assert f"{reason}; what is durable is unknown: check the disk and restart" in result["log"]
    # A disk that is read-only from the start is refused in one line.
    assert result["code_at_start"] == 1
    assert "Read-only file system; check the disk and restart" in result["log"]
