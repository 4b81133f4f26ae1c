"""Flags of `docker run` that change what a program finds, through the docker command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import ok, refused, seeded_node
from worker.runtime import hosting

pytestmark = pytest.mark.root
MAKE_NODE = seeded_node
NONE = ("--network", "none")
V1 = os.path.isdir("/sys/fs/cgroup/memory")


def say(node: EngineNode, *options: str, script: str) -> str:
    return ok(node, "run", "--rm", *NONE, *options, "busybox", "sh", "-c", script)


@pytest.mark.parametrize(
    ("options", "script", "expected"),
    [
        (("--privileged",), "grep Seccomp: /proc/self/status | cut -f2", "0"),
        (("--security-opt", "seccomp=unconfined"), "grep Seccomp: /proc/self/status | cut -f2",
         "0"),
        (("--uts", "host"), "hostname", os.uname().nodename),
        (("--pid", "host"), "readlink /proc/self/ns/pid", os.readlink("/proc/self/ns/pid")),
        (("--ipc", "host"), "readlink /proc/self/ns/ipc", os.readlink("/proc/self/ns/ipc")),
        (("--cgroupns", "host"), "readlink /proc/self/ns/cgroup",
         os.readlink("/proc/self/ns/cgroup")),
        (("--ipc", "none"), "grep -c /dev/shm /proc/mounts || true", "0"),
        (("--domainname", "example.com"), "cat /proc/sys/kernel/domainname", "example.com"),
        (("--tmpfs", "/t:size=2m,mode=700"), "stat -c %a /t; df -k /t | awk 'END{print $2}'",
         "700\n2048"),
        (("--shm-size", "1m"), "df -k /dev/shm | awk 'END{print $2}'", "1024"),
        (("--device", "/dev/zero:/dev/mine:r"), "head -c 3 /dev/mine | wc -c", "3"),
        (("--ulimit", "nofile=100:200"), "ulimit -n; ulimit -Hn", "100\n200"),
        (("--sysctl", "net.core.somaxconn=99"), "cat /proc/sys/net/core/somaxconn", "99"),
    ],
)  # fmt: skip
def test_inside(node: EngineNode, options, script, expected):
    assert say(node, *options, script=script) == expected


@pytest.mark.skipif(not V1, reason="file names of cgroup v1")
def test_limits(node: EngineNode):
    said = say(
        node, "-m", "64m", "--memory-swap", "96m", "--memory-swappiness", "5",
        "--oom-kill-disable", "--cpu-period", "50000", "--cpu-quota", "25000", "--cpuset-cpus",
        "0", "-c", "512", "--pids-limit", "40",
        script="cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes "
        "memory/memory.memsw.limit_in_bytes memory/memory.swappiness cpu/cpu.cfs_period_us "
        "cpu/cpu.cfs_quota_us cpuset/cpuset.cpus cpu/cpu.shares pids/pids.max",
    )  # fmt: skip
    assert said.split() == [
        str(64 << 20), str(96 << 20), "5", "50000", "25000", "0", "512", "40",
    ]  # fmt: skip


def test_a_namespace_of_another_container(node: EngineNode):
    ok(node, "run", "-d", "--name", "donor", "--ipc", "shareable", *NONE, "busybox", "sleep", "600")
    try:
        script = "touch /dev/shm/x; ps -o args | grep -c '[s]leep 600'"
        shared = ("--pid", "container:donor", "--ipc", "container:donor")
        assert say(node, *shared, script=script) == "1"
        assert ok(node, "exec", "donor", "ls", "/dev/shm") == "x"
    finally:
        ok(node, "rm", "-f", "donor")


def test_a_profile_of_ones_own(node: EngineNode):
    profile = Path(node.base) / "profile.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"],'
        ' "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}'
    )
    said = say(node, "--security-opt", f"seccomp={profile}", script="mkdir /x 2>&1 || true")
    assert said.endswith("Operation not supported")
    profile.write_text('{"defaultAction": "SCMP_ACT_SING"}')
    reason = refused(node, "run", *NONE, "--security-opt", f"seccomp={profile}", "busybox", "true")
    assert "unknown action 'SCMP_ACT_SING'" in reason


@pytest.mark.parametrize("name", ["crun", "runc"])
def test_an_installed_runtime(node: EngineNode, name):
    if name not in hosting.runtimes():
        pytest.skip(f"{name} is not installed")
    assert say(node, "--runtime", name, script="echo through $HOSTNAME | cut -c1-8") == "through"
    assert name in ok(node, "info", "--format", "{{json .Runtimes}}")


def test_what_is_refused(node: EngineNode):
    for options, words in (
        (("--security-opt", "label=type:x"), "selinux_labels"),
        (("--runtime", "kata"), "unknown or invalid runtime name: kata"),
        (("--tmpfs", "/t:lowerdir=/"), "invalid option 'lowerdir=/'"),
        (("--pid", "container:nobody"), "No such container: nobody"),
    ):
        assert words in refused(node, "run", *NONE, *options, "busybox", "true")
