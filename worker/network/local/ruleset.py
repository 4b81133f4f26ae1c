"""The nft table of local networks, as text. Pure.

Rules are written once; networks and published ports are elements of sets and maps. Only table
`inet shoal_local` of the node and table `ip shoal_names` of a container are ever named. Our chains
accept nothing on behalf of others: `accept` ends only the chain it is in.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

import msgspec

TABLE: Final = "shoal_local"
NAMES_TABLE: Final = "shoal_names"
NAMES_ADDRESS: Final = "127.0.0.11"
_PROTOCOLS: Final = {"tcp": 6, "udp": 17, "sctp": 132}

_TABLE = """
table inet shoal_local {
  set bridges { type ifname; }
  # Of networks that lead outside, and of internal ones.
  set outward { type ifname; }
  set closed { type ifname; }
  # Bridge and itself, where containers reach each other.
  set same { type ifname . ifname; }
  set subnets { type ipv4_addr . ifname; flags interval; }
  set subnets6 { type ipv6_addr . ifname; flags interval; }
  # Published ports: of one address of the node, and of every one.
  map at4 { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }
  map at6 { type inet_proto . ipv6_addr . inet_service : ipv6_addr . inet_service; }
  map any4 { type inet_proto . inet_service : ipv4_addr . inet_service; }
  map any6 { type inet_proto . inet_service : ipv6_addr . inet_service; }
  # route_localnet lets 127.0.0.0/8 in from outside; this keeps it out.
  chain guard { type filter hook prerouting priority raw;
    iifname != "lo" ip daddr 127.0.0.0/8 drop
  }
  # `::1` leads nowhere but to this node: there the relay listens.
  chain publish {
    ip6 daddr ::1 return
    meta l4proto { 6, 17, 132 } dnat ip to meta l4proto . ip daddr . th dport map @at4
    meta nfproto ipv4 meta l4proto { 6, 17, 132 } dnat ip to meta l4proto . th dport map @any4
    meta l4proto { 6, 17, 132 } dnat ip6 to meta l4proto . ip6 daddr . th dport map @at6
    meta nfproto ipv6 meta l4proto { 6, 17, 132 } dnat ip6 to meta l4proto . th dport map @any6
  }
  chain pre_nat { type nat hook prerouting priority dstnat - 4;
    fib daddr type local jump publish
  }
  chain out_nat { type nat hook output priority -104;
    fib daddr type local jump publish
  }
  # Containers are reached by their own network and through published ports only.
  chain forwarding { type filter hook forward priority filter - 4;
    iifname @bridges ct state established,related accept
    oifname @bridges ct state established,related accept
    iifname . oifname @same accept
    iifname @closed drop
    oifname @closed drop
    oifname @bridges ct status dnat accept
    oifname @bridges drop
  }
  chain post_nat { type nat hook postrouting priority srcnat - 4;
    # A published port reached from its own network: the answer must come back through here.
    oifname @bridges ct status dnat ip saddr . oifname @subnets masquerade
    oifname @bridges ct status dnat ip6 saddr . oifname @subnets6 masquerade
    oifname @bridges ip saddr 127.0.0.0/8 masquerade
    # The mesh knows its own way back (gt*, vxi).
    iifname @outward oifname @bridges return
    iifname @outward oifname { "gt*", "vxi" } return
    iifname @outward masquerade
  }
}
"""


class Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules know of a network."""

    name: str
    subnets: tuple[str, ...]
    internal: bool
    talks: bool
    masquerades: bool


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """One published port. host_address "": every address of the container's family."""

    protocol: str
    host_address: str
    host_port: int
    address: str
    port: int


def whole(bridges: Iterable[Bridge], ports: Iterable[Published]) -> str:
    """The table with its elements, replacing the one that is there in one transaction."""
    parts = [f"table inet {TABLE}", f"delete table inet {TABLE}", _TABLE]
    parts += [add_bridge(bridge) for bridge in bridges]
    parts += [add_port(port) for port in ports]
    return "\n".join(parts)


def delete_table() -> str:
    """Remove it, whether or not it is there."""
    return f"table inet {TABLE}\ndelete table inet {TABLE}"


def add_bridge(bridge: Bridge) -> str:
    """A network comes."""
    return "\n".join(f"add element inet {TABLE} {one}" for one in _elements(bridge))


def delete_bridge(bridge: Bridge) -> str:
    """A network goes."""
    return "\n".join(f"delete element inet {TABLE} {one}" for one in _elements(bridge))


def add_port(port: Published) -> str:
    """A port is published."""
    name, key = _key(port)
    return f"add element inet {TABLE} {name} {{ {key} : {port.address} . {port.port} }}"


def delete_port(port: Published) -> str:
    """A port is published no longer."""
    name, key = _key(port)
    return f"delete element inet {TABLE} {name} {{ {key} }}"


def names_table(udp_port: int, tcp_port: int, *, replaces: bool = True) -> str:
    """In a container: port 53 of the name server's address is where it really listens.

    replaces: there may be such a table; without one, the change after this one waits 10 ms less.
    """
    to = f"ip daddr {NAMES_ADDRESS}"
    before = f"table ip {NAMES_TABLE}\ndelete table ip {NAMES_TABLE}" if replaces else ""
    return "\n".join((
        before,
        f"table ip {NAMES_TABLE} {{ chain out {{ type nat hook output priority -100;",
        f"{to} udp dport 53 dnat to {NAMES_ADDRESS}:{udp_port}",
        f"{to} tcp dport 53 dnat to {NAMES_ADDRESS}:{tcp_port}",
        "}",
        "}",
    ))  # fmt: skip


def _elements(bridge: Bridge) -> Iterable[str]:
    name = f'"{bridge.name}"'
    yield f"bridges {{ {name} }}"
    if bridge.masquerades:
        yield f"outward {{ {name} }}"
    if bridge.internal:
        yield f"closed {{ {name} }}"
    if bridge.talks:
        yield f"same {{ {name} . {name} }}"
    for subnet in bridge.subnets:
        six = "6" if ipaddress.ip_network(subnet).version == 6 else ""
        yield f"subnets{six} {{ {subnet} . {name} }}"


def _key(port: Published) -> tuple[str, str]:
    """Protocols by number: not every machine's `/etc/protocols` knows them all."""
    protocol = _PROTOCOLS[port.protocol]
    version = ipaddress.ip_address(port.address).version
    if not port.host_address:
        return f"any{version}", f"{protocol} . {port.host_port}"
    return f"at{version}", f"{protocol} . {port.host_address} . {port.host_port}"
