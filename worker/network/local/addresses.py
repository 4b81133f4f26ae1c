"""Which subnets and addresses local networks use. Pure.

Invariant: what is chosen here overlaps nothing of what is taken, and an address is given to one
endpoint at a time. What somebody asks for by name is checked, never changed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Collection, Iterable, Iterator
from typing import Final, TypeAlias

from shoal.errors import InvalidArgument, PermissionDenied, ResourceExhausted
from worker.network.local.api import IpamPool

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_LARGE: Final = ipaddress.IPv4Network("172.16.0.0/12")
_SMALL: Final = ipaddress.IPv4Network("192.168.0.0/16")
_LARGE_PREFIX, _SMALL_PREFIX = 16, 20
_TEXT_MAX = 64


def default_subnet(taken: Iterable[Subnet]) -> ipaddress.IPv4Network:
    """The first of Docker's default pools that overlaps nothing. Raises: ResourceExhausted."""
    others = [subnet for subnet in taken if subnet.version == 4]
    for candidate in _candidates():
        if not any(candidate.overlaps(other) for other in others):
            return candidate
    raise ResourceExhausted(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to"
        " assign to the network: give one with --subnet"
    )


def _candidates() -> Iterator[ipaddress.IPv4Network]:
    pools = _LARGE.subnets(new_prefix=_LARGE_PREFIX)
    next(pools)  # 172.16: dockerd leaves it to others, too
    yield from pools
    yield from _SMALL.subnets(new_prefix=_SMALL_PREFIX)


def default_subnet6(network: str) -> ipaddress.IPv6Network:
    """A unique local /64 (RFC 4193) that follows from the network's id."""
    digest = hashlib.sha256(network.encode()).digest()
    return ipaddress.IPv6Network((b"\xfd" + digest[:7] + bytes(8), 64))


def parse_subnet(text: str, field: str = "subnet") -> Subnet:
    """Strictly a network, no host bits. Raises: InvalidArgument."""
    try:
        return ipaddress.ip_network(text[:_TEXT_MAX])
    except ValueError as error:
        raise InvalidArgument(f"{field} {text!r}: {error}") from None


def parse_address(text: str, field: str) -> Address:
    """Without a zone, as none of them means one. Raises: InvalidArgument."""
    try:
        if "%" not in text:
            return ipaddress.ip_address(text[:_TEXT_MAX])
    except ValueError:
        pass
    raise InvalidArgument(f"{field}: invalid IP address: {text!r}")


def checked_pool(pool: IpamPool) -> IpamPool:
    """A pool somebody asked for, with its gateway filled in. Raises: InvalidArgument."""
    subnet = parse_subnet(pool.subnet)
    if subnet.num_addresses < 4:
        raise InvalidArgument(f"subnet {subnet}: too small: at least 4 addresses are needed")
    reserved = [parse_address(one, "aux-address") for one in pool.reserved.values()]
    inside = [*reserved]
    if pool.gateway:
        inside.append(parse_address(pool.gateway, "gateway"))
    for address in inside:
        if address not in subnet:
            raise InvalidArgument(f"no matching subnet for {address}: {subnet} does not hold it")
    source = subnet
    if pool.ip_range:
        source = parse_subnet(pool.ip_range, "ip-range")
        if source.version != subnet.version or not _holds(subnet, source):
            raise InvalidArgument(f"ip-range {source}: not within the subnet {subnet}")
    gateway = pool.gateway and str(parse_address(pool.gateway, "gateway"))
    gateway = gateway or str(next(_hosts(subnet, source, frozenset(map(str, reserved)))))
    return IpamPool(
        subnet=str(subnet), ip_range=pool.ip_range, gateway=gateway, reserved=pool.reserved
    )


def _holds(outer: Subnet, inner: Subnet) -> bool:
    return inner.network_address in outer and inner.broadcast_address in outer


def overlap(ones: Iterable[Subnet], others: Iterable[Subnet]) -> bool:
    """Whether any of the first shares an address with any of the second."""
    known = list(others)
    return any(
        one.version == other.version and one.overlaps(other) for one in ones for other in known
    )


def check_overlaps(pools: Iterable[IpamPool], taken: Iterable[Subnet]) -> None:
    """Raises: PermissionDenied in Docker's words."""
    known = list(taken)
    for pool in pools:
        subnet = parse_subnet(pool.subnet)
        if overlap((subnet,), known):
            raise PermissionDenied("Pool overlaps with other one on this address space")
        known.append(subnet)


def pool_of(pools: Iterable[IpamPool], version: int) -> IpamPool | None:
    """The first pool of a family."""
    return next((pool for pool in pools if parse_subnet(pool.subnet).version == version), None)


def free_address(pool: IpamPool, used: Collection[str], network: str) -> str:
    """The lowest address nobody has. Raises: ResourceExhausted."""
    subnet = parse_subnet(pool.subnet)
    source = parse_subnet(pool.ip_range) if pool.ip_range else subnet
    taken = {*used, pool.gateway, *pool.reserved.values()}
    for address in _hosts(subnet, source, taken):
        return str(address)
    raise ResourceExhausted(
        f"no available IPv{subnet.version} addresses on this network's address pools: {network}"
    )


def fixed_address(
    pools: Iterable[IpamPool], wanted: str, used: Collection[str], field: str
) -> tuple[str, int]:
    """An address somebody asked for, and its prefix length.

    Raises: InvalidArgument (of no pool), PermissionDenied (somebody has it).
    """
    address = parse_address(wanted, field)
    for pool in pools:
        subnet = parse_subnet(pool.subnet)
        if address.version != subnet.version or address not in subnet:
            continue
        text = str(address)
        if text in {pool.gateway, *used} or address == subnet.network_address:
            raise PermissionDenied(f"Address already in use: {text}")
        return text, subnet.prefixlen
    raise InvalidArgument(
        f"invalid endpoint settings: no configured subnet contains IP address {address}"
    )


def mac_of(address: str) -> str:
    """A MAC that follows from an IPv4 address: whoever gets it next is found at once."""
    octets = ipaddress.IPv4Address(address).packed
    return ":".join(f"{octet:02x}" for octet in b"\x02\x42" + octets)


def _hosts(subnet: Subnet, source: Subnet, taken: Collection[str]) -> Iterator[Address]:
    """Free addresses of `source`, lowest first, without the subnet's own two."""
    first, last = int(source.network_address), int(source.broadcast_address)
    family = socket.AF_INET if subnet.version == 4 else socket.AF_INET6
    same = (one for one in taken if one and (":" in one) == (subnet.version == 6))
    skipped = {int.from_bytes(socket.inet_pton(family, one), "big") for one in same}
    skipped |= {int(subnet.network_address), int(subnet.broadcast_address)}
    kind = type(source.network_address)
    return (kind(number) for number in range(first, last + 1) if number not in skipped)
