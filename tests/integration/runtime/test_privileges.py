"""Capabilities, filters, devices and paths other than the default ones."""

from __future__ import annotations

import json
import os

import pytest

from shoal.errors import InvalidArgument, Unimplemented
from tests.integration.runtime.site import Site
from worker.runtime.api import Device, Mount

pytestmark = pytest.mark.root


def _bounding() -> str:
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith("CapBnd"))


async def test_privileged(site: Site):
    _, output = await site.run(
        "grep -E '^(CapEff|Seccomp:)' /proc/self/status | cut -f2; "
        "grep -cE ' /(proc|sys)[^ ]* .*[ ,]ro[ ,]' /proc/mounts; "
        "mkdir /m && mount -t tmpfs x /m && echo mounted; "
        "mknod /any c 9 3; head -c1 /any 2>&1 | grep -c permitted; "
        "[ -e /dev/kmsg ] && echo kmsg; cd /sys/fs/cgroup; [ ! -e pids ] || cd pids; "
        "mkdir below && echo writable && rmdir below",
        privileged=True,
    )  # fmt: skip
    expected = [_bounding(), "0", "0", "mounted", "0"]
    expected += (["kmsg"] if os.path.exists("/dev/kmsg") else []) + ["writable"]
    assert output.split() == expected


async def test_privileged_with_a_filter_of_its_own(site: Site):
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
    ]}  # fmt: skip
    _, output = await site.run(
        "mkdir /x 2>&1; touch /y && echo touched",
        privileged=True, seccomp_profile=json.dumps(profile),
    )  # fmt: skip
    assert output.splitlines() == [
        "mkdir: can't create directory '/x': Operation not supported", "touched",
    ]  # fmt: skip


async def test_unconfined(site: Site):
    _, output = await site.run(
        "grep Seccomp: /proc/self/status | cut -f2", seccomp_profile="unconfined"
    )
    assert output.split() == ["0"]


async def test_profiles_that_are_none(site: Site):
    for profile, message in (
        ("no JSON", "Decoding seccomp profile failed"),
        ('{"syscalls": []}', "defaultAction"),
        ('{"defaultAction": "SCMP_ACT_SING"}', "unknown action 'SCMP_ACT_SING'"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}', "flags"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            await site.runtime.create(site.config("true", seccomp_profile=profile))


async def test_every_capability_there_is(site: Site):
    _, output = await site.run("grep CapEff /proc/self/status | cut -f2", cap_add=("ALL",))
    assert output.split() == [_bounding()]
    if not int(_bounding(), 16) >> 24 & 1:
        with pytest.raises(InvalidArgument, match="CAP_SYS_RESOURCE: this node cannot give it"):
            await site.runtime.create(site.config("true", cap_add=("SYS_RESOURCE",)))


async def test_paths_of_ones_own(site: Site):
    _, output = await site.run(
        "wc -c < /etc/passwd; touch /home/x 2>&1; "
        "echo 1 > /proc/sys/net/ipv4/ip_forward && echo written",
        masked_paths=("/etc/passwd", "/nosuch"), read_only_paths=("/home",),
        cap_add=("NET_ADMIN",), network="none",
    )  # fmt: skip
    lines = output.splitlines()
    assert lines[0] == "0"
    assert lines[1].endswith("Read-only file system")
    assert lines[2] == "written"


async def test_device_rules_and_directories(site: Site, tmp_path):
    os.mknod(tmp_path / "one", 0o20666, os.makedev(1, 7))
    (tmp_path / "below").mkdir()
    os.mknod(tmp_path / "below/two", 0o20666, os.makedev(1, 5))
    (tmp_path / "file").touch()
    _, output = await site.run(
        "find /dev/mine | sort; cd /tmp; mknod rule c 10 229; mknod any c 9 3; mknod one b 9 7; "
        "for f in rule any one; do head -c1 $f 2>&1 | grep -c permitted; done; "
        "(echo >one) 2>&1 | grep -c permitted",
        devices=(Device(host_path=str(tmp_path), container_path="/dev/mine"),),
        device_rules=("c 9:* rwm", "b 9:7 r"),
    )  # fmt: skip
    assert output.splitlines() == [
        "/dev/mine", "/dev/mine/below", "/dev/mine/below/two", "/dev/mine/one", "1", "0", "0", "1",
    ]  # fmt: skip


async def test_what_the_kernel_has_not(site: Site):
    if not os.path.exists("/sys/module/apparmor"):
        with pytest.raises(Unimplemented, match="AppArmor is not enabled"):
            await site.runtime.create(site.config("true", apparmor_profile="mine"))
    with pytest.raises(Unimplemented, match="selinux_labels: containers are not labelled"):
        await site.runtime.create(site.config("true", selinux_labels=("type:x",)))
    _, output = await site.run("echo runs", apparmor_profile="unconfined")
    assert output == "runs\n"


async def test_tmpfs_options(site: Site):
    mounts = (
        Mount(target="/plain", kind="tmpfs"),
        Mount(
            target="/odd", kind="tmpfs",
            tmpfs_options=("exec", "size=2m", "mode=0700", "uid=1000", "nr_inodes=50", "ro", "rw"),
        ),
    )  # fmt: skip
    _, output = await site.run(
        "grep -E ' /(plain|odd) ' /proc/mounts | cut -d' ' -f2,4; stat -c '%a %u' /odd",
        mounts=mounts,
    )
    plain, odd, status = output.splitlines()
    assert {"noexec", "nosuid", "nodev", "rw"} <= set(plain.split()[1].split(","))
    words = set(odd.split()[1].split(","))
    assert {"rw", "nosuid", "nodev", "size=2048k", "mode=700", "uid=1000", "nr_inodes=50"} <= words
    assert "noexec" not in words
    assert status == "700 1000"


async def test_shared_memory_has_its_size_and_may_be_replaced(site: Site, tmp_path):
    _, output = await site.run(
        "df -k /dev/shm | tail -1 | awk '{print $2}'", shm_size_bytes=1 << 20
    )
    assert output.split() == ["1024"]
    script = "touch /dev/shm/x; ls /dev/shm; grep -c ' /dev/shm ' /proc/mounts"
    mounts = (Mount(target="/dev/shm", source=str(tmp_path)),)
    _, output = await site.run(script, mounts=mounts)
    assert output.split() == ["x", "1"]
    assert (tmp_path / "x").exists()
