"""A network's VXLAN number and subnets: no two networks of the cluster have any of them in common.

Numbers are 4096 and up, the lowest free one. A subnet that is not asked for is the first gap in the
cluster's address pool, outside of the routing mesh's and of what nodes themselves have for an
address. IPv6 subnets that are not asked for are unique local ones (RFC 4193) by the cluster's id.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator

from manager.store.view import View
from shoal.errors import InvalidArgument, ResourceExhausted
from shoal.model.defaults import (
    ADDRESS_POOL,
    ADDRESS_POOL_MASK_LENGTH,
    INGRESS_POOL,
    INGRESS_VNI,
)
from shoal.model.objects import Cluster, Network
from shoal.model.types import Driver, IpamConfig, IpamOptions

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

DRIVER = "overlay"
VNI_OPTION = "com.docker.network.driver.overlay.vxlanid_list"
VNI_MIN = 4096
VNI_MAX = (1 << 24) - 1
IPV6_LENGTH = 64
MESH = "the routing mesh"


class Subnets:
    """What networks have, and what is free."""

    def __init__(self, view: View) -> None:
        self._cluster = view.cluster or Cluster()
        mesh = ipaddress.ip_network(self._cluster.ingress_pool or INGRESS_POOL)
        self._owners: list[tuple[IpNetwork, str]] = [(mesh, MESH)]
        self._numbers = {INGRESS_VNI}
        for network in sorted(view.networks, key=lambda row: (row.meta.created_at_ns, row.id)):
            self._note(network)
        self._underlay = [
            ipaddress.ip_network(address)
            for node in view.nodes
            for address in {node.description.data_path_address, node.status.address}
            if _is_address(address)
        ]

    def allocated(self, network: Network) -> Network:
        """The network with its number and every subnet it needs.

        Raises: InvalidArgument for a subnet that another one has, ResourceExhausted.
        """
        self.check(network.spec.ipam.configs)
        configs = {_version(config): config for config in network.spec.ipam.configs}
        if 4 not in configs:
            configs[4] = IpamConfig(subnet=str(self._free_ipv4()))
        if 6 not in configs and network.spec.ipv6_enabled:
            configs[6] = IpamConfig(subnet=str(self._free_ipv6()))
        result = network.replaced(
            driver_state=Driver(name=DRIVER, options={VNI_OPTION: str(self._number())}),
            ipam=IpamOptions(
                driver=Driver(name="default"),
                configs=tuple(_with_gateway(configs[version]) for version in sorted(configs)),
            ),
        )
        self._note(result)
        return result

    def check(self, configs: Iterable[IpamConfig]) -> None:
        """Refuse subnets that somebody has. Raises InvalidArgument."""
        for config in configs:
            if not config.subnet:
                continue
            wanted = ipaddress.ip_network(config.subnet)
            for held, owner in self._owners:
                if wanted.version == held.version and wanted.overlaps(held):
                    raise InvalidArgument(
                        f"subnet: {wanted} overlaps {held} of {owner}: choose another one, or none"
                        " for a free one"
                    )

    def _note(self, network: Network) -> None:
        if network.driver_state is None:
            return
        self._numbers.add(vni_of(network))
        owner = f"network {network.spec.annotations.name}"
        self._owners += [
            (ipaddress.ip_network(config.subnet), owner) for config in network.ipam.configs
        ]

    def _number(self) -> int:
        number = next((n for n in range(VNI_MIN, VNI_MAX + 1) if n not in self._numbers), 0)
        if not number:
            raise ResourceExhausted("no VXLAN number is free: remove networks that nobody uses")
        return number

    def _free_ipv4(self) -> IpNetwork:
        pools = self._cluster.default_address_pools or (ADDRESS_POOL,)
        length = self._cluster.default_address_pool_mask_length or ADDRESS_POOL_MASK_LENGTH
        for pool in pools:
            found = _first_gap(ipaddress.ip_network(pool), length, self._held(4))
            if found is not None:
                return found
        raise ResourceExhausted(
            f"no subnet of /{length} is free in {', '.join(pools)}: remove networks that nobody"
            " uses, or give a subnet"
        )

    def _free_ipv6(self) -> IpNetwork:
        digest = hashlib.sha256(self._cluster.id.encode()).digest()
        pool = ipaddress.IPv6Network((b"\xfd" + digest[:5] + bytes(10), 48))
        found = _first_gap(pool, IPV6_LENGTH, self._held(6))
        if found is None:
            raise ResourceExhausted(f"no subnet of /{IPV6_LENGTH} is free in {pool}: give one")
        return found

    def _held(self, version: int) -> Iterator[IpNetwork]:
        yield from (held for held, _ in self._owners if held.version == version)
        yield from (held for held in self._underlay if held.version == version)


def vni_of(network: Network) -> int:
    """The VXLAN number of a network; 0 while it has none."""
    options = {} if network.driver_state is None else network.driver_state.options
    return int(options.get(VNI_OPTION, "0"))


def _first_gap(pool: IpNetwork, length: int, held: Iterable[IpNetwork]) -> IpNetwork | None:
    """The lowest subnet of a pool that overlaps nothing: one pass over what is held, in order."""
    size = 1 << (pool.max_prefixlen - length)
    start = int(pool.network_address)
    end = start + pool.num_addresses
    ranges = sorted((int(one.network_address), int(one.broadcast_address)) for one in held)
    for first, last in ranges:
        if last < start:
            continue
        if first >= start + size:
            break
        start = -(-(last + 1) // size) * size
    if start + size > end:
        return None
    return type(pool)((start, length))


def _version(config: IpamConfig) -> int:
    """4 or 6; a config without a subnet is about IPv4, as everything is that says nothing."""
    return ipaddress.ip_network(config.subnet).version if config.subnet else 4


def _with_gateway(config: IpamConfig) -> IpamConfig:
    """The config with the first address of its subnet as gateway, where it names none."""
    if config.gateway:
        return config
    first = ipaddress.ip_network(config.subnet).network_address + 1
    reserved = {ipaddress.ip_address(address) for address in config.reserved.values()}
    while first in reserved:
        first += 1
    return config.replaced(gateway=str(first))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
