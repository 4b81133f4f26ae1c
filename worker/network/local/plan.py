"""What a container gets when it starts or is connected. Pure.

Invariant: no address is in two endpoints of a network; what is asked for is given or refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set

import msgspec

from shoal.errors import InvalidArgument
from worker.network.local import addresses
from worker.network.local.api import (
    BRIDGE,
    GATEWAY,
    ContainerNetworking,
    Endpoint,
    EndpointSpec,
    LocalNetwork,
    PortBinding,
    Sandbox,
)
from worker.network.local.files import Holding
from worker.network.local.hostdns import HostDns, seen_from_containers
from worker.network.local.naming import Client, Place
from worker.network.local.options import bridge_options
from worker.network.local.ruleset import NAMES_ADDRESS, Published

RELAYED = frozenset(("tcp", "udp"))
"""Protocols the relay knows."""
_LINK_CHARS = 11
_HEX = set("0123456789abcdefABCDEF")


def endpoint(
    network: LocalNetwork,
    container: str,
    spec: EndpointSpec,
    *,
    identifier: str,
    others: Sequence[Endpoint],
    siblings: Sequence[Endpoint],
) -> Endpoint:
    """A place in a network. others: its endpoints; siblings: the container's own, in others.

    Raises: InvalidArgument, PermissionDenied, ResourceExhausted.
    """
    _check_spec(network, spec)
    used = {one.ipv4_address for one in others} | {one.ipv6_address for one in others}
    four, four_prefix, gateway = _address(network, spec.ipv4_address, 4, used)
    six, six_prefix, gateway6 = _address(network, spec.ipv6_address, 6, used)
    return Endpoint(
        id=identifier,
        network_id=network.id,
        network_name=network.name,
        container=container,
        spec=spec,
        interface=_interface(bridge_options(network).prefix, siblings),
        mac_address=_mac(spec.mac_address) or addresses.mac_of(four),
        ipv4_address=four,
        ipv4_prefix=four_prefix,
        ipv6_address=six,
        ipv6_prefix=six_prefix,
        gateway=gateway,
        ipv6_gateway=gateway6,
    )


def _check_spec(network: LocalNetwork, spec: EndpointSpec) -> None:
    if spec.driver_options:
        name = next(iter(spec.driver_options))
        raise InvalidArgument(f"driver option {name}: endpoints of bridges have none here")
    if network.name == BRIDGE and spec.aliases:
        raise InvalidArgument(
            "network-scoped alias is supported only for containers in user defined networks"
        )
    if network.name == BRIDGE and (spec.ipv4_address or spec.ipv6_address):
        raise InvalidArgument(
            "user specified IP address is supported on user defined networks only"
        )
    for text in spec.link_local_addresses:
        if not addresses.parse_address(text, "link-local-ip").is_link_local:
            raise InvalidArgument(f"link-local-ip {text}: not a link-local address")


def _address(
    network: LocalNetwork, wanted: str, version: int, used: Collection[str]
) -> tuple[str, int, str]:
    """Address, prefix length, gateway; empty when the network has no such family."""
    pool = addresses.pool_of(network.pools, version)
    if pool is None:
        if wanted:
            raise InvalidArgument(
                f"invalid endpoint settings: no configured subnet contains IP address {wanted}"
            )
        return "", 0, ""
    prefix = addresses.parse_subnet(pool.subnet).prefixlen
    if not wanted:
        text = addresses.free_address(pool, used, f"{network.name} ({network.id})")
        return text, prefix, pool.gateway
    pools = [one for one in network.pools if addresses.parse_subnet(one.subnet).version == version]
    text, prefix = addresses.fixed_address(pools, wanted, used, f"ipv{version} address")
    return text, prefix, pool.gateway


def _mac(text: str) -> str:
    if not text:
        return ""
    parts = text.replace("-", ":").split(":")
    if len(parts) != 6 or any(len(part) != 2 or not set(part) <= _HEX for part in parts):
        raise InvalidArgument(f"invalid MAC address: {text}")
    if int(parts[0], 16) & 1:
        raise InvalidArgument(f"invalid MAC address: {text}: it is a group's")
    return ":".join(parts).lower()


def _interface(prefix: str, siblings: Sequence[Endpoint]) -> str:
    taken = {one.interface for one in siblings}
    number = 0
    while f"{prefix}{number}" in taken:
        number += 1
    return f"{prefix}{number}"


def outward(endpoints: Iterable[Endpoint], networks: Mapping[str, LocalNetwork]) -> list[Endpoint]:
    """The endpoints that lead outside, the one of the highest gateway priority first."""
    found = [one for one in endpoints if not networks[one.network_id].internal]
    return sorted(found, key=lambda one: -one.spec.gateway_priority)


def leading(endpoints: Iterable[Endpoint], networks: Mapping[str, LocalNetwork]) -> Endpoint | None:
    """The endpoint that leads outside: published ports come in through it."""
    return next(iter(outward(endpoints, networks)), None)


def bindings(
    wanted: ContainerNetworking, way: Endpoint | None, networks: Mapping[str, LocalNetwork]
) -> tuple[PortBinding, ...]:
    """The ports to hold; none without a way outside, as in Docker."""
    if way is None:
        return ()
    default = bridge_options(networks[way.network_id]).host_address
    return tuple(_binding(one, default) for one in wanted.ports)


def _binding(asked: PortBinding, default: str) -> PortBinding:
    address = asked.host_address or default
    if address:
        address = str(addresses.parse_address(address, "HostIp"))
    return msgspec.structs.replace(asked, host_address="" if address == "0.0.0.0" else address)  # noqa: S104


def shown_ports(
    ports: Sequence[PortBinding], way: Endpoint | None, *, node_has_ipv6: bool
) -> tuple[PortBinding, ...]:
    """The ports as they are reached: one of every address also over IPv6 where there is some."""
    found: list[PortBinding] = []
    for port in ports:
        found.append(port)
        is_relayed = node_has_ipv6 and port.protocol in RELAYED
        if not port.host_address and way is not None and (way.ipv6_address or is_relayed):
            found.append(msgspec.structs.replace(port, host_address="::"))
    return tuple(found)


def published(ports: Iterable[PortBinding], way: Endpoint | None) -> list[Published]:
    """What the rules are told of held ports."""
    if way is None:
        return []
    found = []
    for port in ports:
        version = addresses.parse_address(port.host_address or "0.0.0.0", "HostIp").version  # noqa: S104
        for family, target in ((4, way.ipv4_address), (6, way.ipv6_address)):
            every = not port.host_address or (port.host_address == "::" and family == 6)
            if target and (not port.host_address or version == family):
                found.append(
                    Published(
                        protocol=port.protocol,
                        host_address="" if every else port.host_address,
                        host_port=port.host_port,
                        address=target,
                        port=port.container_port,
                    )
                )
    return found


def relayed(ports: Iterable[PortBinding], way: Endpoint | None) -> list[tuple[PortBinding, str]]:
    """Ports that are reached over IPv6 through the relay, with whom it passes what comes on to.

    Rules lead to a container's own IPv6 address, but never from `::1`.
    """
    found = []
    for port in ports:
        version = addresses.parse_address(port.host_address or "::", "HostIp").version
        single = port.host_address not in {"", "::", "::1"}
        if way is None or port.protocol not in RELAYED or version == 4:
            continue
        if not (single and way.ipv6_address):
            found.append((port, way.ipv6_address or way.ipv4_address))
    return found


def hosts(
    wanted: ContainerNetworking,
    endpoints: Sequence[Endpoint],
    others: Mapping[str, Holding],
) -> tuple[tuple[str, str], ...]:
    """Lines of /etc/hosts: itself in every network, and links of the default bridge."""
    lines = []
    for one in endpoints:
        if one.network_name == BRIDGE:
            lines += list(_linked(one, others))
    name = wanted.hostname
    if wanted.domainname:
        name = f"{name}.{wanted.domainname} {name}"
    for one in endpoints:
        for address in filter(None, (one.ipv4_address, one.ipv6_address)):
            lines.append((address, name))
    return tuple(lines)


def _linked(one: Endpoint, others: Mapping[str, Holding]) -> Iterator[tuple[str, str]]:
    for container, alias in one.spec.links:
        other = others.get(container)
        for place in other.endpoints if other is not None else ():
            if other is not None and place.network_id == one.network_id:
                names = dict.fromkeys((alias, other.wanted.hostname, other.wanted.name))
                yield place.ipv4_address, " ".join(names)


def client(
    holding: Holding,
    networks: Mapping[str, LocalNetwork],
    netns_path: str,
    servers: Sequence[str],
) -> Client | None:
    """What the resolver is told; None where no network has names: on the default bridge alone."""
    wanted = holding.wanted
    named = [one for one in holding.endpoints if _has_names(one)]
    if not named and not wanted.elsewhere:
        return None
    return Client(
        container=wanted.container,
        netns_path=netns_path,
        places=(*wanted.elsewhere, *(_place(one, wanted) for one in named)),
        servers=tuple(wanted.dns_servers or servers),
        forwards=leading(holding.endpoints, networks) is not None,
        ports=holding.names_ports,
    )


def _has_names(one: Endpoint) -> bool:
    return one.network_name not in {BRIDGE, GATEWAY}


def _place(one: Endpoint, wanted: ContainerNetworking) -> Place:
    names = (wanted.name, *one.spec.aliases, wanted.container[:12], wanted.hostname)
    return Place(
        network=one.network_id,
        network_name=one.network_name,
        names=tuple(dict.fromkeys(filter(None, names))),
        ipv4=one.ipv4_address,
        ipv6=one.ipv6_address,
        links=tuple((alias, container) for container, alias in one.spec.links),
    )


def sandbox(
    holding: Holding,
    networks: Mapping[str, LocalNetwork],
    netns_path: str,
    others: Mapping[str, Holding],
    node: HostDns,
    *,
    node_has_ipv6: bool,
) -> Sandbox:
    """What a starting container is told."""
    wanted = holding.wanted
    named = bool(wanted.elsewhere) or any(map(_has_names, holding.endpoints))
    servers = (NAMES_ADDRESS,) if named else wanted.dns_servers
    return Sandbox(
        netns_path=netns_path,
        endpoints=holding.endpoints,
        ports=shown_ports(
            holding.ports, leading(holding.endpoints, networks), node_has_ipv6=node_has_ipv6
        ),
        hosts=hosts(wanted, holding.endpoints, others),
        dns_servers=servers or seen_from_containers(node.servers),
        dns_search=node.search,
        dns_options=_named_options(node.options) if named else node.options,
    )


def host_link(endpoint: Endpoint) -> str:
    """Name of the host's end: random, as the kernel ends links in its own time."""
    return f"shv{endpoint.id[:_LINK_CHARS]}"


