"""The hierarchies of a machine, read from its mounts."""

from __future__ import annotations

from swarmctl.lab.cgroups import Hierarchy, parse_hierarchies

HYBRID = """\
22 1 0:20 / /sys rw - sysfs sysfs rw
30 22 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
34 30 0:22 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct
35 30 0:25 /docker/1 /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
"""


def test_a_mixed_machine_has_each_hierarchy_once():
    assert parse_hierarchies(HYBRID) == (
        Hierarchy("/sys/fs/cgroup/cpu,cpuacct", 1, ("cpu", "cpuacct")),
        Hierarchy("/sys/fs/cgroup/systemd", 1, ("xattr", "name=systemd")),
        Hierarchy("/sys/fs/cgroup/unified", 2, ()),
    )


def test_a_machine_with_version_2_only():
    text = "25 22 0:24 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
    assert parse_hierarchies(text) == (Hierarchy("/sys/fs/cgroup", 2, ()),)


def test_a_machine_without_any():
    assert parse_hierarchies("22 1 0:20 / /sys rw - sysfs sysfs rw\n") == ()
