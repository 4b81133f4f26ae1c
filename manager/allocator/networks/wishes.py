"""What may be asked for in a network: addresses that its hosts can have. Pure.

Whether one is free is the allocator's to say (`addresses`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from manager.allocator.networks.subnets import IpNetwork
from shoal.errors import InvalidArgument
from shoal.model.objects import Network

FIXED_MAX = 1_024


def check_addresses(addresses: Sequence[str]) -> None:
    """Refuse addresses that are none, or are not written as everybody writes them."""
    if len(addresses) > FIXED_MAX:
        raise InvalidArgument(f"network: {len(addresses)} addresses, at most {FIXED_MAX}")
    for text in addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError as error:
            raise InvalidArgument(f"network: ip: {text!r} must be an IP address") from error
        if str(address) != text:
            raise InvalidArgument(f"network: ip: {text} should be written as {address}")
    if len(set(addresses)) != len(addresses):
        raise InvalidArgument("network: ip: an address is given twice")


def address_in(address: str, network: Network) -> None:
    """Refuse an address that no task can have on the network."""
    name = network.spec.annotations.name
    version = 6 if ":" in address else 4
    subnets = network.ipam.configs or network.spec.ipam.configs
    for config in subnets:
        subnet = ipaddress.ip_network(config.subnet)
        if subnet.version == version:
            host_address(f"network {name}: ip", address, subnet)
            if address == config.gateway or address in config.reserved.values():
                raise InvalidArgument(f"network {name}: ip: {address} is the gateway or set aside")
            return
    raise InvalidArgument(f"network {name}: ip: {address}: it has no IPv{version} subnet")


def host_address(field: str, text: str, subnet: IpNetwork) -> str:
    """An address that a machine of the subnet can have. Raises InvalidArgument naming the field."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidArgument(f"{field}: {text!r} must be an IP address") from error
    if str(address) != text:
        raise InvalidArgument(f"{field}: {text} should be written as {address}")
    no_host = {subnet.network_address}
    if subnet.version == 4:
        no_host.add(subnet.broadcast_address)
    if address not in subnet or address in no_host:
        raise InvalidArgument(f"{field}: {address} must be an address of a host in {subnet}")
    return text