def _named_options(given: tuple[str, ...]) -> tuple[str, ...]:
    return (*(one for one in given if not one.startswith("ndots:")), "ndots:0")


def with_endpoint(holding: Holding, made: Endpoint, spec: EndpointSpec) -> Holding:
    """A container with one more network."""
    wanted = msgspec.structs.replace(
        holding.wanted, networks=(*holding.wanted.networks, (made.network_id, spec))
    )
    return msgspec.structs.replace(
        holding,
        wanted=wanted,
        endpoints=(*holding.endpoints, made),
        host_links=(*holding.host_links, host_link(made)),
    )


def without_links(holding: Holding, gone: Set[str]) -> Holding:
    """A container without the networks whose links are gone."""
    for place in reversed(range(len(holding.host_links))):
        if holding.host_links[place] in gone:
            holding = without_endpoint(holding, place)
    return holding


def without_endpoint(holding: Holding, place: int) -> Holding:
    """A container with one network less."""
    gone = holding.endpoints[place].network_id
    wanted = msgspec.structs.replace(
        holding.wanted,
        networks=tuple(one for one in holding.wanted.networks if one[0] != gone),
    )
    return msgspec.structs.replace(
        holding,
        wanted=wanted,
        endpoints=(*holding.endpoints[:place], *holding.endpoints[place + 1 :]),
        host_links=(*holding.host_links[:place], *holding.host_links[place + 1 :]),
    )
