"""Slot tables and addressing: the network's decisions, pure.

A published port owns a table of 64 slots (1024 beyond 64 endpoints); the kernel picks a slot at
random or by the client's hash. Invariants of `rebalance`: every slot is filled while there is an
endpoint; an endpoint's number of slots differs by less than one from its share by weight; a
surviving endpoint keeps its slots up to its quota; the result is a fixpoint. What has less than a
slot of 1024 as its share may get none. `element_changes` never writes a key it has not deleted
first: the kernel refuses that.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from shoal.errors import InvalidArgument
from shoal.model.published import address_problem, interface_problem
from worker.network.api import INDEX_MAX, Endpoint, NetworkSettings, Peer, PublishedPort
from worker.network.twins import twin

NARROW_SLOTS: Final = 64
WIDE_SLOTS: Final = 1024
PROTOCOLS: Final = {"tcp": 6, "udp": 17, "sctp": 132}
MODES: Final = ("ingress", "host")
SOURCES: Final = ("client", "node")
PREFERENCES: Final = ("any", "local")
IPV4_BITS: Final = 32
MTU_MIN: Final = 576
MTU_MAX: Final = 65_485
ROUTE_TABLE_BASE: Final = 1000

_ALIKE: Final[Mapping[str, int]] = {}

Table = tuple[str, ...]
"""Owner of each slot, by slot number; empty when there is no endpoint."""


class PortTable(msgspec.Struct, frozen=True):
    """The slots of one published port and the map that holds them."""

    map_name: str
    target_port: int
    slots: Table


class ElementChange(msgspec.Struct, frozen=True, gc=False):
    """One slot to write or delete in a map."""

    map_name: str
    slot: int
    endpoint: Endpoint


class TableChange(msgspec.Struct, frozen=True):
    """What turns one port's table into the next: deletes first, then adds."""

    deletes: tuple[ElementChange, ...]
    adds: tuple[ElementChange, ...]
    endpoints_gone: frozenset[Endpoint]


def map_name(*, sticky: bool, size: int, version: int = 4, placed: bool = False) -> str:
    """The slot map for tables of `size` slots, chosen by hash (`sticky`) or at random.

    version: 4 or 6, of the addresses in it. placed: of ports at one address of the node each.
    """
    kind = "sticky" if sticky else "slots"
    wide = "_wide" if size == WIDE_SLOTS else ""
    return f"{kind}{wide}{'_at' if placed else ''}{'6' if version == 6 else ''}"


def rebalance(
    current: Sequence[str],
    endpoints: Iterable[str],
    size: int,
    weights: Mapping[str, int] = _ALIKE,
) -> Table:
    """The table of `size` slots over `endpoints` that changes `current` the least.

    current: owner by slot, "" for an empty slot, any length. weights: at least 1, which also those
    have that are not in it. Cost O(size + n log n).
    """
    wanted = sorted(set(endpoints))
    if not wanted:
        return ()
    old = [*current[:size], *[""] * (size - len(current))]
    held = Counter(owner for owner in old if owner)
    quota = _quotas(wanted, size, weights, held)
    table: list[str] = []
    for owner in old:
        keeps = quota.get(owner, 0) > 0
        if keeps:
            quota[owner] -= 1
        table.append(owner if keeps else "")
    needy = [name for name in wanted for _ in range(quota[name])]
    return tuple(owner or needy.pop() for owner in table)


def units_of(port: PublishedPort) -> int:
    """How many slots give every endpoint one for each unit of its weight."""
    return sum(port.weights.get(endpoint, 1) for endpoint in set(port.endpoints))


def _quotas(
    wanted: Sequence[str], size: int, weights: Mapping[str, int], held: Mapping[str, int]
) -> dict[str, int]:
    total = sum(weights.get(name, 1) for name in wanted)
    shares = {name: divmod(size * weights.get(name, 1), total) for name in wanted}
    extra = size - sum(whole for whole, _rest in shares.values())
    # The odd slots go to those who miss most of their share, then to those who hold one already:
    # that keeps the most slots in place.
    ranked = sorted(
        wanted,
        key=lambda name: (-shares[name][1], held.get(name, 0) <= shares[name][0], name),
    )
    return {name: shares[name][0] + (rank < extra) for rank, name in enumerate(ranked)}


