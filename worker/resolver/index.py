"""Who is called what, as each container sees it. Pure.

Names belong to containers that ask here and to others that do not: services of overlay networks,
and their tasks, wherever they run.

A container sees the names of its own networks only; what it calls others by itself (`--link`) comes
first. Names compare without regard to case, as in DNS.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from worker.network.local.naming import Client, Place


class Found(msgspec.Struct, frozen=True):
    """A name that is known. Without addresses of a family it is known all the same."""

    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]


class Index:
    """Every container with names."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._others: dict[str, Place] = {}
        self._by_name: dict[tuple[str, str], dict[str, Place]] = {}
        """Places by network and name, then by container or key of another."""
        self._by_address: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def containers(self) -> tuple[str, ...]:
        """Ids of all."""
        return tuple(self._clients)

    def client(self, container: str) -> Client | None:
        """One of them."""
        return self._clients.get(container)

    def put(self, client: Client) -> None:
        """It comes, or has changed."""
        self.drop(client.container)
        self._clients[client.container] = client
        for place in client.places:
            self._enter(client.container, place)

    def drop(self, container: str) -> None:
        """It is gone. Idempotent."""
        client = self._clients.pop(container, None)
        for place in client.places if client is not None else ():
            self._strike(container, place)

    def change_others(self, new: Mapping[str, Place], gone: Iterable[str], *, whole: bool) -> None:
        """Whoever has names without asking here, by key. whole: `new` are all there are."""
        for key in (*(set(self._others) - set(new) if whole else ()), *gone, *new):
            place = self._others.pop(key, None)
            if place is not None:
                self._strike(key, place)
        for key, place in new.items():
            self._others[key] = place
            self._enter(key, place)

    def find(self, container: str, name: str) -> Found | None:
        """Addresses of a name as the container sees it; None: nobody is called that."""
        client = self._clients.get(container)
        if client is None:
            return None
        wanted = name.lower().rstrip(".")
        places = list(self._linked(client, wanted))
        if not places:
            places = [one for place in client.places for one in self._named(place.network, wanted)]
        if not places and "." in wanted:
            places = list(self._with_network(client, wanted))
        if not places:
            return None
        return Found(_unique(one.ipv4 for one in places), _unique(one.ipv6 for one in places))

    def called(self, container: str, address: str) -> str:
        """What an address is called; empty: it is not one of the container's networks."""
        client = self._clients.get(container)
        for place in client.places if client is not None else ():
            name = self._by_address.get((place.network, _plain(address)))
            if name:
                return name
        return ""

    def _enter(self, owner: str, place: Place) -> None:
        for name in place.names:
            self._by_name.setdefault((place.network, name.lower()), {})[owner] = place
        if place.names:
            called = f"{place.names[0]}.{place.network_name}"
            for address in filter(None, (place.ipv4, place.ipv6)):
                self._by_address[place.network, _plain(address)] = called

    def _strike(self, owner: str, place: Place) -> None:
        for name in place.names:
            key = (place.network, name.lower())
            places = self._by_name.get(key, {})
            places.pop(owner, None)
            if not places:
                self._by_name.pop(key, None)
        for address in filter(None, (place.ipv4, place.ipv6)):
            self._by_address.pop((place.network, _plain(address)), None)

    def _linked(self, client: Client, wanted: str) -> Iterator[Place]:
        for place in client.places:
            for alias, other in place.links:
                linked = self._clients.get(other)
                if alias.lower() == wanted and linked is not None:
                    yield from (one for one in linked.places if one.network == place.network)

    def _named(self, network: str, name: str) -> Iterable[Place]:
        return self._by_name.get((network, name), {}).values()

    def _with_network(self, client: Client, wanted: str) -> Iterator[Place]:
        """`web.n1`: of one network alone. Both parts may hold dots."""
        for place in client.places:
            suffix = f".{place.network_name.lower()}"
            if wanted.endswith(suffix):
                yield from self._named(place.network, wanted.removesuffix(suffix))


def _unique(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, addresses)))


def _plain(address: str) -> str:
    return str(ipaddress.ip_address(address))
