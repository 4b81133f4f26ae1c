"""What a container wishes of the networks, from its request to the networks' own words. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from engine.containers.requests import Config, EndpointConfig, HostConfig, NetworkingConfig
from shoal.errors import InvalidArgument
from worker.network.local.api import BRIDGE, HOST, NONE, EndpointSpec, PortBinding

_PORT = re.compile(r"([0-9]{1,5})(?:/(tcp|udp|sctp))?")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_PORT_MAX = 65535
_IMAGE_VARIABLES = frozenset(("HOME", "PATH"))


def network_of(mode: str) -> str:
    """The network a mode names; empty for `container:ID`."""
    if mode.startswith("container:"):
        return ""
    return BRIDGE if mode in {"", "default"} else mode


def wishes(
    config: Config, host: HostConfig, networking: NetworkingConfig
) -> dict[str, EndpointConfig]:
    """Wishes by network, the mode's own first. Raises: InvalidArgument."""
    given = dict(networking.endpoints_config or {})
    main = network_of(host.network_mode)
    if not main:
        if given:
            raise InvalidArgument("conflicting options: networks and the container network mode")
        return {}
    own = given.pop(main, None) or given.pop(host.network_mode, None) or given.pop("default", None)
    given.pop("default", None)
    endpoint = own or EndpointConfig()
    if config.mac_address and not endpoint.mac_address:
        endpoint = endpoint.replaced(mac_address=config.mac_address)
    if main in {HOST, NONE} and given:
        raise InvalidArgument(f"conflicting options: the network mode {main} and other networks")
    return {main: endpoint, **{name: one or EndpointConfig() for name, one in given.items()}}


def endpoint_spec(
    wish: EndpointConfig, links: Iterable[tuple[str, str]] = (), extra_aliases: Iterable[str] = ()
) -> EndpointSpec:
    """One wish in the networks' words. links: container ids and the names they get."""
    addresses = wish.ipam_config
    return EndpointSpec(
        aliases=(*(wish.aliases or ()), *extra_aliases),
        links=tuple(links),
        ipv4_address=addresses.ipv4_address if addresses else "",
        ipv6_address=addresses.ipv6_address if addresses else "",
        link_local_addresses=tuple((addresses and addresses.link_local_ips) or ()),
        mac_address=wish.mac_address,
        driver_options=dict(wish.driver_opts or {}),
        gateway_priority=wish.gw_priority,
    )


def split_link(text: str) -> tuple[str, str]:
    """`container:alias` or `container`. Raises: InvalidArgument."""
    ref, separator, alias = text.partition(":")
    if not ref or (separator and not alias):
        raise InvalidArgument(f"bad format for links: {text}")
    return ref.removeprefix("/"), alias.rpartition("/")[2] or ref.removeprefix("/")


def link_environment(
    parent: str, alias: str, address: str, ports: Iterable[str], env: Iterable[str]
) -> tuple[str, ...]:
    """What a container is told of one it is linked to on the default bridge.

    ports, env: the other's exposed ports and variables. Source: moby daemon/links/links.go.
    """
    prefix = alias.upper().replace("-", "_")
    exposed = sorted(map(parse_port, ports), key=lambda one: (one[0], one[1] != "tcp"))
    lines = []
    if exposed:
        port, protocol = exposed[0]
        lines.append(f"{prefix}_PORT={protocol}://{address}:{port}")
    for port, protocol in exposed:
        name = f"{prefix}_PORT_{port}_{protocol.upper()}"
        lines += [
            f"{name}={protocol}://{address}:{port}",
            f"{name}_ADDR={address}",
            f"{name}_PORT={port}",
            f"{name}_PROTO={protocol}",
        ]
    lines.append(f"{prefix}_NAME=/{parent}/{alias}")
    for entry in env:
        name, separator, value = entry.partition("=")
        if separator and name not in _IMAGE_VARIABLES:
            lines.append(f"{prefix}_ENV_{name}={value}")
    return tuple(lines)


def port_bindings(config: Config, host: HostConfig) -> tuple[PortBinding, ...]:
    """Every port to publish. Raises: InvalidArgument."""
    found = []
    for key, places in (host.port_bindings or {}).items():
        port, protocol = parse_port(key)
        for place in places or ():
            first, last = _host_ports(place.host_port)
            found.append(
                PortBinding(
                    container_port=port, protocol=protocol, host_address=place.host_ip,
                    host_port=first, host_port_end=last,
                )
            )  # fmt: skip
    if host.publish_all_ports:
        asked = {(one.container_port, one.protocol) for one in found}
        for key in config.exposed_ports or {}:
            port, protocol = parse_port(key)
            if (port, protocol) not in asked:
                found.append(PortBinding(container_port=port, protocol=protocol))
    return tuple(found)


def exposed(config: Config, host: HostConfig) -> dict[str, dict[str, object]] | None:
    """The ports of image and request, and those that are published."""
    published: Mapping[str, object] = host.port_bindings or {}
    ports = [*(config.exposed_ports or {}), *published]
    named = {"{}/{}".format(*parse_port(port)): dict[str, object]() for port in ports}
    return named or None


def parse_port(text: str) -> tuple[int, str]:
    """`80/tcp` or `80`. Raises: InvalidArgument."""
    found = _PORT.fullmatch(text)
    if found is None or not 0 < int(found[1]) <= _PORT_MAX:
        raise InvalidArgument(f"invalid port specification: {text!r}")
    return int(found[1]), found[2] or "tcp"


def _host_ports(text: str) -> tuple[int, int]:
    """First and last port of a range; 0: any, or no range. Raises: InvalidArgument."""
    if not text:
        return 0, 0
    found = _RANGE.fullmatch(text)
    if found is None or int(found[1]) > _PORT_MAX or int(found[2] or 0) > _PORT_MAX:
        raise InvalidArgument(f"invalid port specification: {text!r}")
    first, last = int(found[1]), int(found[2] or 0)
    if last and last < first:
        raise InvalidArgument(f"invalid range format for --publish: {text}")
    return first, last if last != first else 0
