"""Address pools of a new cluster: the routing mesh's, and where networks get their subnets. Pure.

A pool of networks may hold the mesh's, as the default one does: the allocator gives subnets around
it. Refuses pools without room for one subnet, without addresses for hosts, or inside the mesh's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from shoal.errors import InvalidArgument
from shoal.model.defaults import (
    ADDRESS_POOL,
    ADDRESS_POOL_MASK_LENGTH,
    INGRESS_POOL,
    INGRESS_SUBNET_MASK_LENGTH,
)
from swarmd.addresses import NodeAddresses

INGRESS_PREFIX_MIN = 8
SUBNET_LENGTH_MAX = 29
"""Swarm's: eight addresses, five of them for services and tasks."""
POOLS_MAX = 256


def ingress_pool(text: str, addresses: NodeAddresses) -> str:
    """The pool of the mesh, as it was given. Raises InvalidArgument."""
    try:
        pool = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise InvalidArgument(
            f"ingress pool: {text!r} is not an IPv4 network such as {INGRESS_POOL} ({error})"
        ) from error
    if not INGRESS_PREFIX_MIN <= pool.prefixlen <= INGRESS_SUBNET_MASK_LENGTH:
        raise InvalidArgument(
            f"ingress pool: {text} must have a prefix from /{INGRESS_PREFIX_MIN} to "
            f"/{INGRESS_SUBNET_MASK_LENGTH}: every node takes a /{INGRESS_SUBNET_MASK_LENGTH} of it"
        )
    if _is_unroutable(pool):
        raise InvalidArgument(f"ingress pool: {text} holds addresses that cannot be routed")
    named = {"advertise": addresses.advertise.host, "data path": addresses.data_path}
    for name, address in named.items():
        if address in pool:
            raise InvalidArgument(
                f"ingress pool: {text} holds this node's {name} address {address}: choose another "
                "pool with --ingress-pool, or another address"
            )
    return str(pool)


def default_address_pools(texts: Sequence[str], length: int, mesh: str) -> tuple[str, ...]:
    """The pools of networks, the default one where none is given, as networks without host bits.

    length: of the subnets that are cut from them, see `subnet_length`. mesh: the mesh's pool.
    Raises InvalidArgument, with Swarm's texts where Swarm has the rule.
    """
    if len(texts) > POOLS_MAX:
        raise InvalidArgument(f"default address pool: {len(texts)} pools, at most {POOLS_MAX}")
    return tuple(
        _pool(text, length, ipaddress.IPv4Network(mesh)) for text in texts or [ADDRESS_POOL]
    )


def subnet_length(length: int) -> int:
    """The length of networks' subnets; 0 means the default. Raises InvalidArgument."""
    if length > SUBNET_LENGTH_MAX:
        raise InvalidArgument(
            f"subnet size is out of range: {length}: --default-addr-pool-mask-length is at most "
            f"{SUBNET_LENGTH_MAX}"
        )
    return length or ADDRESS_POOL_MASK_LENGTH


def _pool(text: str, length: int, mesh: ipaddress.IPv4Network) -> str:
    try:
        pool = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidArgument(f"invalid base pool {text}: {error}") from error
    if "/" not in text:
        raise InvalidArgument(f"invalid base pool {text}: write ADDRESS/LENGTH")
    if not isinstance(pool, ipaddress.IPv4Network):
        raise InvalidArgument(
            f"invalid base pool {text}: must be of IPv4: IPv6 subnets that nobody names are unique "
            "local ones of the cluster's own"
        )
    if length < pool.prefixlen:
        raise InvalidArgument(
            f'invalid CIDR: "{text}". Subnet size is too small for pool: {length}: it holds no '
            f"subnet of /{length}; give a larger pool, or --default-addr-pool-mask-length"
        )
    if not pool.prefixlen or _is_unroutable(pool):
        raise InvalidArgument(f"invalid base pool {text}: it holds addresses that no host can have")
    if pool.subnet_of(mesh):
        raise InvalidArgument(
            f"default address pool: {pool} lies in the routing mesh's pool {mesh}: choose another "
            "one, or another --ingress-pool"
        )
    return str(pool)


def _is_unroutable(pool: ipaddress.IPv4Network) -> bool:
    return pool.is_loopback or pool.is_multicast or pool.is_link_local or pool.is_unspecified
