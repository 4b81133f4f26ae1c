"""What a container sees otherwise than under dockerd 20.10, with its reason; none is weaker."""

from __future__ import annotations

from collections.abc import Mapping

DIFFERENCES: Mapping[str, str] = {
    "calls: 425": "io_uring is refused, as by Docker since 25",
    "calls: 426": "io_uring is refused, as by Docker since 25",
    "calls: 427": "io_uring is refused, as by Docker since 25",
    "control groups: cpuset/cpuset.cpus": "only containers that wish for processors have the group",
    "control groups: cpuset/cpuset.mems": "only containers that wish for processors have the group",
    "control groups: of this process": "a namespace of control groups hides the host's names",
    "files: 1": "a pipe to the logger, by another name",
    "files: 2": "a pipe to the logger, by another name",
    "identity: label": "a profile of our own, shoal-default; without AppArmor there is none",
    "masked: /proc/interrupts": "masked, as by Docker since 28 (timing of keys)",
    "mounts: /": "nothing of the host's tree of mounts propagates into the root",
    "mounts: /proc/acpi": "the empty directory over it has stricter options",
    "mounts: /proc/interrupts": "masked, as by Docker since 28 (timing of keys)",
    "mounts: /proc/kcore": "masked by the host's /dev/null instead of the container's",
    "mounts: /proc/keys": "masked by the host's /dev/null instead of the container's",
    "mounts: /proc/timer_list": "masked by the host's /dev/null instead of the container's",
    "mounts: /sys/firmware": "the empty directory over it has stricter options",
    "mounts: /sys/fs/cgroup": "read-only like the groups in it",
    "mounts: /sys/fs/cgroup/cpuset": "only containers that wish for processors have the group",
    "mounts: /sys/fs/cgroup/systemd": "no group of systemd is used",
    "namespaces: cgroup": "a namespace of its own, as Docker gives on cgroup v2",
    "status: SigIgn": "glibc's posix_spawn leaves its own two signals (32, 33) ignored; every C"
    " library sets them anew",
    "writes: /sys/fs/cgroup/cgroup.procs": "the directory of groups is read-only",
}
"""By name of the fact, see `looking.comparable`."""

OF_A_MAPPING: Mapping[str, str] = {
    "namespaces: user": "that is what is asked for",
    "devices: made: ": "the kernel lets nobody make devices in a user namespace",
    "mounts: /dev/": "so each is one of the node, bound",
    "mounts: /etc/": "shown with the container's ids",
    "writes: /proc/": "EACCES before EROFS: the node's root owns it",
    "writes: /sys/": "EACCES before EROFS: the node's root owns it",
}
"""By the beginning of its name: what differs where a container has ids of its own, and why."""