def next_table(current: PortTable | None, port: PublishedPort, version: int = 4) -> PortTable:
    """The table for `port`, built on `current` if that lives in the same map.

    version: 4 or 6, of its endpoints.
    """
    size = NARROW_SLOTS if units_of(port) <= NARROW_SLOTS else WIDE_SLOTS
    name = map_name(sticky=port.sticky, size=size, version=version, placed=bool(port.address))
    basis: Table = current.slots if current is not None and current.map_name == name else ()
    slots = rebalance(basis, port.endpoints, size, port.weights)
    return PortTable(name, port.target_port, slots)


def element_changes(old: PortTable | None, new: PortTable | None) -> TableChange:
    """The slots to delete and to add so that `old` becomes `new`; None is no table at all."""
    before, after = _elements(old), _elements(new)
    return TableChange(
        deletes=tuple(change for key, change in before.items() if after.get(key) != change),
        adds=tuple(change for key, change in after.items() if before.get(key) != change),
        endpoints_gone=_owners(old) - _owners(new),
    )


def table_from_slots(map_: str, owners: Mapping[int, Endpoint]) -> PortTable | None:
    """The table found in the kernel; None if its slots disagree about the target port."""
    targets = {endpoint.port for endpoint in owners.values()}
    if len(targets) != 1:
        return None
    size = WIDE_SLOTS if "_wide" in map_ else NARROW_SLOTS
    if any(slot >= size for slot in owners):
        return None
    slots = tuple(owners[slot].address if slot in owners else "" for slot in range(size))
    return PortTable(map_, targets.pop(), slots)


def check_port(port: PublishedPort) -> str:
    """Why the mesh cannot carry `port`; empty if it can."""
    name = f"published port {port.published_port}/{port.protocol}"
    if port.protocol not in PROTOCOLS:
        return f"{name}: the mesh carries tcp, udp and sctp, not {port.protocol}"
    if port.mode not in MODES:
        return f"{name}: mode must be ingress or host, not {port.mode!r}"
    if port.source not in SOURCES:
        return f"{name}: source must be client or node, not {port.source!r}"
    if port.prefer not in PREFERENCES:
        return f"{name}: prefer must be any or local, not {port.prefer!r}"
    if any(weight < 1 for weight in port.weights.values()):
        return f"{name}: weights must be at least 1"
    if port.address and (problem := address_problem(port.address)):
        return f"{name}: {problem}"
    if port.interface and (problem := interface_problem(port.interface)):
        return f"{name}: {problem}"
    for value in (port.published_port, port.target_port):
        if not 1 <= value <= 65_535:
            return f"{name}: {value} is not a port (1..65535)"
    return ""


def local_view(port: PublishedPort, subnet: ipaddress.IPv4Network) -> PublishedPort:
    """`port` as the node of `subnet` serves new connections.

    In host mode only with its own endpoints; with prefer=local with those while it has any.
    """
    if port.mode != "host" and port.prefer != "local":
        return port
    own = tuple(e for e in port.endpoints if ipaddress.IPv4Address(e) in subnet)
    if port.mode != "host" and not own:
        return port
    return msgspec.structs.replace(port, endpoints=own)


def endpoints_of(port: PublishedPort | None) -> frozenset[Endpoint]:
    """Where connections to the port may have been sent, by whichever node; None is no port."""
    if port is None:
        return frozenset()
    return frozenset(Endpoint(address, port.target_port) for address in port.endpoints)


