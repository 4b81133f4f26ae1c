"""Version 2 where swarmd does not see the machine's root: in a container, in a service's group."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.runtime.site import DEADLINE_S, end_keeper
from tests.support.groups import V2

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not V2, reason="the rule is version 2's; `make test-vm` has it"),
]
_IN_A_CONTAINER = """
mount --make-rprivate / && umount --recursive --lazy /sys/fs/cgroup &&
mount -t cgroup2 none /sys/fs/cgroup && exec "$@"
"""
_RUNTIME = """
import asyncio, sys
from worker.runtime.api import ContainerConfig
from worker.runtime.client import NativeRuntime

async def main(base, image):
    runtime = NativeRuntime(state_dir=f"{base}/s", run_dir=f"{base}/r", cgroup_parent=sys.argv[3])
    await runtime.ensure_running()
    config = ContainerConfig(id="c", layers=(image,), args=("true",), memory_bytes=64 << 20)
    await runtime.create(config)
    await runtime.start("c")
    print((await runtime.wait("c")).exit_code, open("/proc/self/cgroup").read().strip())
    await runtime.remove("c")
    await runtime.shutdown()

asyncio.run(main(*sys.argv[1:3]))
"""


@pytest.fixture
def group(tmp_path: Path):
    made = Path(f"/sys/fs/cgroup/shoal-test-{os.getpid()}")
    made.mkdir()
    yield made
    deadline_s = time.monotonic() + DEADLINE_S
    while made.exists():
        for place, _, _ in os.walk(made, topdown=False):
            try:
                os.rmdir(place)
            except OSError:
                assert time.monotonic() < deadline_s, f"{place} is busy"
        time.sleep(0.02)


def _run(group: Path, base: Path, image: str, parent: str, *prefix: str) -> str:
    enter = ["sh", "-c", f'echo 0 >{group}/cgroup.procs && exec "$@"', "sh"]
    words = [sys.executable, "-P", "-c", _RUNTIME, str(base), image, parent]
    try:
        done = subprocess.run(
            [*enter, *prefix, *words], capture_output=True, text=True, check=False,
            timeout=4 * DEADLINE_S,
        )  # fmt: skip
    finally:
        end_keeper(f"{base}/r")
    return done.stdout.strip() + done.stderr


def test_in_a_container_that_sees_its_own_group_as_the_root(group, tmp_path, image_dir):
    isolated = ("unshare", "--mount", "--cgroup", "sh", "-c", _IN_A_CONTAINER, "sh")
    said = _run(group, tmp_path, image_dir, "/shoal", *isolated)
    assert said.splitlines()[-1] == "0 0::/daemons"
    assert "memory" in (group / "cgroup.subtree_control").read_text()


def test_in_the_group_of_its_own_service(group, tmp_path, image_dir):
    said = _run(group, tmp_path, image_dir, f"/{group.name}")
    assert said.splitlines()[-1] == f"0 0::/{group.name}/daemons"


def test_processes_of_others_are_not_moved(group, tmp_path, image_dir):
    (group / "own").mkdir()
    other = subprocess.Popen(["sleep", "1000"])
    try:
        (group / "cgroup.procs").write_text(str(other.pid))
        said = _run(group / "own", tmp_path, image_dir, f"/{group.name}")
        assert "processes live in this group itself" in said
        assert (group / "cgroup.procs").read_text().split() == [str(other.pid)]
    finally:
        other.kill()
        other.wait()
