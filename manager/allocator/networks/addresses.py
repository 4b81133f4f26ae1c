"""Addresses on overlay networks: each belongs to one service or one task that has not ended.

Who has what is counted from the rows. The next address is the one after the last that was given,
round and round, so that one that came free rests for as long as there are others; where that was
stands in the network's row. Gateways, addresses set aside and those that a service asks for are
never given to whoever asks for none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence

from manager.allocator.networks.subnets import Subnets
from manager.allocator.networks.wishes import address_in
from manager.store.view import View
from shoal.errors import FailedPrecondition, ResourceExhausted, SwarmError
from shoal.model.defaults import is_terminal
from shoal.model.objects import Network, Service, Task
from shoal.model.row import Row
from shoal.model.types import Driver, IpamConfig

Holder = Service | Task


class AddressWish(Row, frozen=True):
    """A place on a network. addresses: those to choose from, by family; none: any free one.

    slot: the replica that asks; the first of a family is the first replica's, and so on.
    """

    network_id: str
    addresses: tuple[str, ...] = ()
    service_id: str = ""
    slot: int = 0


class Addresses:
    """Free and used addresses of all networks, at one view."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._holders: dict[str, dict[str, Holder]] = {}
        self._asked: dict[str, set[str]] = {}
        for service in view.services:
            for held in service.endpoint.virtual_ips if service.endpoint is not None else ():
                self._hold(held.network_id, held.address, service)
            for wish in () if service.pending_delete else service.spec.task.networks:
                if wish.addresses:
                    self._asked.setdefault(wish.target, set()).update(wish.addresses)
        for task in view.tasks:
            if task.networks and not is_terminal(task):
                for attachment in task.networks:
                    for address in attachment.addresses:
                        self._hold(attachment.network_id, address, task)
        self._networks: dict[str, _NetworkAddresses] = {}

    def take(self, wishes: Sequence[AddressWish], holder: Holder) -> list[tuple[str, ...]]:
        """An address of each family for each of the wishes, as CIDR; all of them, or none.

        Raises: FailedPrecondition for a network that is not there or has no subnet yet, and for an
        address that somebody has; InvalidArgument for one that no host can have; ResourceExhausted
        for a network that is full.
        """
        networks = [self._network(wish.network_id) for wish in wishes]
        chosen = [network.chosen(wish) for network, wish in zip(networks, wishes, strict=True)]
        return [
            network.take(fixed, holder) for network, fixed in zip(networks, chosen, strict=True)
        ]

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

    def _hold(self, network_id: str, address: str, holder: Holder) -> None:
        self._holders.setdefault(network_id, {})[address.partition("/")[0]] = holder

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
        result = _NetworkAddresses(
            network,
            self._holders.setdefault(network_id, {}),
            self._asked.get(network_id, frozenset()),
        )
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

    def __init__(self, network: Network, holders: dict[str, Holder], asked: Iterable[str]) -> None:
        cursors: Mapping[str, str] = {}
        if network.ipam.driver is not None:
            cursors = network.ipam.driver.options
        kept = [ipaddress.ip_address(address) for address in {*holders, *asked}]
        self._network = network
        self._name = network.spec.annotations.name
        self._holders = holders
        self._ranges = [
            _Range(config, kept, cursors.get(config.subnet, "")) for config in network.ipam.configs
        ]
        self.taken = False

    def chosen(self, wish: AddressWish) -> dict[int, str]:
        """The addresses for a wish that names some, by family. Raises: see `Addresses.take`."""
        chosen: dict[int, str] = {}
        for one in self._ranges:
            named = [text for text in wish.addresses if _version(text) == one.version]
            if named:
                chosen[one.version] = self._of(named, wish)
            elif not one.free:
                raise ResourceExhausted(
                    f"network {self._name}: all {one.size} addresses of {one.text} are in use:"
                    " scale its services down, or move some to another network"
                )
        return chosen

    def take(self, fixed: Mapping[int, str], holder: Holder) -> tuple[str, ...]:
        """One address of each family; `fixed` those that are chosen already."""
        self.taken = True
        given = tuple(one.take(fixed.get(one.version, "")) for one in self._ranges)
        for address in given:
            self._holders[address.partition("/")[0]] = holder
        return given

    def cursors(self) -> dict[str, str]:
        return {one.subnet: one.cursor for one in self._ranges}

    def _of(self, named: Sequence[str], wish: AddressWish) -> str:
        """The replica's own address; while another replica has that, the first that is free.

        A replica waits for its predecessor, so that it has the same address after an update.
        """
        own = named[(wish.slot - 1) % len(named)] if wish.slot else named[0]
        address_in(own, self._network)  # the gateway may have been chosen after the request
        holder = self._holders.get(own)
        if holder is None:
            return own
        before = isinstance(holder, Task) and (holder.service_id, holder.slot) == (
            wish.service_id,
            wish.slot,
        )
        free = [] if before else [text for text in named if text not in self._holders]
        if free:
            return free[0]
        raise FailedPrecondition(
            f"network {self._name}: address {own} is in use by {_words(holder)}: the task waits"
            " until it is free"
        )


class _Range:
    """The addresses of one subnet that may be given; as numbers, since a subnet may be large."""

    def __init__(
        self,
        config: IpamConfig,
        kept: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address],
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
        numbers = {int(address) for address in kept if address.version == subnet.version}
        self._used = aside | {one for one in numbers if self._first <= one <= self._last}
        self._next = int(ipaddress.ip_address(cursor)) if cursor else self._first
        self.version = subnet.version
        self.subnet = config.subnet
        self.text = config.ip_range or config.subnet
        self.size = max(self._last - self._first + 1, 0) - len(aside)

    @property
    def free(self) -> bool:
        return len(self._used) < self._last - self._first + 1

    @property
    def cursor(self) -> str:
        return str(self._subnet.network_address + (self._next - int(self._subnet.network_address)))

    def take(self, fixed: str = "") -> str:
        """The next free address, or the one that was chosen; as CIDR."""
        if fixed:
            number = int(ipaddress.ip_address(fixed))
            if self._first <= number <= self._last:
                self._used.add(number)
            return f"{fixed}/{self._subnet.prefixlen}"
        number = self._next
        while number in self._used or not self._first <= number <= self._last:
            number = number + 1 if self._first <= number < self._last else self._first
        self._used.add(number)
        self._next = number + 1 if number < self._last else self._first
        address = self._subnet.network_address + (number - int(self._subnet.network_address))
        return f"{address}/{self._subnet.prefixlen}"


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _words(holder: Holder) -> str:
    if isinstance(holder, Service):
        return f"the virtual address of service {holder.spec.annotations.name}"
    name = holder.annotations.name or holder.id
    return f"task {name}" if holder.service_id else f"container {name}"
