"""What the agent and the overlay networks say to each other: frozen values, no behaviour.

Addresses are text without a mask unless a name says CIDR. `OverlayState` is the whole wish of one
version; a `TaskPlace` is what one task of this node asks for.
"""

from __future__ import annotations

import msgspec


class OverlayNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """A network that tasks of this node are on."""

    network_id: str
    name: str
    vni: int
    subnets: tuple[str, ...]
    """CIDR, at most one per address family."""
    mtu: int = 0
    """Bytes of a packet inside the network; 0: what the underlay leaves."""
    internal: bool = False
    encrypted: bool = False
    """Its packets leave the node through WireGuard, or not at all."""


class OverlayService(msgspec.Struct, frozen=True, kw_only=True):
    """A service as the tasks of one network find it."""

    network_id: str
    service_id: str
    name: str
    virtual_ips: tuple[str, ...] = ()
    """None: its names answer with the tasks' addresses."""
    aliases: tuple[str, ...] = ()


class OverlayEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A task's place in one network, on whatever node."""

    network_id: str
    task_id: str
    service_id: str = ""
    node_id: str
    addresses: tuple[str, ...]
    names: tuple[str, ...] = ()
    ready: bool = False


class OverlayState(msgspec.Struct, frozen=True, kw_only=True):
    """All the node was told. nodes: underlay address by node id; lost: nodes that are down.

    keys: WireGuard public keys by node id and generation.
    """

    networks: tuple[OverlayNetwork, ...] = ()
    services: tuple[OverlayService, ...] = ()
    endpoints: tuple[OverlayEndpoint, ...] = ()
    nodes: dict[str, str] = {}
    lost: frozenset[str] = frozenset()
    keys: dict[str, dict[int, bytes]] = {}


class OverlayLink(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a task. addresses: CIDR; the hardware address follows from the first."""

    network_id: str
    interface: str
    addresses: tuple[str, ...]


class TaskPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A task that is on overlay networks: where its namespace is, and what it asks for there."""

    task_id: str
    netns_path: str
    uplink: str
    """The interface that leads to the node, for the way out and for published ports."""
    links: tuple[OverlayLink, ...]
    servers: tuple[str, ...] = ()
    """Name servers of the task's own; none: the node's."""
    publishes: bool = False
    """It has published ports, which need the way out also where all networks are internal."""
    named_here: bool = True
    """It asks this data plane's resolver; containers of the engine have one of their own."""
