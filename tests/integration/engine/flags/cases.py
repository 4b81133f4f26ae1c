"""What a program finds because of each flag: files, limits, names. They share a few containers."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tests.integration.engine.flags.worlds import NONE, Seen

V1 = os.path.isdir("/sys/fs/cgroup/memory")


def _block_device() -> str:
    paths = (f"/dev/{name}" for name in sorted(os.listdir("/sys/block")))
    return next((p for p in paths if os.path.exists(p) and stat.S_ISBLK(os.stat(p).st_mode)), "")


DISK = _block_device()
_NUMBER = os.stat(DISK).st_rdev if DISK else 0
DISK_NUMBER = f"{os.major(_NUMBER)}:{os.minor(_NUMBER)}"


def _namespace(kind: str) -> tuple[str, str]:
    return f"readlink /proc/self/ns/{kind}", os.readlink(f"/proc/self/ns/{kind}")


def _throttle(kind: str, rate: str, shown: int) -> Seen:
    options = (f"--device-{kind}", f"{DISK}:{rate}") if DISK else ()
    file = f"/sys/fs/cgroup/blkio/blkio.throttle.{kind.replace('-', '_')}_device"
    return Seen("limits", options, f"cat {file}", f"{DISK_NUMBER} {shown}" if DISK else "")


WORLDS = {
    "who": NONE,
    "may": NONE,
    "limits": NONE,
    "host": NONE,
    "bridge": ("--network", "bridge"),
    "net": (),
}
"""Containers that are looked at from inside, and the options all of them begin with."""

SEEN = {
    "--hostname": Seen("who", ("--hostname", "h1"), "hostname; cat /etc/hostname", "h1\nh1"),
    "--domainname": Seen("who", ("--domainname", "example.com"),
                         "cat /proc/sys/kernel/domainname", "example.com"),
    "--env": Seen("who", ("--env", "A=b c"), 'echo "$A"', "b c"),
    "--user": Seen("who", ("--user", "5:6"), "id -u; id -g", "5\n6"),
    "--group-add": Seen("who", ("--group-add", "7", "--group-add", "9"), "id -G", "6 7 9"),
    "--workdir": Seen("who", ("--workdir", "/made/here"), "pwd; stat -c %u .", "/made/here\n0"),
    "--read-only": Seen("who", ("--read-only",), "grep -c '^overlay / overlay ro' /proc/mounts",
                        "1"),
    "--tmpfs": Seen("who", ("--tmpfs", "/t:size=2m,mode=700"),
                    "df -k /t | awk 'END{print $2}'; stat -c %a /t", "2048\n700"),
    "--mount": Seen("who", ("--mount", "type=tmpfs,target=/m,tmpfs-size=1m"),
                    "df -k /m | awk 'END{print $2}'", "1024"),
    "--shm-size": Seen("who", ("--shm-size", "3m"), "df -k /dev/shm | awk 'END{print $2}'",
                       "3072"),
    "--ulimit": Seen("who", ("--ulimit", "nofile=90:120"), "ulimit -n; ulimit -Hn", "90\n120"),
    "--oom-score-adj": Seen("who", ("--oom-score-adj", "321"), "cat /proc/self/oom_score_adj",
                            "321"),
    "--cap-add": Seen("may", ("--cap-add", "SYSLOG"), "dmesg >/dev/null && echo read", "read"),
    "--cap-drop": Seen("may", ("--cap-drop", "CHOWN"), "chown 1 /tmp",
                       "chown: /tmp: Operation not permitted"),
    "--device": Seen("may", ("--device", "/dev/kmsg:/dev/mine:r"),
                     "dd if=/dev/mine of=/dev/null bs=8k count=1 2>&1 | head -1;"
                     " (: >/dev/mine) 2>&1 | grep -c 'not permitted'", "0+1 records in\n1"),
    "--device-cgroup-rule": Seen("may", ("--device-cgroup-rule", "c 10:237 r"),
                                 "mknod /k c 10 237; (: </k) 2>&1 | grep -c 'not permitted';"
                                 " (: >/k) 2>&1 | grep -c 'not permitted'", "0\n1"),
    "--security-opt": Seen("may", ("--security-opt", "no-new-privileges"),
                           "grep NoNewPrivs: /proc/self/status | cut -f2", "1"),
    "--sysctl": Seen("may", ("--sysctl", "net.core.somaxconn=99"),
                     "cat /proc/sys/net/core/somaxconn", "99"),
    "--userns": Seen("may", ("--userns", "host"), "awk '{print $1, $2, $3}' /proc/self/uid_map",
                     " ".join(Path("/proc/self/uid_map").read_text().split())),
    "--privileged": Seen("host", ("--privileged",),
                         "grep Seccomp: /proc/self/status | cut -f2; mkdir /x && mount -t tmpfs x"
                         " /x && echo mounted", "0\nmounted"),
    "--pid": Seen("host", ("--pid", "host"), *_namespace("pid")),
    "--ipc": Seen("host", ("--ipc", "host"), *_namespace("ipc")),
    "--uts": Seen("host", ("--uts", "host"), *_namespace("uts")),
    "--cgroupns": Seen("host", ("--cgroupns", "host"), *_namespace("cgroup")),
    "--dns": Seen("bridge", ("--dns", "192.0.2.53"), "grep nameserver /etc/resolv.conf",
                  "nameserver 192.0.2.53"),
    "--dns-option": Seen("bridge", ("--dns-option", "timeout:3"), "grep options /etc/resolv.conf",
                         "options timeout:3"),
    "--dns-search": Seen("bridge", ("--dns-search", "a.example"), "grep search /etc/resolv.conf",
                         "search a.example"),
    "--add-host": Seen("bridge", ("--add-host", "friend:192.0.2.7"), "grep friend /etc/hosts",
                       "192.0.2.7\tfriend"),
    "--network": Seen("net", ("--network", "flags"),
                      "ip route | grep default; grep -c 127.0.0.11 /etc/resolv.conf",
                      "default via 10.77.0.1 dev eth0 \n1"),
    "--ip": Seen("net", ("--ip", "10.77.3.4"), "ip -o a | grep -o 'inet 10.77.*/16 '",
                 "inet 10.77.3.4/16"),
    "--ip6": Seen("net", ("--ip6", "fd77::44"), "ip -o a | grep -o 'fd77::44/64'",
                  "fd77::44/64"),
    "--link-local-ip": Seen("net", ("--link-local-ip", "169.254.9.9"),
                            "ip -o a | grep -o 'inet 169.254.9.9/16'", "inet 169.254.9.9/16"),
    "--mac-address": Seen("net", ("--mac-address", "02:42:00:00:00:77"),
                          "cat /sys/class/net/eth0/address", "02:42:00:00:00:77"),
}  # fmt: skip
LIMITS = {
    "--cpu-period": Seen("limits", ("--cpu-period", "50000"), "cat cpu/cpu.cfs_period_us",
                         "50000"),
    "--cpu-quota": Seen("limits", ("--cpu-quota", "25000"), "cat cpu/cpu.cfs_quota_us", "25000"),
    "--cpu-shares": Seen("limits", ("--cpu-shares", "512"), "cat cpu/cpu.shares", "512"),
    "--cpuset-cpus": Seen("limits", ("--cpuset-cpus", "0"),
                          "cat cpuset/cpuset.cpus; grep Cpus_allowed_list /proc/self/status",
                          "0\nCpus_allowed_list:\t0"),
    "--cpuset-mems": Seen("limits", ("--cpuset-mems", "0"),
                          "cat cpuset/cpuset.mems; grep Mems_allowed_list /proc/self/status",
                          "0\nMems_allowed_list:\t0"),
    "--memory": Seen("limits", ("--memory", "64m"), "cat memory/memory.limit_in_bytes",
                     str(64 << 20)),
    "--memory-reservation": Seen("limits", ("--memory-reservation", "32m"),
                                 "cat memory/memory.soft_limit_in_bytes", str(32 << 20)),
    "--memory-swap": Seen("limits", ("--memory-swap", "96m"),
                          "cat memory/memory.memsw.limit_in_bytes", str(96 << 20)),
    "--memory-swappiness": Seen("limits", ("--memory-swappiness", "5"),
                                "cat memory/memory.swappiness", "5"),
    "--oom-kill-disable": Seen("limits", ("--oom-kill-disable",),
                               "grep oom_kill_disable memory/memory.oom_control",
                               "oom_kill_disable 1"),
    "--pids-limit": Seen("limits", ("--pids-limit", "40"), "cat pids/pids.max", "40"),
    "--device-read-bps": _throttle("read-bps", "1mb", 1 << 20),
    "--device-write-bps": _throttle("write-bps", "2mb", 2 << 20),
    "--device-read-iops": _throttle("read-iops", "3", 3),
    "--device-write-iops": _throttle("write-iops", "4", 4),
}  # fmt: skip
"""In the container's own groups, as it sees them."""
SEEN |= {
    flag: case._replace(shell=f"cd /sys/fs/cgroup; {case.shell}") for flag, case in LIMITS.items()
}
