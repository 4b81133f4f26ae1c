"""What the agent and the network say to each other: frozen values, no behaviour.

Addresses are dotted text, subnets CIDR text; those of IPv6 follow from them (twins.py). Everything
here is desired state (settings, peers, ports) or an observation (attachments, reports, statistics).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from worker.network.owners import Owner

INDEX_MAX = 4095


class NetworkSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes this node's mesh different from its peers'."""

    index: int
    """Number of the node in the cluster, 1..4095; it is carried in packet marks."""
    subnet: str
    """Ingress subnet of the node, e.g. 10.240.4.0/22: first host is the gateway, rest is tasks."""
    underlay_address: str
    """IPv4 address at which the peers reach this node; source of its VXLAN packets."""
    run_dir: str
    """Directory for the tasks' network namespaces (`<run_dir>/netns/<task>`)."""
    underlay_interface: str | None = None
    """Interface for the VXLAN packets; None lets the routing table choose."""
    data_path_port: int = 7789
    """UDP port of the ingress VXLAN, the same on every node; not Docker's 4789."""
    mtu: int = 1450
    """MTU of vxi and the task links: underlay MTU minus 50 bytes of VXLAN."""
    mark_shift: int = 20
    """Lowest of the 12 mark bits that carry a node index; other software may own the rest."""
    owner: Owner | None = None
    """Who owns the tasks' network namespaces; None: the node's root."""
    ipv6: bool = True
    """Whether tasks get IPv6 addresses and IPv6 clients are served; needs a kernel with IPv6."""


class Peer(msgspec.Struct, frozen=True, gc=False):
    """Another node of the mesh."""

    node_id: str
    index: int
    address: str
    """Underlay address."""
    subnet: str
    lost: bool = False
    """The node is down: it has its routes, and connections to its tasks are forgotten once."""
    keys: tuple[tuple[int, bytes], ...] = ()
    """Public keys for encrypted networks, each with its generation."""
    ipv6: bool = False
    """Its tasks have IPv6 addresses."""
    ipv6_addresses: tuple[str, ...] = ()
    """The IPv6 addresses of the node itself, by which it is known as a client."""


class Endpoint(msgspec.Struct, frozen=True, gc=False, order=True):
    """Where a connection is sent: a task's address and the port it listens on."""

    address: str
    port: int


class PublishedPort(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A port the mesh answers, and the addresses of the tasks that are ready behind it."""

    protocol: str
    """`tcp`, `udp` or `sctp`."""
    published_port: int
    target_port: int
    mode: str = "ingress"
    """`ingress`: every node balances over all endpoints; `host`: only over its own."""
    endpoints: tuple[str, ...] = ()
    sticky: bool = False
    """Choose by a hash of the client's address instead of at random."""
    source: str = "client"
    """`client`: tasks see the client's address; `node`: this node's gateway address."""
    prefer: str = "any"
    """`local`: only over this node's own endpoints while it has any."""
    address: str = ""
    """Where the port answers, of either family; empty for every address of the node."""
    interface: str = ""
    """In place of `address`: at the addresses that this interface has."""
    weights: Mapping[str, int] = {}
    """How many connections an endpoint gets in proportion to others; 1 if it is not in here."""


class PortStatus(msgspec.Struct, frozen=True, gc=False):
    """Whether this node serves a published port; `error` is empty when it does."""

    protocol: str
    published_port: int
    error: str = ""


class PortReport(msgspec.Struct, frozen=True):
    """The outcome of one `set_ports`: a status per port, and how many map elements changed."""

    statuses: tuple[PortStatus, ...]
    elements_changed: int
    held: frozenset[tuple[str, int, str]] = frozenset()
    """What is held of this node: protocol, port, and the address or "" for every one."""

    @property
    def errors(self) -> dict[tuple[str, int], str]:
        """Error text by (protocol, published port), only of ports that are not served."""
        return {(s.protocol, s.published_port): s.error for s in self.statuses if s.error}


class Attachment(msgspec.Struct, frozen=True, gc=False):
    """A task's place in the network."""

    task_id: str
    netns_path: str
    address: str
    gateway: str
    interface: str
    """Name of the interface inside the task's namespace."""
    overlay_addresses: tuple[str, ...] = ()
    """What the task is known by on its overlay networks; none: it is on none, and has no names."""
    search: tuple[str, ...] = ()
    """The node's search domains, where the task has a resolver of its own."""


class LinkStats(msgspec.Struct, frozen=True, gc=False):
    """Counters of a task's link since it was made, seen from the task."""

    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int
