"""The lab's switch, namespaces and partitions, made with iproute2, nftables and util-linux.

Everything here is idempotent in both directions: making what exists and removing what is gone are
no errors, so a half-made lab can be finished or taken down. Invariants: nothing outside the names
that `plan` gives is touched; partitions live in a table of their own inside the node's namespace.
A node's mount namespace is pinned to a file, so it outlives the daemons as its containers do.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from shoal.errors import FailedPrecondition, Internal, PermissionDenied
from swarmctl.lab.plan import (
    UPLINK,
    LabPlan,
    NodePaths,
    NodePlan,
    address6,
    bridge_name,
    netns_name,
    switch_name,
)

NETNS_DIR = "/run/netns"
TABLE = "shoal_lab"
_BRIDGE, _HOST = "br0", "host"
"""In the switch's namespace: the bridge, and the other end of the host's interface."""
_TIMEOUT_S = 30
_PROGRAMS = {
    "ip": "iproute2", "nft": "nftables", "nsenter": "util-linux", "unshare": "util-linux",
    "taskset": "util-linux",
    "mount": "mount", "umount": "mount",
}  # fmt: skip
# New sysfs for the node's network devices; what was mounted below the old one is moved over.
_SYSFS_SCRIPT = """
set -e
stage="$1"; shift
index=0
for path in "$@"; do
  index=$((index + 1)); mkdir -p "$stage/$index"; mount --rbind "$path" "$stage/$index"
done
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
index=0
for path in "$@"; do
  index=$((index + 1)); mount --move "$stage/$index" "$path"; rmdir "$stage/$index"
done
"""


def check_machine() -> None:
    """Raise unless a lab can be made here: root, and the programs it is made with."""
    if os.geteuid() != 0:
        raise PermissionDenied("a lab makes namespaces and control groups: run it with sudo")
    missing = sorted({package for name, package in _PROGRAMS.items() if not shutil.which(name)})
    if missing:
        raise FailedPrecondition(
            f"missing programs; install them with: apt-get install {' '.join(missing)}"
        )


def run(arguments: Sequence[str], *, text: str = "") -> str:
    """Run a program to its end and return what it printed. Raises: Internal with its complaint."""
    try:
        done = subprocess.run(
            arguments, input=text, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise Internal(f"{' '.join(arguments)}: no end after {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        complaint = done.stderr.strip() or f"exit status {done.returncode}"
        raise Internal(f"{' '.join(arguments)}: {complaint}")
    return done.stdout


def batch(lines: Iterable[str], *, netns: str = "") -> None:
    """Run ip commands in one process, in order."""
    text = "".join(f"{line}\n" for line in lines)
    if text:
        run(["ip", *(["-n", netns] if netns else []), "-batch", "-"], text=text)


def routes_in_use() -> list[str]:
    """Destinations of the host's routes and networks of its addresses, as CIDRs."""
    routes = json.loads(run(["ip", "-j", "-4", "route", "show", "table", "all"]) or "[]")
    found = [route["dst"] for route in routes if route["dst"] != "default"]
    for link in json.loads(run(["ip", "-j", "-4", "addr", "show"]) or "[]"):
        found += [f"{a['local']}/{a['prefixlen']}" for a in link.get("addr_info", ())]
    return found


def link_exists(name: str) -> bool:
    """Whether the host has such an interface."""
    return os.path.exists(f"/sys/class/net/{name}")


def netns_names() -> list[str]:
    """Names of the machine's network namespaces."""
    try:
        return sorted(os.listdir(NETNS_DIR))
    except FileNotFoundError:
        return []


def has_ipv6(*, on_host: bool) -> bool:
    """Whether the kernel has IPv6; on the host: and it is not switched off there."""
    setting = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    return setting.exists() and not (on_host and setting.read_text().strip() != "0")


def make_switch(lab: LabPlan) -> None:
    """What joins the nodes, in a namespace of its own, and the host at the gateway's address.

    A bridge of the host would be within reach of the host's firewall: while Docker is there, what
    one node sends to another would meet Docker's policy of dropping what it does not know.
    """
    switch = switch_name(lab.name)
    if link_exists(lab.bridge) and switch in netns_names():
        return
    remove_switch(lab.name)
    batch(
        [f"netns add {switch}", f"link add {lab.bridge} type veth peer name {_HOST} netns {switch}"]
    )
    batch(
        [
            f"link add {_BRIDGE} type bridge forward_delay 0 mcast_snooping 0",
            f"link set {_HOST} master {_BRIDGE} up",
            f"link set {_BRIDGE} up",
        ],
        netns=switch,
    )
    batch(
        [
            f"address add {lab.gateway}/{lab.prefix_length} dev {lab.bridge}",
            *_address6_lines(lab, lab.gateway, lab.bridge, on_host=True),
            f"link set {lab.bridge} up",
        ]
    )


def make_uplink(lab: LabPlan, node: NodePlan) -> None:
    """The node's network namespace and its cable to the switch; kept when it is there."""
    name = netns_name(lab.name, node.name)
    if name in netns_names():
        return
    batch([f"netns add {name}"])
    batch(
        [
            f"link add {node.veth} type veth peer name {UPLINK} netns {name}",
            f"link set {node.veth} master {_BRIDGE} up",
        ],
        netns=switch_name(lab.name),
    )
    batch(
        [
            "link set lo up",
            f"address add {node.address}/{lab.prefix_length} dev {UPLINK}",
            *_address6_lines(lab, node.address, UPLINK, on_host=False),
            f"link set {UPLINK} up",
            f"route add default via {lab.gateway}",
        ],
        netns=name,
    )


