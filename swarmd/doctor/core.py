"""From what was seen of a node to what is wrong with it. Pure.

Every finding says what was looked at; one that is not well says what to do. A finding is a problem
when something does not work now, and a warning when it will not under some circumstances.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum

import msgspec

VXLAN_OVERHEAD_BYTES = 50
DOCKER_VXLAN_PORT = 4789
CONNTRACK_LEAST = 262_144
"""With entries that outlive their connections by 120 s: 2184 new connections a second."""
CONNTRACK_FULL = 0.8
CLOCK_APART_S = 1.0
"""By then lines of logs from two nodes are merged in the wrong order."""
CLOCK_WRONG_S = 60.0
"""By then certificates and tokens end noticeably early or late, and jobs start at another time."""


class Level(IntEnum):
    """Numbers of the wire."""

    OK = 0
    WARNING = 1
    PROBLEM = 2


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    check: str
    level: Level
    what: str
    remedy: str = ""


class Reach(msgspec.Struct, frozen=True):
    """A peer, and which packets it answered. None: not tried."""

    name: str
    address: str
    underlay: bool
    mesh: bool | None = None
    mesh_full: bool | None = None
    """A packet of the tunnel's full size, which must not be cut into pieces."""
    mesh_ipv6: bool | None = None


class Heard(msgspec.Struct, frozen=True):
    """What a manager answered. error: why it did not; ahead_s: its clock, None: it told none."""

    address: str
    error: str = ""
    ahead_s: float | None = None
    uncertain_s: float = 0.0


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen. Names of settings are those below /proc/sys/net; None: there is no such thing.

    vxlan_mtu: of the mesh's tunnel; None: there is no tunnel. underlay: device with the node's
    data path address, "" if no device has it. no_encryption: why no encrypted network can be here.
    """

    joined: bool
    reduced: tuple[str, ...] = ()
    """What the mesh's rules do without, because kernel or nft lack it."""
    not_ready: Mapping[str, str] = {}
    has_nft: bool
    no_encryption: str = ""
    settings: Mapping[str, str | None] = {}
    vxlan_mtu: int | None = None
    data_path_port: int = 0
    data_path_address: str = ""
    underlay: str = ""
    underlay_mtu: int = 0
    clock_synchronized: bool
    peers: tuple[Reach, ...] = ()
    managers: tuple[Heard, ...] = ()


def findings(facts: Facts) -> list[Finding]:
    """Everything that was looked at, in order."""
    return [
        *_processes(facts),
        *_kernel(facts),
        *(_mesh(facts) if facts.joined else ()),
        *_conntrack(facts.settings),
        _clock(facts),
        *(finding for manager in facts.managers for finding in _manager(manager)),
        *(finding for peer in facts.peers for finding in _peer(peer)),
    ]


def _processes(facts: Facts) -> Iterator[Finding]:
    if not facts.joined:
        yield Finding(
            "cluster",
            Level.PROBLEM,
            "this node is in no cluster",
            "run `swarmctl init` or `swarmctl join`",
        )
    for name, reason in sorted(facts.not_ready.items()):
        yield Finding(f"process {name}", Level.PROBLEM, reason, "see the node's log")
    if facts.joined and not facts.not_ready:
        yield Finding("processes", Level.OK, "all are ready")


def _kernel(facts: Facts) -> Iterator[Finding]:
    if facts.has_nft:
        yield Finding("nft", Level.OK, "the program is installed")
    else:
        yield Finding("nft", Level.PROBLEM, "the program is missing", "apt-get install nftables")
    if facts.no_encryption:
        yield Finding(
            "encryption",
            Level.WARNING,
            f"{facts.no_encryption}: no task of an encrypted network comes here",
            "modprobe wireguard, or a kernel that has it; then restart swarmd",
        )
    else:
        yield Finding("encryption", Level.OK, "the kernel has WireGuard")
    for name, wanted in (("ipv4/ip_forward", "1"),):
        found = facts.settings.get(name)
        yield _setting(name, found, wanted)


def _mesh(facts: Facts) -> Iterator[Finding]:
    if facts.vxlan_mtu is None:
        yield Finding(
            "mesh", Level.PROBLEM, "there is no device vxi", "see why process worker is not ready"
        )
        return
    if facts.data_path_port == DOCKER_VXLAN_PORT:
        yield Finding(
            "data path port",
            Level.WARNING,
            f"{DOCKER_VXLAN_PORT}/udp is that of Docker's swarm as well: its packets are dropped"
            " here, should one start on this node",
            "keep Docker's swarm off this node, or make the cluster with another --data-path-port",
        )
    yield from (
        Finding("mesh", Level.WARNING, lost, "upgrade nftables or the kernel, then restart swarmd")
        for lost in facts.reduced
    )
    yield _setting("ipv4/conf/vxi/rp_filter", facts.settings.get("ipv4/conf/vxi/rp_filter"), "2")
    name = "ipv4/conf/vxi/route_localnet"
    yield _setting(name, facts.settings.get(name), "1")
    yield _ipv6(facts.settings)
    if not facts.underlay:
        yield Finding(
            "mtu",
            Level.PROBLEM,
            f"no device has the data path address {facts.data_path_address}",
            "give the address back to a device, or let the node leave and join with another"
            " --data-path-addr",
        )
        return
    needed = facts.vxlan_mtu + VXLAN_OVERHEAD_BYTES
    seen = f"{facts.underlay} has {facts.underlay_mtu}, the mesh needs {needed}"
    if facts.underlay_mtu < needed:
        remedy = f"ip link set dev {facts.underlay} mtu {needed}"
        yield Finding("mtu", Level.PROBLEM, seen, remedy)
    else:
        yield Finding("mtu", Level.OK, seen)


