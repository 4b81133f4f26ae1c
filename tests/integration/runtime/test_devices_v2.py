"""The cgroup v2 device program on the real kernel, in whatever v2 hierarchy is mounted."""

from __future__ import annotations

import os
import subprocess

import pytest

from worker.runtime.api import ContainerConfig
from worker.runtime.bundle import resources_of
from worker.runtime.lean import devices_bpf

pytestmark = pytest.mark.root


@pytest.fixture
def group():
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split()[4] for line in file if " - cgroup2 " in line]
    if not mounts:
        pytest.skip("no cgroup2 hierarchy is mounted")
    path = f"{mounts[0]}/shoal-test-devices-{os.getpid()}"
    os.mkdir(path)
    yield path
    os.rmdir(path)


def test_unlisted_devices_are_refused(group, tmp_path):
    config = ContainerConfig(id="a", layers=("/x",), args=("x",))
    program = devices_bpf.load(devices_bpf.assemble(resources_of(config, ())["devices"]))
    devices_bpf.attach(program, group)
    os.close(program)
    script = (
        f"echo $$ > {group}/cgroup.procs; "
        "echo x > /dev/null && echo null; head -c 1 /dev/kmsg > /dev/null || echo refused"
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "null\nrefused\n"
    assert "Operation not permitted" in done.stderr
