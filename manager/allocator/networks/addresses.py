"""Addresses on overlay networks: each belongs to one service or one task that has not ended.

Who has what is counted from the rows. The next address is the one after the last that was given,
round and round, so that one that came free rests for as long as there are others; where that was
stands in the network's row. Gateways and addresses set aside are never given.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence

from manager.allocator.networks.subnets import Subnets
from manager.store.view import View
from shoal.errors import FailedPrecondition, ResourceExhausted, SwarmError
from shoal.model.defaults import is_terminal
from shoal.model.objects import Network
from shoal.model.types import Driver, IpamConfig


class Addresses:
    """Free and used addresses of all networks, at one view."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._used: dict[str, set[str]] = {}
        for service in view.services:
            for held in service.endpoint.virtual_ips if service.endpoint is not None else ():
                self._used.setdefault(held.network_id, set()).add(held.address)
        for task in view.tasks:
            if task.networks and not is_terminal(task):
                for attachment in task.networks:
                    self._used.setdefault(attachment.network_id, set()).update(attachment.addresses)
        self._networks: dict[str, _NetworkAddresses] = {}

    def take(self, network_ids: Sequence[str]) -> list[tuple[str, ...]]:
        """An address of each family on each of the networks, as CIDR; all of them, or none.

        Raises: FailedPrecondition for a network that is not there or has no subnet yet,
        ResourceExhausted for one that is full.
        """
        networks = [self._network(network_id) for network_id in network_ids]
        for network in networks:
            network.check_free()
        return [network.take() for network in networks]

    def moved(self) -> Iterator[Network]:
        """The rows of networks on which addresses were given, saying where that was."""
        for network_id, addresses in sorted(self._networks.items()):
            network = self._view.networks.get(network_id)
            if network is not None and addresses.taken:
                yield network.replaced(
                    ipam=network.ipam.replaced(
                        driver=Driver(name="default", options=addresses.cursors())
                    )
                )

    def _network(self, network_id: str) -> _NetworkAddresses:
        known = self._networks.get(network_id)
        if known is not None:
            return known
        network = self._view.networks.get(network_id)
        if network is None:
            raise FailedPrecondition(
                f"network {network_id} was removed: take it out of the service"
                f" (`swarmctl service update --network-rm {network_id}`)"
            )
        if network.driver_state is None:
            raise FailedPrecondition(_why_not(self._view, network))
        result = _NetworkAddresses(network, self._used.get(network_id, ()))
        self._networks[network_id] = result
        return result


def _why_not(view: View, network: Network) -> str:
    """Why the network has no subnet."""
    reason = "it has no subnet yet"
    try:
        Subnets(view).allocated(network)
    except SwarmError as error:
        reason = error.message
    return f"network {network.spec.annotations.name}: {reason}"


class _NetworkAddresses:
    """One network."""

    def __init__(self, network: Network, used: Iterable[str]) -> None:
        cursors: Mapping[str, str] = {}
        if network.ipam.driver is not None:
            cursors = network.ipam.driver.options
        held = [ipaddress.ip_interface(address).ip for address in used]
        self._name = network.spec.annotations.name
        self._ranges = [
            _Range(config, held, cursors.get(config.subnet, "")) for config in network.ipam.configs
        ]
        self.taken = False

    def check_free(self) -> None:
        for one in self._ranges:
            if not one.free:
                raise ResourceExhausted(
                    f"network {self._name}: all {one.size} addresses of {one.text} are in use:"
                    " scale its services down, or move some to another network"
                )

    def take(self) -> tuple[str, ...]:
        self.taken = True
        return tuple(one.take() for one in self._ranges)

    def cursors(self) -> dict[str, str]:
        return {one.subnet: one.cursor for one in self._ranges}


class _Range:
    """The addresses of one subnet that may be given; as numbers, since a subnet may be large."""

    def __init__(
        self,
        config: IpamConfig,
        held: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address],
        cursor: str,
    ) -> None:
        subnet = ipaddress.ip_network(config.subnet)
        limits = ipaddress.ip_network(config.ip_range) if config.ip_range else subnet
        last_is_broadcast = subnet.version == 4
        self._subnet = subnet
        self._first = max(int(limits.network_address), int(subnet.network_address) + 1)
        self._last = min(
            int(limits.broadcast_address), int(subnet.broadcast_address) - last_is_broadcast
        )
        aside = {
            int(ipaddress.ip_address(address))
            for address in (config.gateway, *config.reserved.values())
            if address
        }
        aside = {number for number in aside if self._first <= number <= self._last}
        numbers = {int(address) for address in held if address.version == subnet.version}
        self._used = aside | {one for one in numbers if self._first <= one <= self._last}
        self._next = int(ipaddress.ip_address(cursor)) if cursor else self._first
        self.subnet = config.subnet
        self.text = config.ip_range or config.subnet
        self.size = max(self._last - self._first + 1, 0) - len(aside)

    @property
    def free(self) -> bool:
        return len(self._used) < self._last - self._first + 1

    @property
    def cursor(self) -> str:
        return str(self._subnet.network_address + (self._next - int(self._subnet.network_address)))

    def take(self) -> str:
        number = self._next
        while number in self._used or not self._first <= number <= self._last:
            number = number + 1 if self._first <= number < self._last else self._first
        self._used.add(number)
        self._next = number + 1 if number < self._last else self._first
        address = self._subnet.network_address + (number - int(self._subnet.network_address))
        return f"{address}/{self._subnet.prefixlen}"
