"""IPv6 addresses of the mesh: each is an IPv4 address of it, behind a prefix. Pure.

Whoever knows a task's address knows its twin, so nothing about IPv6 is allocated, stored or told:
a /22 of a node has a /118 for its twin. The prefix is a unique local one (RFC 4193), the same in
every cluster, as the IPv4 pool is; twins never leave the nodes but inside their VXLAN. Refuses
nothing: what is no address raises OSError or ValueError.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

PREFIX: Final = ipaddress.IPv6Network("fd53:686f:616c::/96")
"""After fd, the identifier of 40 bits spells Shoal."""
_HIGH: Final = PREFIX.network_address.packed[:12]


def twin(address: str) -> str:
    """The IPv6 address that belongs to an IPv4 address of the mesh."""
    return socket.inet_ntop(socket.AF_INET6, _HIGH + socket.inet_pton(socket.AF_INET, address))


def twin_subnet(subnet: str) -> str:
    """The IPv6 subnet, as CIDR text, that belongs to an ingress subnet."""
    network = ipaddress.IPv4Network(subnet)
    return f"{twin(str(network.network_address))}/{PREFIX.prefixlen + network.prefixlen}"