def _address6_lines(lab: LabPlan, address: str, device: str, *, on_host: bool) -> list[str]:
    """In use at once: nobody else has it, and daemons bind what they find when they start."""
    if not has_ipv6(on_host=on_host):
        return []
    return [f"address add {address6(address)}/{lab.prefix_length6} dev {device} nodad"]


def remove_cable(lab: str, veth: str) -> None:
    """Unplug a node: from here on nothing it sends arrives, not even the end of a connection."""
    switch = switch_name(lab)
    if switch not in netns_names():
        return
    if veth in (link["ifname"] for link in json.loads(run(["ip", "-n", switch, "-j", "link"]))):
        batch([f"link del {veth}"], netns=switch)


def remove_netns(name: str) -> None:
    """Drop a network namespace; it ends with its last process."""
    if name in netns_names():
        batch([f"netns del {name}"])


def remove_switch(lab: str) -> None:
    """Remove the lab's switch and every cable still in it."""
    host = bridge_name(lab)
    if link_exists(host):
        batch([f"link del {host}"])
    remove_netns(switch_name(lab))


def make_pin_directory(directory: str) -> None:
    """Where mount namespaces are pinned: a private mount, as the kernel demands."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if directory not in mounts_below(directory):
        run(["mount", "--bind", directory, directory])
        run(["mount", "--make-private", directory])


def make_mount_namespace(paths: NodePaths) -> None:
    """The node's own mount namespace, whose /sys shows its own devices; kept when pinned."""
    if namespace_inode(paths.mount_pin):
        return
    Path(paths.mount_pin).touch()
    stage = f"{paths.run}/.sysfs"
    os.makedirs(stage, exist_ok=True)
    try:
        _run_on_some_processor([
            "unshare", f"--mount={paths.mount_pin}", "--propagation", "slave",
            "nsenter", f"--net={paths.netns}",
            "/bin/sh", "-c", _SYSFS_SCRIPT, "sysfs", stage, *_tops_below("/sys"),
        ])  # fmt: skip
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _run_on_some_processor(words: list[str]) -> None:
    """Run what pins a mount namespace, on one processor after the other until one can.

    The kernel binds only a mount namespace that is numbered higher than the one we are in, and
    since Linux 6.18 each processor gives out a range of numbers of its own. The first namespace of
    a machine has the lowest number of all; in any other one, a container's say, only the processor
    that made it is sure to give a higher one.
    """
    refusals: list[Internal] = []
    for processor in sorted(os.sched_getaffinity(0)):
        try:
            run(["taskset", "--cpu-list", str(processor), *words])
        except Internal as error:
            if os.strerror(errno.EINVAL) not in error.message:
                raise
            refusals.append(error)
        else:
            return
    raise refusals[0]


def remove_mount_namespace(paths: NodePaths) -> None:
    """Let go of the pinned namespace; it ends with its last process."""
    if namespace_inode(paths.mount_pin):
        run(["umount", "--lazy", paths.mount_pin])
    Path(paths.mount_pin).unlink(missing_ok=True)


def namespace_inode(path: str) -> int:
    """Inode of the namespace bound to `path`, 0 when there is none."""
    try:
        about = os.stat(path)
    except FileNotFoundError:
        return 0
    own = os.stat("/proc/self/ns/net")
    return about.st_ino if about.st_dev == own.st_dev else 0


def mounts_below(directory: str) -> list[str]:
    """Mount points at or below `directory`, outermost first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mountpoint = line.split()[4].encode().decode("unicode_escape")
        if mountpoint == directory or mountpoint.startswith(f"{directory}/"):
            found.append(mountpoint)
    return sorted(found)


def unmount_below(directory: str) -> None:
    """Unmount everything at or below `directory`, innermost first."""
    for mountpoint in reversed(mounts_below(directory)):
        run(["umount", "--lazy", mountpoint])


def _tops_below(directory: str) -> list[str]:
    tops: list[str] = []
    for mountpoint in mounts_below(directory):
        if mountpoint != directory and not any(mountpoint.startswith(f"{t}/") for t in tops):
            tops.append(mountpoint)
    return list(dict.fromkeys(tops))


def enter(paths: NodePaths) -> list[str]:
    """The words that run a program inside a node. Raises: FailedPrecondition when it is off."""
    if not (namespace_inode(paths.netns) and namespace_inode(paths.mount_pin)):
        node = Path(paths.base).name
        raise FailedPrecondition(f"node {node} is switched off; `swarmctl lab start {node}` first")
    return ["nsenter", f"--net={paths.netns}", f"--mount={paths.mount_pin}", "--"]


def partition(netns: str) -> None:
    """Drop everything that comes from or leaves by the uplink."""
    run(
        ["nsenter", f"--net={NETNS_DIR}/{netns}", "nft", "-f", "-"],
        text=f"""
        table inet {TABLE}
        delete table inet {TABLE}
        table inet {TABLE} {{
          chain arriving {{
            type filter hook prerouting priority -400; policy accept; iifname "{UPLINK}" drop
          }}
          chain leaving {{
            type filter hook postrouting priority 400; policy accept; oifname "{UPLINK}" drop
          }}
        }}
        """,
    )


def heal(netns: str) -> None:
    """Undo `partition`; no error when there was none."""
    text = f"table inet {TABLE}\ndelete table inet {TABLE}\n"
    run(["nsenter", f"--net={NETNS_DIR}/{netns}", "nft", "-f", "-"], text=text)


def is_partitioned(netns: str) -> bool:
    """Whether the node is cut off."""
    listing = run(["nsenter", f"--net={NETNS_DIR}/{netns}", "nft", "list", "tables"])
    return f"table inet {TABLE}" in listing.splitlines()