class Reach:
    """Where tasks have IPv6 addresses: on the nodes with these ingress subnets."""

    def __init__(self, subnets: Iterable[str] = ()) -> None:
        self.subnets = frozenset(subnets)
        self._by_length: dict[int, set[int]] = {}
        for subnet in self.subnets:
            network = ipaddress.IPv4Network(subnet)
            first = int(network.network_address)
            self._by_length.setdefault(network.prefixlen, set()).add(first)

    def view(self, port: PublishedPort) -> PublishedPort:
        """`port` as it is served over IPv6: with the twins of the endpoints that have one."""
        there = tuple(twin(e) for e in port.endpoints if self._holds(e))
        weights = {twin(e): weight for e, weight in port.weights.items()}
        return msgspec.structs.replace(port, endpoints=there, weights=weights)

    def _holds(self, address: str) -> bool:
        number = int(ipaddress.IPv4Address(address))
        return any(
            number >> (IPV4_BITS - length) << (IPV4_BITS - length) in firsts
            for length, firsts in self._by_length.items()
        )


def gateway_of(subnet: str) -> str:
    """The first host address of an ingress subnet: the node's gateway and inner VTEP address."""
    return str(ipaddress.IPv4Network(subnet).network_address + 1)


def vtep_mac(subnet: str) -> bytes:
    """The MAC of a node's VXLAN device: 02:fe and its gateway address, so nothing is exchanged."""
    return b"\x02\xfe" + ipaddress.IPv4Address(gateway_of(subnet)).packed


def task_mac(address: str) -> bytes:
    """The MAC of a task's interface: 02:42 and its address."""
    return b"\x02\x42" + ipaddress.IPv4Address(address).packed


def check_settings(settings: NetworkSettings) -> None:
    """Refuse settings the mesh cannot work with. Raises: InvalidArgument naming the field."""
    _check_member("settings", settings.index, settings.subnet, settings.underlay_address)
    if not 1 <= settings.data_path_port <= 65_535:
        raise InvalidArgument(f"data_path_port {settings.data_path_port} is not in 1..65535")
    if not MTU_MIN <= settings.mtu <= MTU_MAX:
        raise InvalidArgument(f"mtu {settings.mtu} is not in {MTU_MIN}..{MTU_MAX}")
    if not 0 <= settings.mark_shift <= IPV4_BITS - 12:
        raise InvalidArgument(f"mark_shift {settings.mark_shift} is not in 0..20")


def check_peers(peers: Iterable[Peer], settings: NetworkSettings) -> None:
    """Refuse peers that contradict each other or this node. Raises: InvalidArgument."""
    networks = [(ipaddress.IPv4Network(settings.subnet), "this node")]
    seen: dict[int | str, str] = {
        settings.index: "this node",
        settings.underlay_address: "this node",
    }
    for peer in peers:
        name = f"peer {peer.node_id}"
        _check_member(name, peer.index, peer.subnet, peer.address)
        for value in (peer.index, peer.address):
            if value in seen:
                raise InvalidArgument(f"{name}: {value} already belongs to {seen[value]}")
            seen[value] = name
        networks.append((ipaddress.IPv4Network(peer.subnet), name))
    networks.sort()
    for (first, owner), (second, name) in itertools.pairwise(networks):
        if first.overlaps(second):
            raise InvalidArgument(f"subnet {second} of {name} overlaps {first} of {owner}")


def _check_member(name: str, index: int, subnet: str, address: str) -> None:
    if not 1 <= index <= INDEX_MAX:
        raise InvalidArgument(f"{name}: index {index} is not in 1..{INDEX_MAX}")
    try:
        network = ipaddress.IPv4Network(subnet)
        ipaddress.IPv4Address(address)
    except ValueError as error:
        raise InvalidArgument(f"{name}: {error}") from error
    if network.prefixlen > 29:
        raise InvalidArgument(f"{name}: subnet {subnet} is smaller than /29")


def _elements(table: PortTable | None) -> dict[tuple[str, int], ElementChange]:
    if table is None:
        return {}
    return {
        (table.map_name, slot): ElementChange(
            table.map_name, slot, Endpoint(owner, table.target_port)
        )
        for slot, owner in enumerate(table.slots)
        if owner
    }


def _owners(table: PortTable | None) -> frozenset[Endpoint]:
    if table is None:
        return frozenset()
    return frozenset(Endpoint(owner, table.target_port) for owner in table.slots if owner)
