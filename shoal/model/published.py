"""Where a published port answers, and which two of them would be in each other's way. Pure.

A port answers everywhere, at one address, or at the addresses of one interface. Which addresses an
interface has is each node's affair: here it is taken to be possibly any.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from shoal.model.types import PortConfig

INTERFACE_NAME_MAX = 15
WEIGHT_MAX = 100


def are_at_odds(one: PortConfig, other: PortConfig) -> bool:
    """Whether a connection may be meant for both: same protocol and number, at one place."""
    if (one.protocol, one.published_port) != (other.protocol, other.published_port):
        return False
    if not (one.address or one.interface) or not (other.address or other.interface):
        return True
    if one.address and other.address:
        return one.address == other.address
    return not (one.interface and other.interface) or one.interface == other.interface


def is_at_odds(port: PortConfig, others: Iterable[PortConfig]) -> bool:
    """Whether the port is at odds with any of the others."""
    return any(are_at_odds(port, other) for other in others)


def place_of(port: PortConfig) -> str:
    """Where the port answers, as people are shown it: `*`, `192.0.2.1`, `[2001:db8::1]`, `eth1`."""
    if port.interface or not port.address:
        return port.interface or "*"
    return f"[{port.address}]" if ":" in port.address else port.address


def name_of(port: PortConfig) -> str:
    """The published port for messages: `8080/tcp`, `192.0.2.1:8080/tcp`."""
    at = "" if place_of(port) == "*" else f"{place_of(port)}:"
    return f"{at}{port.published_port}/{port.protocol.name.lower()}"


def weight_of(port: PortConfig, labels: Mapping[str, str]) -> int:
    """How many connections a task on a node with these labels gets, compared with others' tasks.

    A label that is missing, or no whole number of 1 to 100, means 1.
    """
    text = labels.get(port.weight_label, "") if port.weight_label else ""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else 1
    return number if 1 <= number <= WEIGHT_MAX else 1


def address_problem(address: str) -> str:
    """Why no port can be published at this address; "" when it can."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return f"{address!r} is no IP address"
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    if str(mapped or parsed) != address:
        return f"{address} must be written {mapped or parsed}"
    if parsed.is_unspecified:
        return f"{address} means every address: leave it out"
    if parsed.is_multicast or address == "255.255.255.255":
        return f"{address} belongs to no single node"
    if isinstance(parsed, ipaddress.IPv6Address) and (parsed.is_link_local or parsed.scope_id):
        return f"{address} is another machine on each link: use another address"
    return ""


def interface_problem(name: str) -> str:
    """Why this can be no name of a network interface; "" when it can."""
    if len(name.encode()) > INTERFACE_NAME_MAX:
        return (
            f"{name!r} is longer than the {INTERFACE_NAME_MAX} bytes an interface's name may have"
        )
    if name in (".", "..") or any(char in "/:" or char.isspace() for char in name):
        return f"{name!r} cannot be the name of an interface"
    return ""
