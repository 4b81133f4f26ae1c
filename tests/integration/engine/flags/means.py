"""Flags that give a container means or keep them from it: limits, files, networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.engine.flags.cases import DISK, DISK_NUMBER, V1
from tests.integration.engine.flags.worlds import NONE, begin, of, run
from tests.integration.engine.networked import NODE, NetworkedNode, talk
from tests.integration.engine.seeded import ask, ok, refused, state_of, until
from worker.runtime import hosting
from worker.runtime.lean import cgroups

SERVE = "while :; do echo served | nc -l -p 80; done"


@of("--cpus")
def _cpus(node: NetworkedNode):
    file = "cpu/cpu.cfs_quota_us" if V1 else "cpu.max"
    said = run(node, "--cpus", "0.5", script=f"cat /sys/fs/cgroup/{file}")
    assert said == ("50000" if V1 else "50000 100000")


@of("--cgroup-parent")
def _cgroup_parent(node: NetworkedNode):
    parent = f"{node.cgroup_parent}-elsewhere"
    made = begin(node, "--cgroup-parent", parent, *NONE)
    try:
        groups = Path(f"/proc/{state_of(node, made)['Pid']}/cgroup").read_text()
        assert f"{parent}/{made}\n" in groups
    finally:
        ok(node, "rm", "-f", made)
        cgroups.remove_parent(parent, Path("/proc/self/mountinfo").read_text())


def _of_the_kernel(flag: str, value: str, file: str, shown: str, name: str) -> None:
    """Honoured where the kernel has the file; else the refusal names it."""

    @of(flag)
    def check(node: NetworkedNode):
        if "{disk}" in value and not DISK:
            pytest.skip("no block device")
        words = (flag, value.format(disk=DISK), "busybox", "cat", f"/sys/fs/cgroup/{file}")
        ran = node.docker("run", "--rm", *NONE, *words)
        if ran.code == 0:
            assert ran.out.strip() == shown
        else:
            assert name in ran.err, ran


_of_the_kernel("--cpu-rt-period", "500000", "cpu/cpu.rt_period_us", "500000",
               "rt_period_us" if V1 else "cgroup v2 has no real-time limits")  # fmt: skip
_of_the_kernel("--cpu-rt-runtime", "1000", "cpu/cpu.rt_runtime_us", "1000",
               "the one above has 0 us" if V1 else "cgroup v2 has no real-time limits")  # fmt: skip
_of_the_kernel(
    "--blkio-weight", "300", "blkio/blkio.weight", "300", "this kernel has no such limit"
)
_of_the_kernel("--blkio-weight-device", "{disk}:300", "blkio/blkio.weight_device",
               f"{DISK_NUMBER}\t300", "this kernel has no such limit")  # fmt: skip


@of("--runtime")
def _runtime(node: NetworkedNode):
    assert refused(node, "run", "--runtime", "kata", "busybox") == (
        "unknown or invalid runtime name: kata"
    )
    for name in hosting.runtimes():
        assert run(node, "--runtime", name, script="echo there") == "there"


def _refused(flag: str, value: str, words: str) -> None:
    @of(flag)
    def check(node: NetworkedNode):
        assert words in refused(node, "run", *NONE, flag, value, "busybox", "true")


_refused("--gpus", "all", 'could not select device driver "" with capabilities: [[gpu]]')
_refused("--isolation", "hyperv", 'invalid isolation "hyperv"')
_refused("--storage-opt", "size=1g", "StorageOpt: not possible on this node")


def _refused_by_both(flag: str, field: str) -> None:
    """The client refuses what is of Windows; other clients are refused by the engine."""

    @of(flag)
    def check(node: NetworkedNode):
        ran = node.docker("run", *NONE, flag, "1", "busybox", "true")
        assert ran.code != 0
        assert "only supported on a Docker daemon running on windows" in ran.err
        _refused_field(node, "/containers/create", field)


def _refused_field(node: NetworkedNode, path: str, field: str) -> None:
    body = {"Image": "busybox", "HostConfig": {field: 1 << 20}}
    status, words = ask(node, "POST", path, body)
    assert status == 501
    assert words["message"].startswith(f"{field}: not possible on this node: ")


for _flag, _field in (
    ("--cpu-count", "CpuCount"), ("--cpu-percent", "CpuPercent"),
    ("--io-maxiops", "IOMaximumIOps"), ("--io-maxbandwidth", "IOMaximumBandwidth"),
):  # fmt: skip
    _refused_by_both(_flag, _field)


@of("--kernel-memory")
def _kernel_memory(node: NetworkedNode):
    """The client sends it only in old versions of the API."""
    _refused_field(node, "/v1.41/containers/create", "KernelMemory")


# Its files and networks


@of("--volume")
def _volume(node: NetworkedNode):
    (node.base / "bound").mkdir()
    (node.base / "bound/file").write_text("content")
    script = "cat /b/file; touch /b/x; touch /v/kept"
    options = ("--volume", f"{node.base}/bound:/b:ro", "--volume", "flags-data:/v")
    ran = node.docker("run", *NONE, *options, "busybox", "sh", "-c", script)
    assert (ran.out, ran.err) == ("content", "touch: /b/x: Read-only file system\n")
    assert run(node, "--volume", "flags-data:/w", script="ls /w") == "kept"


@of("--volume-driver")
def _volume_driver(node: NetworkedNode):
    run(node, "--volume-driver", "local", "-v", "by-driver:/v")
    assert ok(node, "volume", "inspect", "--format", "{{.Driver}}", "by-driver") == "local"
    reason = refused(node, "run", *NONE, "--volume-driver", "nfs", "-v", "other:/v", "busybox")
    assert reason == "VolumeDriver: not possible on this node: only local volumes"


@of("--volumes-from")
def _volumes_from(node: NetworkedNode):
    ok(node, "create", "--name", "giver", "-v", "given:/g", *NONE, "busybox")
    script = "touch /g/x; grep ' /g ' /proc/mounts | cut -d' ' -f4 | cut -d, -f1"
    ran = node.docker("run", "--rm", *NONE, "--volumes-from", "giver:ro", "busybox", "sh", "-c",
                      script)  # fmt: skip
    assert (ran.out, ran.err) == ("ro\n", "touch: /g/x: Read-only file system\n")


@of("--network-alias")
def _network_alias(node: NetworkedNode):
    ok(
        node,
        "run",
        "-d",
        "--network",
        "flags",
        "--network-alias",
        "nick",
        "busybox",
        "sleep",
        "600",
    )
    words = ("--network", "flags", "busybox", "ping", "-c1", "-W9", "nick")
    assert "1 packets received" in ok(node, "run", "--rm", *words)


@of("--publish")
def _publish(node: NetworkedNode):
    begin(node, "--publish", "8087:80", script=SERVE)
    until(lambda: node.outside(lambda: talk(NODE, 8087)) == b"served\n")


@of("--publish-all")
def _publish_all(node: NetworkedNode):
    made = begin(node, "--publish-all", "--expose", "80", script=SERVE)
    port = int(ok(node, "port", made, "80").splitlines()[0].rpartition(":")[2])
    until(lambda: node.outside(lambda: talk(NODE, port)) == b"served\n")


@of("--expose")
def _expose(node: NetworkedNode):
    """What is exposed is what `--publish-all` takes, and what links are told."""
    made = begin(node, "-P", "--expose", "90-91/udp")
    published = {line.split(" ")[0] for line in ok(node, "port", made).splitlines()}
    assert published == {"90/udp", "91/udp"}


@of("--link")
def _link(node: NetworkedNode):
    begin(node, "--name", "linked", "--expose", "80", script=SERVE)
    script = 'echo "$NEAR_PORT_80_TCP_PORT"; until nc near 80 </dev/null 2>&1; do sleep 0.1; done'
    words = ("--link", "linked:near", "busybox", "sh", "-c", script)
    said = ok(node, "run", "--rm", *words).splitlines()
    assert (said[0], said[-1]) == ("80", "served")
