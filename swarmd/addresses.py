"""Which addresses a node listens on and is known by. Pure: the machine's addresses are an argument.

Written as Swarm's: an IP address or the name of an interface, a port where one makes sense. What
is ambiguous is refused with the flag that settles it, never guessed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import msgspec

from shoal.errors import InvalidArgument

DEFAULT_PORT = 2377
DEFAULT_LISTEN_ADDRESS = f"0.0.0.0:{DEFAULT_PORT}"
# Bridges and links that container engines make; nobody outside this machine reaches them.
PRIVATE_PREFIXES = ("docker", "br-", "virbr", "cni", "veth", "cali", "flannel", "podman", "sh")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class InterfaceAddress(msgspec.Struct, frozen=True):
    """An address of this machine, on an interface that is up or not."""

    interface: str
    address: IpAddress
    up: bool = True


class HostPort(msgspec.Struct, frozen=True):
    """An IP address and a port."""

    host: IpAddress
    port: int

    def render(self) -> str:
        """HOST:PORT, IPv6 in brackets."""
        return join_host_port(str(self.host), self.port)


class NodeAddresses(msgspec.Struct, frozen=True):
    """Where a node listens, what others dial, and the underlay address of its data path."""

    listen: HostPort
    advertise: HostPort
    data_path: IpAddress


def resolve(
    advertise: str, listen: str, data_path: str, *, machine: Sequence[InterfaceAddress]
) -> NodeAddresses:
    """The addresses of a node from what its user wrote; empty means nothing was written.

    Raises: InvalidArgument naming the flag.
    """
    listening = _resolve_one("listen address", listen or DEFAULT_LISTEN_ADDRESS, machine)
    port = DEFAULT_PORT if listening.port is None else listening.port
    listen_at = HostPort(listening.host, port)
    if advertise:
        written = _resolve_one("advertise address", advertise, machine)
        if written.host.is_unspecified:
            raise InvalidArgument(
                f"advertise address: {advertise!r} is no address others can dial: give a "
                "non-zero IP address or an interface, with an optional port"
            )
        advertise_at = HostPort(written.host, port if written.port is None else written.port)
    elif not listen_at.host.is_unspecified:
        advertise_at = HostPort(listen_at.host, port)
    else:
        advertise_at = HostPort(detect(machine), port)
    return NodeAddresses(
        listen=listen_at,
        advertise=advertise_at,
        data_path=_resolve_data_path(data_path, machine) if data_path else advertise_at.host,
    )


def detect(machine: Sequence[InterfaceAddress]) -> IpAddress:
    """The one address of this machine that others can dial: IPv4 if there is any.

    Raises: InvalidArgument when there is none, or more than one.
    """
    usable = [found for found in machine if found.up and _is_candidate(found)]
    candidates = [a for a in usable if a.address.version == 4] or usable
    if not candidates:
        raise InvalidArgument(
            "could not find the system's IP address - specify one with --advertise-addr"
        )
    if len(candidates) == 1:
        return candidates[0].address
    first, second = candidates[0], candidates[1]
    if first.interface == second.interface:
        where = f"on interface {first.interface} ({first.address} and {second.address})"
    else:
        where = (
            f"on different interfaces ({first.address} on {first.interface} and "
            f"{second.address} on {second.interface})"
        )
    raise InvalidArgument(
        "could not choose an IP address to advertise since this system has multiple addresses "
        f"{where} - specify one with --advertise-addr"
    )


def split_host_port(field: str, text: str) -> tuple[str, int | None]:
    """Host (or interface) and port, None if none is written. Raises InvalidArgument.

    `[v6]:port`, `[v6]`, `host:port`, `host`, and IPv6 without brackets and port.
    """
    text = text.strip()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidArgument(f"{field}: {text!r} must be [IPV6] or [IPV6]:PORT")
        port_text: str | None = rest[1:] if rest else None
    elif text.count(":") > 1:
        host, port_text = text, None
    else:
        host, colon, rest = text.partition(":")
        port_text = rest if colon else None
    if not host:
        raise InvalidArgument(f"{field}: {text!r} has no host")
    return host, None if port_text is None else _port(field, port_text)


def join_host_port(host: str, port: int) -> str:
    """HOST:PORT, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Resolved(msgspec.Struct, frozen=True):
    host: IpAddress
    port: int | None


def _resolve_one(field: str, text: str, machine: Sequence[InterfaceAddress]) -> _Resolved:
    host, port = split_host_port(field, text)
    try:
        return _Resolved(ipaddress.ip_address(host), port)
    except ValueError:
        return _Resolved(_of_interface(field, host, machine), port)


def _resolve_data_path(text: str, machine: Sequence[InterfaceAddress]) -> IpAddress:
    resolved = _resolve_one("data path address", text, machine)
    if resolved.port is not None:
        raise InvalidArgument(
            f"data path address: {text!r} must have no port; the port is --data-path-port"
        )
    if resolved.host.is_unspecified:
        raise InvalidArgument(f"data path address: {text!r} must be a non-zero IP address")
    return resolved.host


def _of_interface(field: str, name: str, machine: Sequence[InterfaceAddress]) -> IpAddress:
    found = [a.address for a in machine if a.interface == name and not a.address.is_link_local]
    if not found:
        known = ", ".join(sorted({a.interface for a in machine})) or "none"
        raise InvalidArgument(
            f"{field}: {name!r} is neither an IP address nor an interface with one "
            f"(interfaces with addresses: {known})"
        )
    same_family = [a for a in found if a.version == 4] or found
    if len(same_family) > 1:
        addresses = " and ".join(map(str, same_family[:2]))
        raise InvalidArgument(
            f"{field}: interface {name} has more than one address ({addresses}): give the address"
        )
    return same_family[0]


def _is_candidate(found: InterfaceAddress) -> bool:
    address = found.address
    reachable = not (address.is_loopback or address.is_link_local or address.is_multicast)
    return reachable and not found.interface.startswith(PRIVATE_PREFIXES)


def _port(field: str, text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
        return int(text)
    raise InvalidArgument(f"{field}: port {text!r} must be a number from 1 to 65535")
