"""Each flag of `docker update` and `docker exec` does what it says, or is refused by name."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.engine.daemon import DEADLINE_S, EngineNode
from tests.integration.engine.flags.table import flags_of
from tests.integration.engine.seeded import ok, state_of, until
from tests.integration.engine.test_streams import Terminal, command

pytestmark = pytest.mark.root
NONE = ("--network", "none")
DOCKER = shutil.which("docker") or "docker"
V1 = os.path.isdir("/sys/fs/cgroup/memory")

CHANGES = {
    "--cpu-period": ("50000", "cpu/cpu.cfs_period_us", "50000"),
    "--cpu-quota": ("25000", "cpu/cpu.cfs_quota_us", "25000"),
    "--cpu-shares": ("512", "cpu/cpu.shares", "512"),
    "--cpuset-cpus": ("0", "cpuset/cpuset.cpus", "0"),
    "--cpuset-mems": ("0", "cpuset/cpuset.mems", "0"),
    "--memory": ("64m", "memory/memory.limit_in_bytes", str(64 << 20)),
    "--memory-swap": ("96m", "memory/memory.memsw.limit_in_bytes", str(96 << 20)),
    "--memory-reservation": ("32m", "memory/memory.soft_limit_in_bytes", str(32 << 20)),
    "--pids-limit": ("40", "pids/pids.max", "40"),
}
"""Flag, value, file of the container's group and what it then holds; in this order."""
ALONE = {"--cpus": ("0.5", "cpu/cpu.cfs_quota_us", "50000")}
"""In contradiction to others."""
IF_THE_KERNEL_CAN = {
    "--blkio-weight": ("300", "blkio/blkio.weight", "300"),
    "--cpu-rt-period": ("500000", "cpu/cpu.rt_period_us", "500000"),
    "--cpu-rt-runtime": ("1000", "cpu/cpu.rt_runtime_us", "1000"),
}
FAILS = "trap 'exit 3' USR1; echo up; while :; do sleep 0.1; done"


@pytest.fixture
def node(seeded: EngineNode) -> EngineNode:
    return seeded


@pytest.fixture
def container(node: EngineNode):
    made = ok(node, "run", "-d", *NONE, "busybox", "sh", "-c", FAILS)
    yield made
    ok(node, "rm", "-f", made)


def _file(node: EngineNode, container: str, file: str) -> str:
    hierarchy, _, name = file.partition("/")
    return Path(f"/sys/fs/cgroup/{hierarchy}{node.cgroup_parent}/{container}/{name}").read_text()


@pytest.mark.skipif(not V1, reason="file names of cgroup v1")
def test_update(node: EngineNode, container: str):
    assert flags_of(DOCKER, "update") == {*CHANGES, *ALONE, *IF_THE_KERNEL_CAN, "--restart"}
    for flag, (value, file, shown) in ALONE.items():
        ok(node, "update", flag, value, container)
        assert _file(node, container, file).strip() == shown
    other = ok(node, "run", "-d", *NONE, "busybox", "sleep", "600")
    try:
        words = [word for flag, (value, _, _) in CHANGES.items() for word in (flag, value)]
        ok(node, "update", *words, other)
        for flag, (_, file, shown) in CHANGES.items():
            assert _file(node, other, file).strip() == shown, flag
        said = ok(node, "exec", other, "grep", "Cpus_allowed_list", "/proc/1/status")
        assert said == "Cpus_allowed_list:\t0"
        for flag, (value, file, shown) in IF_THE_KERNEL_CAN.items():
            ran = node.docker("update", flag, value, other)
            if ran.code == 0:
                assert _file(node, other, file).strip() == shown, flag
            else:
                assert "no such limit" in ran.err or "the one above has 0 us" in ran.err, ran
    finally:
        ok(node, "rm", "-f", other)


def test_update_of_the_restart_policy(node: EngineNode, container: str):
    until(lambda: ok(node, "logs", container) == "up")
    ok(node, "update", "--restart", "on-failure:1", container)
    ok(node, "exec", container, "kill", "-USR1", "1")
    until(lambda: ok(node, "logs", container) == "up\nup")


def test_exec(node: EngineNode, container: str):
    file = node.base / "exec-env"
    file.write_text("FILED=yes\n")
    plain = ("--env", "A=b c", "--env-file", str(file), "--user", "5:6", "--workdir", "/tmp")
    script = 'echo "$A $FILED $(id -u):$(id -g) $(pwd)"'
    assert ok(node, "exec", *plain, container, "sh", "-c", script) == "b c yes 5:6 /tmp"
    assert node.docker("exec", container, "ip", "link", "set", "lo", "down").code != 0
    ok(node, "exec", "--privileged", container, "ip", "link", "set", "lo", "down")
    ok(node, "exec", "--detach", container, "sh", "-c", "sleep 0.2; touch /detached")
    until(lambda: node.docker("exec", container, "test", "-f", "/detached").code == 0)
    words = command(node, "exec", "--interactive", container, "cat")
    done = subprocess.run(
        words, input=b"given", capture_output=True, timeout=DEADLINE_S, check=True
    )
    assert done.stdout == b"given"
    shell = ("sh", "-c", "tty; echo left; sleep 600")
    terminal = Terminal(node, "exec", "-it", "--detach-keys", "ctrl-x,y", container, *shell)
    terminal.see("/dev/pts/")
    terminal.see("left")
    terminal.type("\x18y")
    terminal.end()
    assert state_of(node, container)["Running"]
    assert "sleep 600" in ok(node, "top", container, "-o", "pid,args")
    assert flags_of(DOCKER, "exec") == {
        "--detach", "--detach-keys", "--env", "--env-file", "--interactive", "--privileged",
        "--tty", "--user", "--workdir",
    }  # fmt: skip
