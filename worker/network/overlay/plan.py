"""What the kernel should hold for the overlay networks of a node: pure.

A virtual address owns a table of slots, as a published port does (`worker.network.core`); only
endpoints that are ready have slots. The hardware address of an endpoint follows from its address.
Every endpoint of another node has a neighbour and a forwarding entry, ready or not: one that stops
still sends its last answers. Refuses networks that the kernel could not carry.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from shoal.errors import InvalidArgument
from worker.network.core import MTU_MAX, MTU_MIN, NARROW_SLOTS, WIDE_SLOTS, Table, rebalance
from worker.network.fabric import VNI
from worker.network.nft import Element
from worker.network.overlay.api import (
    OverlayEndpoint,
    OverlayNetwork,
    OverlayService,
    OverlayState,
    TaskPlace,
)

VNI_MAX = (1 << 24) - 1
MTU_MIN_IPV6 = 1280
VIPS = "vips"
SLOTS = {NARROW_SLOTS: "slots", WIDE_SLOTS: "slots_wide"}

Item = TypeVar("Item", OverlayService, OverlayEndpoint)
Tables = Mapping[str, Table]
"""Slots by virtual address; an empty table is a service without a ready task."""


class Remotes(msgspec.Struct, frozen=True):
    """The endpoints of other nodes: their hardware addresses, and the nodes behind those."""

    neighbours: Mapping[str, bytes] = {}
    forwarding: Mapping[bytes, str] = {}


class Change(msgspec.Struct, frozen=True):
    """Elements of one family's table: deletes first, then adds."""

    deletes: tuple[Element, ...] = ()
    adds: tuple[Element, ...] = ()


class NetworkPlan(msgspec.Struct, frozen=True):
    """What one network should be, here."""

    network: OverlayNetwork
    remotes: Remotes
    tables: Tables
    addresses: frozenset[str]
    """Of all endpoints, ready or not."""
    lost: frozenset[str] = frozenset()
    """Of those whose node is down."""


def check_network(network: OverlayNetwork, unsealed: str = "") -> None:
    """Refuse what this node cannot build. Raises: InvalidArgument naming the field.

    unsealed: why this node cannot encrypt; "" when it can.
    """
    name = f"network {network.name}"
    if network.encrypted and unsealed:
        raise InvalidArgument(f"{name} is encrypted: {unsealed}")
    if not 1 <= network.vni <= VNI_MAX:
        raise InvalidArgument(f"{name}: VXLAN number {network.vni} is not in 1..{VNI_MAX}")
    if network.vni == VNI:
        raise InvalidArgument(f"{name}: VXLAN number {VNI} is the ingress network's: use another")
    versions = [version_of(subnet) for subnet in network.subnets]
    if not versions or len(versions) != len(set(versions)):
        raise InvalidArgument(f"{name}: it needs one subnet per address family, not {versions}")
    least = MTU_MIN_IPV6 if 6 in versions else MTU_MIN
    if network.mtu and not least <= network.mtu <= MTU_MAX:
        raise InvalidArgument(f"{name}: mtu {network.mtu} is not in {least}..{MTU_MAX}")


def version_of(address: str) -> int:
    """4 or 6, of an address or of CIDR text."""
    return 6 if ":" in address else 4


def hardware_address(addresses: Iterable[str]) -> bytes:
    """Of the endpoint with these addresses (CIDR or not): 02:42 and four bytes of the first one."""
    first = next(iter(addresses)).partition("/")[0]
    return b"\x02\x42" + ipaddress.ip_address(first).packed[-4:]


def plans(
    state: OverlayState, current: Mapping[str, Tables], own_address: str
) -> dict[str, NetworkPlan]:
    """Every network of `state`. current: tables in force, by network; own_address: in the underlay.

    Cost: O(endpoints), and O(slots) per virtual address that changes.
    """
    services = _by_network(state.services)
    endpoints = _by_network(state.endpoints)
    found = {}
    for network in state.networks:
        members = endpoints.get(network.network_id, [])
        found[network.network_id] = NetworkPlan(
            network,
            _remotes(members, state.nodes, own_address),
            _tables(
                current.get(network.network_id, {}), services.get(network.network_id, ()), members
            ),
            _addresses(members),
            _addresses(one for one in members if one.node_id in state.lost),
        )
    return found


