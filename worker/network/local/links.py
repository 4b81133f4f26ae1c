"""rtnetlink messages for local networks: bridges and their ports, addresses and routes.

As in `worker.network.route`, but of both families: builders return messages, `found_*` read the
kernel's tables back.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from typing import Final

from worker.network.local.addresses import Address, Subnet
from worker.network.local.api import LinkCounters
from worker.network.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    NetlinkSocket,
    attr,
    attributes,
    nested,
    text,
    u32,
)

_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_MAKE = NLM_F_CREATE | NLM_F_EXCL
_REPLACE = NLM_F_CREATE | NLM_F_REPLACE
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_STATS64, _IFLA_NET_NS_FD = 12, 18, 23, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_PORT_HAIRPIN, _PORT_ISOLATED = 4, 33
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFA_NO_DAD: Final = 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RTN_UNICAST, _RTPROT_BOOT, _TABLE_MAIN = 1, 3, 254
_IFF_UP = 1
_IFINFO = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_STATS64 = struct.Struct("=8Q")
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def add_bridge(name: str, mac: bytes, mtu: int) -> Message:
    """A bridge, up."""
    body = _IFINFO.pack(0, 0, 0, _IFF_UP, _IFF_UP) + text(_IFLA_IFNAME, name)
    body += attr(_IFLA_ADDRESS, mac) + u32(_IFLA_MTU, mtu)
    return Message(_NEWLINK, _MAKE, body + nested(_IFLA_LINKINFO, text(_INFO_KIND, "bridge")))


def add_port(
    *, host: str, inside: str, mac: bytes, mtu: int, bridge: int, netns_fd: int
) -> Message:
    """A veth pair: the host's end is a port of a bridge and up, the other is born in `netns_fd`."""
    peer = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, inside)
    peer += attr(_IFLA_ADDRESS, mac) + u32(_IFLA_MTU, mtu) + u32(_IFLA_NET_NS_FD, netns_fd)
    detail = nested(_INFO_DATA, attr(_VETH_PEER | 0x8000, peer))
    body = _IFINFO.pack(0, 0, 0, _IFF_UP, _IFF_UP) + text(_IFLA_IFNAME, host)
    body += u32(_IFLA_MTU, mtu) + u32(_IFLA_MASTER, bridge)
    return Message(_NEWLINK, _MAKE, body + nested(_IFLA_LINKINFO, text(_INFO_KIND, "veth"), detail))


def set_port(index: int, *, hairpin: bool, isolated: bool) -> Message:
    """How a port of a bridge forwards. hairpin: frames may leave where they came in."""
    flags = nested(
        _IFLA_PROTINFO,
        attr(_PORT_HAIRPIN, bytes([hairpin])),
        attr(_PORT_ISOLATED, bytes([isolated])),
    )
    return Message(_SETLINK, 0, _IFINFO.pack(socket.AF_BRIDGE, 0, index, 0, 0) + flags)


def delete_link(index: int) -> Message:
    """Delete a device. Slow (24-32 ms): for bridges and disconnections, not for every end."""
    return Message(_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))


def put_address(index: int, address: Address, prefix: int) -> Message:
    """Add or replace an address; IPv6 ones are valid at once."""
    flags = _IFA_NO_DAD if address.version == 6 else 0
    head = _ADDRESS.pack(_FAMILY[address.version], prefix, flags, 0, index)
    body = head + attr(_IFA_LOCAL, address.packed) + attr(_IFA_ADDRESS, address.packed)
    if address.version == 4 and prefix < 31:
        net = ipaddress.IPv4Network((address.packed, prefix), strict=False)
        body += attr(_IFA_BROADCAST, net.broadcast_address.packed)
    return Message(_NEWADDR, _REPLACE, body)


def delete_address(index: int, address: Address, prefix: int) -> Message:
    """Remove an address."""
    head = _ADDRESS.pack(_FAMILY[address.version], prefix, 0, 0, index)
    body = head + attr(_IFA_LOCAL, address.packed) + attr(_IFA_ADDRESS, address.packed)
    return Message(_DELADDR, 0, body)


def found_addresses(netlink: NetlinkSocket) -> list[tuple[int, Address, int]]:
    """Device, address and prefix length of every address of the namespace."""
    found = []
    for payload in netlink.dump(Message(_GETADDR, 0, _ADDRESS.pack(0, 0, 0, 0, 0))):
        _family, prefix, _flags, _scope, device = _ADDRESS.unpack_from(payload)
        attrs = attributes(payload[_ADDRESS.size :])
        packed = attrs.get(_IFA_LOCAL, attrs.get(_IFA_ADDRESS, b""))
        if len(packed) in {4, 16}:
            found.append((device, ipaddress.ip_address(packed), prefix))
    return found


def put_default_route(index: int, gateway: Address) -> Message:
    """The route for everything else, replacing the one that is there."""
    return Message(_NEWROUTE, _REPLACE, _default(index, gateway))


def delete_default_route(index: int, gateway: Address) -> Message:
    """Remove it."""
    return Message(_DELROUTE, 0, _default(index, gateway))


def _default(index: int, gateway: Address) -> bytes:
    head = struct.pack(
        "=BBBBBBBBI", _FAMILY[gateway.version], 0, 0, 0, _TABLE_MAIN, _RTPROT_BOOT, 0,
        _RTN_UNICAST, 0,
    )  # fmt: skip
    return head + attr(_RTA_GATEWAY, gateway.packed) + u32(_RTA_OIF, index)


def found_routes(netlink: NetlinkSocket) -> list[tuple[Subnet, int]]:
    """Where the machine sends what, in every table, without defaults; and through which device."""
    found: list[tuple[Subnet, int]] = []
    for family in _FAMILY.values():
        request = Message(_GETROUTE, 0, struct.pack("=BBBBBBBBI", family, *[0] * 8))
        for payload in netlink.dump(request):
            prefix = payload[1]
            attrs = attributes(payload[12:])
            if not prefix or _RTA_DST not in attrs:
                continue
            device = int.from_bytes(attrs.get(_RTA_OIF, b""), sys.byteorder)
            address = ipaddress.ip_address(attrs[_RTA_DST])
            found.append((ipaddress.ip_network(f"{address}/{prefix}", strict=False), device))
    return found


def found_links(netlink: NetlinkSocket) -> dict[str, int]:
    """Index by name of every device of the namespace."""
    return {name: index for name, index, _ in _links(netlink)}


def counters(netlink: NetlinkSocket) -> list[LinkCounters]:
    """Counters of every device of the namespace but loopback, as seen from inside."""
    found = []
    for name, _, attrs in _links(netlink):
        raw = attrs.get(_IFLA_STATS64, b"")
        if name == "lo" or len(raw) < _STATS64.size:
            continue
        rx, tx, rx_bytes, tx_bytes, rx_bad, tx_bad, rx_lost, tx_lost = _STATS64.unpack_from(raw)
        found.append(
            LinkCounters(
                interface=name,
                rx_bytes=rx_bytes, rx_packets=rx, rx_errors=rx_bad, rx_dropped=rx_lost,
                tx_bytes=tx_bytes, tx_packets=tx, tx_errors=tx_bad, tx_dropped=tx_lost,
            )
        )  # fmt: skip
    return found


def _links(netlink: NetlinkSocket) -> list[tuple[str, int, dict[int, bytes]]]:
    found = []
    for payload in netlink.dump(Message(_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0))):
        index = _IFINFO.unpack_from(payload)[2]
        attrs = attributes(payload[_IFINFO.size :])
        found.append((attrs[_IFLA_IFNAME].rstrip(b"\0").decode(), index, attrs))
    return found
