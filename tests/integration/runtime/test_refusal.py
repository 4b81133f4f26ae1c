"""A machine without the control groups containers need: who asks is told what is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.runtime.site import DEADLINE_S, end_keeper

pytestmark = pytest.mark.root

_WITHOUT_GROUPS = 'umount --recursive --lazy /sys/fs/cgroup; exec "$@"'
_WITHOUT_CONTROLLERS = (
    'umount --recursive --lazy /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec "$@"'
)


@pytest.mark.parametrize(
    ("preparation", "reason"),
    [
        (_WITHOUT_GROUPS, "no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup"),
        (_WITHOUT_CONTROLLERS, "cgroup v2 controllers not available: cpu, memory, pids;"),
    ],
)
def test_people_are_told_what_the_node_lacks(tmp_path: Path, preparation: str, reason: str):
    if preparation == _WITHOUT_CONTROLLERS and not os.path.isdir("/sys/fs/cgroup/memory"):
        pytest.skip("every controller is on version 2 here")
    run = tmp_path / "r"
    daemon = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", preparation, "sh", sys.executable, "-P", "-m", "swarmd",
         "--state-dir", str(tmp_path / "s"), "--run-dir", str(run), "--metrics-addr", "",
         "--cgroup-parent", f"/shoal-test-{tmp_path.name}"],
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while reason not in (said := _info(run / "swarmd.sock")):
            assert daemon.poll() is None, "swarmd has ended"
            assert time.monotonic() < deadline_s, said
            time.sleep(0.1)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(DEADLINE_S)
        end_keeper(str(run))


def _info(socket: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "swarmctl", "-H", f"unix://{socket}", "info"],
        capture_output=True, text=True, check=False, timeout=DEADLINE_S,
    )  # fmt: skip
    return done.stdout + done.stderr