def merged(tables: Iterable[Tables]) -> Tables:
    """The tables of a task that is on several networks."""
    whole: dict[str, Table] = {}
    for one in tables:
        whole.update(one)
    return whole


def change(old: Tables, new: Tables, version: int) -> Change:
    """The elements, of one address family, that turn `old` into `new`."""
    deletes: list[Element] = []
    adds: list[Element] = []
    for vip in dict.fromkeys((*old, *new)):
        before, after = old.get(vip), new.get(vip)
        if before == after or version_of(vip) != version:
            continue
        packed = ipaddress.ip_address(vip).packed
        was, will = _elements(packed, before), _elements(packed, after)
        deletes += [Element(*key, value) for key, value in was.items() if will.get(key) != value]
        adds += [Element(*key, value) for key, value in will.items() if was.get(key) != value]
    return Change(tuple(deletes), tuple(adds))


def parse(vips: Iterable[bytes], slots: Mapping[str, Mapping[bytes, bytes]]) -> dict[str, Table]:
    """The tables that are in a namespace. vips: elements of the set; slots: of the maps by name."""
    owners: dict[bytes, dict[int, str]] = {vip: {} for vip in vips}
    sizes = dict.fromkeys(owners, NARROW_SLOTS)
    for size, name in SLOTS.items():
        for key, value in slots.get(name, {}).items():
            (slot,) = struct.unpack("=I", key[-4:])
            owners.setdefault(key[:-4], {})[slot] = _text(value)
            sizes[key[:-4]] = size
    return {
        _text(vip): tuple(held.get(slot, "") for slot in range(sizes[vip])) if held else ()
        for vip, held in owners.items()
    }


def owners_of(tables: Tables) -> frozenset[str]:
    """The endpoints that get new connections."""
    return frozenset(owner for table in tables.values() for owner in table if owner)


def is_shut_in(place: TaskPlace, networks: Mapping[str, OverlayNetwork]) -> bool:
    """Whether a task has no way out: every network internal, and no published port."""
    return not place.publishes and all(networks[link.network_id].internal for link in place.links)


def _by_network(
    items: Iterable[Item],
) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.network_id, []).append(item)
    return found


def _addresses(endpoints: Iterable[OverlayEndpoint]) -> frozenset[str]:
    return frozenset(address for one in endpoints for address in one.addresses)


def _remotes(
    endpoints: Iterable[OverlayEndpoint], nodes: Mapping[str, str], own_address: str
) -> Remotes:
    neighbours: dict[str, bytes] = {}
    forwarding: dict[bytes, str] = {}
    for endpoint in endpoints:
        node = nodes.get(endpoint.node_id, "")
        if node in {"", own_address} or not endpoint.addresses:
            continue
        mac = hardware_address(endpoint.addresses)
        neighbours.update(dict.fromkeys(endpoint.addresses, mac))
        forwarding[mac] = node
    return Remotes(neighbours, forwarding)


def _tables(
    current: Tables, services: Iterable[OverlayService], endpoints: Iterable[OverlayEndpoint]
) -> dict[str, Table]:
    ready: dict[str, list[str]] = {}
    for endpoint in endpoints:
        if endpoint.ready and endpoint.service_id:
            ready.setdefault(endpoint.service_id, []).extend(endpoint.addresses)
    return {
        vip: _next(current.get(vip, ()), vip, ready.get(service.service_id, ()))
        for service in services
        for vip in service.virtual_ips
    }


def _next(current: Table, vip: str, addresses: Iterable[str]) -> Table:
    version = version_of(vip)
    owners = {address for address in addresses if version_of(address) == version}
    size = NARROW_SLOTS if len(owners) <= NARROW_SLOTS else WIDE_SLOTS
    return rebalance(current if len(current) == size else (), owners, size)


def _elements(vip: bytes, table: Table | None) -> dict[tuple[str, bytes], bytes]:
    if table is None:
        return {}
    found = {(VIPS, vip): b""}
    name = SLOTS.get(len(table), "")
    packed = {owner: ipaddress.ip_address(owner).packed for owner in set(table) if owner}
    for slot, owner in enumerate(table):
        if owner:
            found[name, vip + struct.pack("=I", slot)] = packed[owner]
    return found


def _text(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
