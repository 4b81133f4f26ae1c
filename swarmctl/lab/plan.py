"""What a lab consists of: names, addresses and paths. Pure; nothing here touches the machine.

A lab's names follow from its name alone, so `down` finds everything a crashed `up` left, without
any record. A lab may have an etcd of its own for its managers' state: a node as well, with the role
`store` and another daemon. Invariants: every interface name fits the kernel's 15 characters, every
unix socket path its 108 bytes, and no two nodes share an address. Refuses more managers than the
cluster supports, subnets that are too small, and names that could be mistaken for another lab's.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal

import msgspec

from shoal.errors import InvalidArgument, NotFound, ResourceExhausted

MANAGERS_MAX = 7
"""More managers make every write dearer and survive no more than three failures do."""
WORKERS_MAX = 100
SOCKET_PATH_MAX = 99
METRICS_PORT = 9323
UPLINK = "eth0"
CGROUP_ROOT = "shoal-lab"

ETCD = "etcd"
"""As a store: an etcd of the lab's own; `etcd?lease_ttl_s=3` with parameters of its URL."""
ETCD_PORT = 2379
ETCD_PEER_PORT = 2380

Role = Literal["manager", "worker", "store"]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,18}[a-z0-9])?")
_NETNS = re.compile(r"shoal-(?P<lab>.+)-(?P<node>[emw][1-9][0-9]{0,2})")
_POOL = ipaddress.IPv4Network("10.89.0.0/16")
_POOL6 = ipaddress.IPv6Network("fd53:686f:616c:1::/96")
"""Whoever has an IPv4 address in a lab has it once more behind this."""


class NodePlan(msgspec.Struct, frozen=True):
    """One node of a lab. `address` is its own in the subnet, `veth` its port of the switch."""

    name: str
    role: Role
    address: str
    veth: str


class LabPlan(msgspec.Struct, frozen=True):
    """A lab: a switch with the host at `gateway`, and its nodes, managers first.

    bridge: the host's interface to the switch.

    store: URL of the etcd that keeps the managers' state; empty: they do. stores: those etcds that
    are the lab's own.
    """

    name: str
    directory: str
    subnet: str
    gateway: str
    bridge: str
    nodes: tuple[NodePlan, ...]
    store: str = ""
    stores: tuple[NodePlan, ...] = ()

    @property
    def everyone(self) -> tuple[NodePlan, ...]:
        """Whatever has a namespace of its own; stores first, as they are started."""
        return self.stores + self.nodes

    def node(self, name: str) -> NodePlan:
        """The node called `name`. Raises: NotFound, naming the nodes there are."""
        for node in self.everyone:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.everyone)
        raise NotFound(f"lab {self.name} has no node {name!r}; it has {known}")

    @property
    def prefix_length(self) -> int:
        """Length of the subnet's network part, bits."""
        return ipaddress.IPv4Network(self.subnet).prefixlen

    @property
    def prefix_length6(self) -> int:
        """Of the subnet that its nodes have in IPv6, bits."""
        return _POOL6.prefixlen + self.prefix_length


class NodePaths(msgspec.Struct, frozen=True):
    """Where a node keeps its things. `mount_pin` holds its mount namespace while it lives."""

    base: str
    state: str
    run: str
    log: str
    record: str
    socket: str
    docker_socket: str
    netns: str
    mount_pin: str


def plan_lab(
    name: str,
    *,
    managers: int,
    workers: int,
    subnet: ipaddress.IPv4Network,
    directory: str,
    store: str = "",
) -> LabPlan:
    """Lay out a lab: m1.., w1.. on the addresses after the host's, which is the first; then e1.

    directory: where all labs live; the lab's own is below it. store: empty, ETCD, a URL.
    Raises: InvalidArgument.
    """
    check_name(name)
    check_counts(managers, workers)
    check_store(store)
    if subnet.num_addresses - 3 < managers + workers + wants_etcd(store):
        raise InvalidArgument(
            f"--subnet {subnet}: too small for {managers + workers} nodes and the host"
        )
    names: list[tuple[str, Role]] = [(f"m{n}", "manager") for n in range(1, managers + 1)]
    names += [(f"w{n}", "worker") for n in range(1, workers + 1)]
    names += [("e1", "store")] if wants_etcd(store) else []
    planned = tuple(
        NodePlan(node, role, str(subnet[index + 2]), f"s{name_hash(name)}{node}")
        for index, (node, role) in enumerate(names)
    )
    stores = tuple(node for node in planned if node.role == "store")
    lab = LabPlan(
        name=name,
        directory=str(PurePosixPath(directory) / name),
        subnet=str(subnet),
        gateway=str(subnet[1]),
        bridge=bridge_name(name),
        nodes=tuple(node for node in planned if node.role != "store"),
        store=_own_url(stores[0], store) if stores else store,
        stores=stores,
    )
    longest = max(
        (node_paths(lab.directory, lab.name, n.name).docker_socket for n in planned), key=len
    )
    if len(longest) > SOCKET_PATH_MAX:
        raise InvalidArgument(
            f"--dir {directory}: {longest} is longer than the {SOCKET_PATH_MAX} characters a "
            "unix socket may have; choose a shorter directory or lab name"
        )
    return lab