def _ipv6(settings: Mapping[str, str | None]) -> Finding:
    """Whoever has switched it off knows, so that is nothing to be warned of."""
    alone = "published ports answer over IPv4 alone"
    if settings.get("ipv6/conf/all/disable_ipv6") is None:
        return Finding("ipv6", Level.OK, f"the kernel has none: {alone}")
    if settings.get("ipv6/conf/vxi/disable_ipv6") != "0":
        return Finding("ipv6", Level.OK, f"it is switched off: {alone}")
    name = "ipv6/conf/all/forwarding"
    return _setting(name, settings.get(name), "1")


def _setting(name: str, found: str | None, wanted: str) -> Finding:
    key = "net." + name.replace("/", ".")
    if found == wanted:
        return Finding(f"sysctl {name}", Level.OK, f"{key} is {wanted}")
    seen = f"there is no {key}" if found is None else f"{key} is {found}, {wanted} is needed"
    return Finding(f"sysctl {name}", Level.PROBLEM, seen, f"sysctl -w {key}={wanted}")


def _conntrack(settings: Mapping[str, str | None]) -> Iterator[Finding]:
    most, used = (
        settings.get("netfilter/nf_conntrack_max"),
        settings.get("netfilter/nf_conntrack_count"),
    )
    if most is None or used is None:
        yield Finding(
            "conntrack", Level.PROBLEM, "the kernel tracks no connections", "modprobe nf_conntrack"
        )
        return
    seen = f"{used} of {most} connections"
    remedy = f"sysctl -w net.netfilter.nf_conntrack_max={4 * max(int(most), CONNTRACK_LEAST)}"
    if int(used) > CONNTRACK_FULL * int(most):
        yield Finding("conntrack", Level.PROBLEM, f"{seen}: nearly full", remedy)
    elif int(most) < CONNTRACK_LEAST:
        yield Finding("conntrack", Level.WARNING, f"{seen}: few for a busy node", remedy)
    else:
        yield Finding("conntrack", Level.OK, seen)


def _clock(facts: Facts) -> Finding:
    if facts.clock_synchronized:
        return Finding("clock", Level.OK, "the kernel says that it is synchronized")
    return Finding(
        "clock",
        Level.WARNING,
        "nothing synchronizes it: certificates fail when it is wrong",
        "install chrony or systemd-timesyncd, on this machine or on the one below it",
    )


def _manager(manager: Heard) -> Iterator[Finding]:
    check = f"manager {manager.address}"
    if manager.error:
        yield Finding(
            check,
            Level.PROBLEM,
            manager.error,
            "look whether it is up, and let this node reach that address and TCP port",
        )
        return
    yield Finding(check, Level.OK, "it answers, and both believe the same root")
    if manager.ahead_s is None:
        return
    apart_s = abs(manager.ahead_s)
    sure_s = apart_s - manager.uncertain_s
    way = "ahead of" if manager.ahead_s > 0 else "behind"
    seen = f"the manager's is {apart_s:.3f} s {way} this node's, give or take"
    seen = f"{seen} {manager.uncertain_s:.3f} s; at most {CLOCK_APART_S:g} s are well"
    level = Level.OK
    if sure_s > CLOCK_APART_S:
        level = Level.WARNING if sure_s <= CLOCK_WRONG_S else Level.PROBLEM
    remedy = "synchronize both, for example with chrony (`chronyc makestep` sets it at once)"
    yield Finding(f"clock of {manager.address}", level, seen, remedy if level else "")


def _peer(peer: Reach) -> Iterator[Finding]:
    check = f"peer {peer.name}"
    if not peer.underlay and not peer.mesh:
        yield Finding(
            check,
            Level.PROBLEM,
            f"{peer.address} does not answer",
            "look at the network between the nodes, and whether the node is up",
        )
    elif peer.mesh is None:
        yield Finding(check, Level.OK, f"{peer.address} answers")
    elif not peer.mesh:
        yield Finding(
            check,
            Level.PROBLEM,
            f"{peer.address} answers, but not through the mesh",
            "open the cluster's data path port (7789/udp unless set) in both directions",
        )
    elif not peer.mesh_full:
        yield Finding(
            check,
            Level.PROBLEM,
            "large packets are lost on the way: the network's MTU is below 1500",
            "raise the MTU of every device between the nodes",
        )
    elif peer.mesh_ipv6 is False:
        yield Finding(
            check,
            Level.PROBLEM,
            "it answers through the mesh, but not over IPv6",
            "run `swarmctl node doctor` there; look at what filters IPv6 on both nodes",
        )
    else:
        also = " and over IPv6" if peer.mesh_ipv6 else ""
        yield Finding(check, Level.OK, f"answers, also through the mesh at full size{also}")
