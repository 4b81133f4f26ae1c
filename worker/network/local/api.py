"""What the node's own networks are asked for and what they answer: data and one Protocol.

Each network is a Linux bridge with its own subnet; containers of different networks do not reach
each other. `bridge`, `host` and `none` exist always. Addresses are dotted text, subnets CIDR text.
Endpoints are remembered on disk by (network, container), so a container that is started again gets
its static addresses, and a restarted worker adopts what runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from worker.network.local.naming import Place
from worker.network.owners import Owner

BRIDGE = "bridge"
HOST = "host"
NONE = "none"
GATEWAY = "docker_gwbridge"
"""The way out of containers that are on networks of the cluster alone; nobody has a name on it."""
PREDEFINED = frozenset((BRIDGE, HOST, NONE))


class IpamPool(msgspec.Struct, frozen=True, kw_only=True):
    """One subnet of a network; empty fields are chosen by the node."""

    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    reserved: dict[str, str] = {}
    """Auxiliary addresses by name: never given out."""


class LocalNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """One network. `id`: 64 hexadecimal digits. `options`: the driver's, as given."""

    id: str
    name: str
    created_at_ns: int
    driver: str = BRIDGE
    pools: tuple[IpamPool, ...] = ()
    internal: bool = False
    attachable: bool = False
    enable_ipv6: bool = False
    options: dict[str, str] = {}
    ipam_options: dict[str, str] = {}
    labels: dict[str, str] = {}
    config_only: bool = False
    config_from: str = ""


class EndpointSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a container is to be part of a network."""

    aliases: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    """Container id and the name it is reached by (`--link`)."""
    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_addresses: tuple[str, ...] = ()
    mac_address: str = ""
    driver_options: dict[str, str] = {}
    gateway_priority: int = 0
    """The network of the highest leads outside; of equal ones the first."""


class PortBinding(msgspec.Struct, frozen=True, kw_only=True):
    """One published port. host_port 0: the node chooses; host_address "": every address."""

    container_port: int
    protocol: str = "tcp"
    host_address: str = ""
    host_port: int = 0
    host_port_end: int = 0
    """Last port of a range to choose from; 0: only `host_port`."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A container's place in a network; addresses are empty while it does not run."""

    id: str
    network_id: str
    network_name: str
    container: str
    spec: EndpointSpec
    interface: str = ""
    mac_address: str = ""
    ipv4_address: str = ""
    ipv4_prefix: int = 0
    ipv6_address: str = ""
    ipv6_prefix: int = 0
    gateway: str = ""
    ipv6_gateway: str = ""


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """What a starting container gets: its namespace, names, and ports as they were bound."""

    netns_path: str
    endpoints: tuple[Endpoint, ...]
    ports: tuple[PortBinding, ...] = ()
    hosts: tuple[tuple[str, str], ...] = ()
    """Lines for /etc/hosts: address, name."""
    dns_servers: tuple[str, ...] = ()
    """`127.0.0.11` on networks with names; empty: the node's own resolv.conf."""
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    """The node's, where the container wishes no others."""
    sysctls: tuple[tuple[str, str], ...] = ()


class ContainerNetworking(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a container wants of the networks when it starts."""

    container: str
    name: str
    hostname: str
    networks: tuple[tuple[str, EndpointSpec], ...]
    """Network id and how; the first is the one the default route goes through."""
    domainname: str = ""
    ports: tuple[PortBinding, ...] = ()
    dns_servers: tuple[str, ...] = ()
    """What the resolver forwards to; empty: the node's own servers."""
    owner: Owner | None = None
    """Who owns its network namespace; None: the node's root."""
    elsewhere: tuple[Place, ...] = ()
    """Networks with names that others have put it in: those of the cluster."""


class LinkCounters(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a container, seen from inside."""

    interface: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


class LocalNetworks(Protocol):
    """The networks of the node. Every method raises `shoal.errors.SwarmError`s."""

    async def refresh(self, *, patiently: bool = False) -> None:
        """Learn which networks there are by now, where others make them, too.

        patiently: wait a while for those who know.
        """
        ...

    async def create(self, wanted: LocalNetwork) -> LocalNetwork:
        """Make a network; id, time and empty pools are filled in. Result: as made.

        Raises: NameConflict `network with name n1 already exists`, InvalidArgument, NotFound
        (driver), PermissionDenied (the subnet overlaps another one).
        """
        ...

    def list(self) -> tuple[LocalNetwork, ...]:
        """Every network, predefined ones included, by name."""
        ...

    def resolve(self, ref: str) -> LocalNetwork:
        """By full id, name, or unique id prefix. Raises: NotFound, InvalidArgument (ambiguous)."""
        ...

    async def remove(self, ref: str) -> LocalNetwork:
        """Remove it. Raises: NotFound, PermissionDenied (predefined, or active endpoints)."""
        ...

    async def start(self, wanted: ContainerNetworking) -> Sandbox:
        """Make the container's namespace with all its interfaces, ports and names.

        All or nothing. Idempotent for a container that has its sandbox. Raises:
        FailedPrecondition (`Bind for 0.0.0.0:8081 failed: port is already allocated`),
        ResourceExhausted, NotFound.
        """
        ...

    async def stop(self, container: str) -> None:
        """The container has ended: give its addresses, ports, names and namespace back."""
        ...

    async def connect(self, container: str, network: str, spec: EndpointSpec) -> Endpoint:
        """Put a running container into one more network. Raises: PermissionDenied (is in it)."""
        ...

    async def disconnect(self, container: str, network: str) -> None:
        """Take a running container out of a network. Raises: NotFound (is not in it)."""
        ...

    async def rename(self, container: str, name: str) -> None:
        """The container has another name now: the resolver follows."""
        ...

    def endpoints(self, network: str) -> tuple[Endpoint, ...]:
        """Running containers of a network."""
        ...

    def sandbox(self, container: str) -> Sandbox | None:
        """What a running container has now."""
        ...

    async def stats(self, container: str) -> tuple[LinkCounters, ...]:
        """Counters of each interface."""
        ...

    async def adopt(self, running: Mapping[str, ContainerNetworking]) -> Sequence[str]:
        """After a restart: keep these containers' sandboxes, drop all others.

        Result: containers whose sandbox is gone.
        """
        ...