def check_name(name: str) -> None:
    """Raise InvalidArgument unless `name` may name a lab."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"lab name {name!r}: use 1 to 20 of a-z, 0-9 and '-', not starting or ending with '-'"
        )


def check_counts(managers: int, workers: int) -> None:
    """Raise unless this version can run so many nodes."""
    if managers < 1:
        raise InvalidArgument("--managers: a cluster needs at least one manager")
    if managers > MANAGERS_MAX:
        raise InvalidArgument(f"--managers {managers}: must be between 1 and {MANAGERS_MAX}")
    if not 0 <= workers <= WORKERS_MAX:
        raise InvalidArgument(f"--workers {workers}: must be between 0 and {WORKERS_MAX}")


def wants_etcd(store: str) -> bool:
    """Whether the lab needs an etcd of its own."""
    return store.partition("?")[0] == ETCD


def check_store(store: str) -> None:
    """Raise unless it names where managers keep their state; the daemons read URLs in detail."""
    if store and not wants_etcd(store) and not store.startswith("etcd://"):
        raise InvalidArgument(
            f"--store {store}: must be {ETCD} (one of the lab's own) or etcd://HOST:PORT,.../PREFIX"
        )


def parse_subnet(text: str) -> ipaddress.IPv4Network:
    """Read an IPv4 CIDR. Raises: InvalidArgument."""
    try:
        return ipaddress.IPv4Network(text)
    except ValueError as error:
        raise InvalidArgument(f"--subnet {text}: {error}") from error


def choose_subnet(taken: Iterable[str]) -> ipaddress.IPv4Network:
    """The first 10.89.N.0/24 that overlaps none of `taken` (CIDRs of routes and other labs).

    Raises: ResourceExhausted when all 256 overlap.
    """
    used = list(taken)
    for candidate in _POOL.subnets(new_prefix=24):
        if not first_overlap(candidate, used):
            return candidate
    raise ResourceExhausted(f"every /24 of {_POOL} is in use; choose one with --subnet")


def address6(address: str) -> str:
    """The IPv6 address of who has this IPv4 address in a lab."""
    return str(_POOL6.network_address + int(ipaddress.IPv4Address(address)))


def first_overlap(network: ipaddress.IPv4Network, taken: Iterable[str]) -> str:
    """The first CIDR of `taken` that shares an address with `network`; "" when none does."""
    for cidr in taken:
        other = ipaddress.ip_network(cidr, strict=False)
        if isinstance(other, ipaddress.IPv4Network) and network.overlaps(other):
            return cidr
    return ""


def name_hash(lab: str) -> str:
    """Eight hexadecimal digits that stand for the lab where names must be short."""
    return hashlib.sha256(lab.encode()).hexdigest()[:8]


def bridge_name(lab: str) -> str:
    """The host's interface to the lab's switch, 12 characters."""
    return f"slab{name_hash(lab)}"


def switch_name(lab: str) -> str:
    """The switch's network namespace, below /run/netns; no node is called so."""
    return f"shoal-{lab}-switch"


def netns_name(lab: str, node: str) -> str:
    """The node's name below /run/netns."""
    return f"shoal-{lab}-{node}"


def nodes_of_netns(lab: str, names: Iterable[str]) -> list[str]:
    """The nodes of `lab` among names of network namespaces, sorted."""
    matches = (_NETNS.fullmatch(name) for name in names)
    return sorted(m["node"] for m in matches if m and m["lab"] == lab)


def lab_cgroup(lab: str) -> str:
    """The lab's control group, from the root of every hierarchy."""
    return f"/{CGROUP_ROOT}/{lab}"


def node_cgroup(lab: str, node: str) -> str:
    """The node's control group: `daemons` below it is ours, the containers are beside that."""
    return f"/{CGROUP_ROOT}/{lab}/{node}"


def node_paths(directory: str, lab: str, node: str) -> NodePaths:
    """Every path of a node. directory: the lab's own."""
    base = f"{directory}/{node}"
    return NodePaths(
        base=base,
        state=f"{base}/state",
        run=f"{base}/run",
        log=f"{base}/swarmd.log",
        record=f"{base}/process.json",
        socket=f"{base}/run/swarmd.sock",
        docker_socket=f"{base}/run/docker.sock",
        netns=f"/run/netns/{netns_name(lab, node)}",
        mount_pin=f"{directory}/ns/{node}",
    )


def daemon_command(lab: LabPlan, node: NodePlan, *, python: str) -> list[str]:
    """The command line of the node's swarmd, or of a store's etcd."""
    paths = node_paths(lab.directory, lab.name, node.name)
    if node.role == "store":
        return _etcd_command(node, paths)
    return [
        python, "-P", "-m", "swarmd",
        "--state-dir", paths.state,
        "--run-dir", paths.run,
        "--hostname", node.name,
        "--cgroup-parent", node_cgroup(lab.name, node.name),
        "--metrics-addr", f"{node.address}:{METRICS_PORT}",
        "--log-level", "info",
        *(["--store", lab.store] if lab.store else []),
    ]  # fmt: skip


def _own_url(node: NodePlan, store: str) -> str:
    _, mark, parameters = store.partition("?")
    return f"etcd://{node.address}:{ETCD_PORT}/shoal{mark}{parameters}"


def _etcd_command(node: NodePlan, paths: NodePaths) -> list[str]:
    client, peer = (f"http://{node.address}:{port}" for port in (ETCD_PORT, ETCD_PEER_PORT))
    return [
        # Version 3.4 does not start on another architecture than amd64 without this.
        "env", "ETCD_UNSUPPORTED_ARCH=arm64",
        "etcd",
        "--name", node.name,
        "--data-dir", f"{paths.state}/etcd",
        "--listen-client-urls", client,
        "--advertise-client-urls", client,
        "--listen-peer-urls", peer,
        "--initial-advertise-peer-urls", peer,
        "--initial-cluster", f"{node.name}={peer}",
        "--logger", "zap",
    ]  # fmt: skip
