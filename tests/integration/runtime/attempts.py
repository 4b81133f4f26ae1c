"""What a privileged container may still not do under a default AppArmor profile.

One shell script for ours and dockerd's: each attempt prints its name and whether it was refused.
Whatever is written is what was there before. Privileged, so that nothing else refuses.
"""

from __future__ import annotations

OUTSIDER = "outsider"
"""Name in the environment of a process outside, whose pid namespace the container shares."""

_WRITES = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/shmmax", "/proc/sys/kernel/sem",
    "/proc/sys/kernel/hostname", "/proc/sys/kernel/sysrq", "/proc/sys/vm/overcommit_memory",
    "/proc/sys/net/ipv4/ip_forward", "/proc/sys/fs/file-max", "/proc/irq/default_smp_affinity",
    "/proc/self/comm", "/proc/self/oom_score_adj", "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/fs/cgroup/cgroup.max.depth",
    "/sys/module/printk/parameters/time",
)  # fmt: skip
_COMMANDS = {
    "mount tmpfs": "mount -t tmpfs none /tmp",
    "mount proc": "mount -t proc none /tmp",
    "bind": "mount --bind /etc /tmp",
    "remount": "mount -o remount,ro /",
    "umount": "umount /dev/mqueue",
    "pivot": "cd / && pivot_root . .",
    "read kcore": "head -c1 /proc/kcore",
    "press sysrq": "echo h >/proc/sysrq-trigger",
    "list firmware": "ls /sys/firmware/acpi",
    "write into a group": "mkdir /sys/fs/cgroup/attempt && rmdir /sys/fs/cgroup/attempt",
    "ask whether it lives": f"kill -0 ${OUTSIDER}",
    "signal outside": f"kill -CONT ${OUTSIDER}",
    "look outside": f"cat /proc/${OUTSIDER}/environ",
    "signal a neighbour": "sleep 60 & kill $!",
    "look at a neighbour": "sleep 60 & cat /proc/$!/environ && kill $!",
    "leave by name": "echo changeprofile unconfined >/proc/self/attr/current",
    "leave at exec": "echo exec unconfined >/proc/self/attr/exec && true | /bin/true",
    "make a file": "echo x >/attempt && rm /attempt",
    "take an address": "ip link set lo up",
}


def script() -> str:
    """For `sh -c`; prints `NAME: allowed|refused` for each attempt that this kernel knows."""
    lines = ["cat /proc/self/attr/current"]
    for path in _WRITES:
        attempt = f'v=$(tail -n1 {path} | sed "s/.*\\[\\(.*\\)\\].*/\\1/") && echo "$v" >{path}'
        lines.append(f"[ -e {path} ] && {{ {_told(f'write {path}', attempt)}; }}")
    lines += [_told(name, command) for name, command in _COMMANDS.items()]
    return "\n".join(lines)


def _told(name: str, command: str) -> str:
    return f"if ( {command} ) >/dev/null 2>&1; then echo '{name}: allowed'; else " + (
        f"echo '{name}: refused'; fi"
    )


def outcomes(output: str) -> dict[str, str]:
    """By name of the attempt; the first line is `profile`."""
    first, *rest = output.splitlines()
    pairs = (line.rpartition(": ") for line in rest)
    return {"profile": first} | {name: outcome for name, _, outcome in pairs}
