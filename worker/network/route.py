"""rtnetlink messages for what the mesh needs: links, addresses, routes, neighbours, rules.

Addresses are text of either family; which one it is decides where the kernel looks.

Builders return `Message`s so that a caller can pipeline them in one system call; `found_*` read
the kernel's tables back. Our routes and rules carry `PROTOCOL`, so that a dump tells them from the
administrator's, and only ours are ever removed.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from typing import Final

import msgspec

from worker.network.api import LinkStats
from worker.network.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    NetlinkError,
    NetlinkSocket,
    attr,
    attributes,
    nested,
    text,
    u32,
)

PROTOCOL: Final = 83
"""rtm_protocol / FRA_PROTOCOL of everything we add ("S"); unused by the kernel and by daemons."""
TABLE_MAIN: Final = 254
FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
SCOPE_UNIVERSE: Final = 0
SCOPE_LINK: Final = 253

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_REPLACE = NLM_F_CREATE | NLM_F_REPLACE
_MAKE = NLM_F_CREATE | NLM_F_EXCL

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_STATS64 = 1, 3, 4, 18, 23
_IFLA_AF_SPEC, _IFLA_NET_NS_FD = 26, 28
_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, b"\1"
_INFO_KIND, _INFO_DATA = 1, 2
_VETH_PEER = 1
_VXLAN_ID, _VXLAN_LINK, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT = 1, 3, 4, 7, 15
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 1, 4, 5, 15
_RTN_UNICAST, _RTN_LOCAL, _RTN_UNREACHABLE = 1, 2, 7
_RTNH_ONLINK = 4
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80
_NTF_SELF = 2
_FRA_DST = 1
_FRA_PRIORITY, _FRA_FWMARK, _FRA_GOTO, _FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 6, 10, 4, 15, 16, 21
_ACT_TABLE, _ACT_GOTO, _ACT_NOP = 1, 2, 3
_IFF_UP = 1
_BRIDGE_FAMILY = socket.AF_BRIDGE if hasattr(socket, "AF_BRIDGE") else 7
_IFINFO = struct.Struct("=BxHiII")
_NDMSG = struct.Struct("=BxxxiHBB")
_STATS64 = struct.Struct("=8Q")
_ADDRESS_BYTES: Final[dict[int, int]] = {socket.AF_INET: 4, socket.AF_INET6: 16}


class Link(msgspec.Struct, frozen=True):
    """A network device as the kernel describes it."""

    index: int
    name: str
    kind: str
    mtu: int
    mac: bytes
    vxlan_id: int = 0
    vxlan_port: int = 0
    vxlan_local: str = ""
    vxlan_link: int = 0


class Vxlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the ingress VXLAN device should be."""

    name: str
    vni: int
    local: str
    port: int
    mtu: int
    mac: bytes
    link: int
    """Index of the underlay interface; 0 for any."""


class Route(msgspec.Struct, frozen=True, gc=False, order=True, kw_only=True):
    """A route of ours."""

    destination: str
    """CIDR text; 0.0.0.0/0 and ::/0 are the default routes."""
    device: int = 0
    gateway: str = ""
    table: int = TABLE_MAIN
    unreachable: bool = False
    local: bool = False
    """What is addressed there is for this machine; one destination may be so on many devices."""


class Rule(msgspec.Struct, frozen=True, gc=False, order=True, kw_only=True):
    """A policy rule of ours: to a table, a jump to a later rule, or a place to jump to."""

    priority: int
    family: int = socket.AF_INET
    destination: str = ""
    """CIDR text; empty: any."""
    mark: int = 0
    mask: int = 0
    table: int = 0
    goto: int = 0


def link_of(netlink: NetlinkSocket, name: str) -> Link | None:
    """The device called `name`; None if there is none."""
    try:
        payload = netlink.get(_by_name(name))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    _family, _type, index, _flags, _change = _IFINFO.unpack_from(payload)
    found = attributes(payload[_IFINFO.size :])
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    kind = info.get(_INFO_KIND, b"").rstrip(b"\0").decode()
    detail = attributes(info.get(_INFO_DATA, b"")) if kind == "vxlan" else {}
    return Link(
        index=index,
        name=name,
        kind=kind,
        mtu=_number(found.get(_IFLA_MTU)),
        mac=found.get(_IFLA_ADDRESS, b""),
        vxlan_id=_number(detail.get(_VXLAN_ID)),
        vxlan_port=int.from_bytes(detail.get(_VXLAN_PORT, b"\0\0"), "big"),
        vxlan_local=socket.inet_ntoa(detail[_VXLAN_LOCAL]) if _VXLAN_LOCAL in detail else "",
        vxlan_link=_number(detail.get(_VXLAN_LINK)),
    )


def stats_of(netlink: NetlinkSocket, name: str) -> LinkStats:
    """Counters of the host end `name`, turned round: what the host sent, the task received.

    Raises: NetlinkError (ENODEV).
    """
    payload = netlink.get(_by_name(name))
    raw = attributes(payload[_IFINFO.size :]).get(_IFLA_STATS64, bytes(_STATS64.size))
    rx_pkts, tx_pkts, rx_bytes, tx_bytes, rx_err, tx_err, rx_drop, tx_drop = _STATS64.unpack_from(
        raw
    )
    return LinkStats(
        rx_bytes=tx_bytes, rx_packets=tx_pkts, rx_errors=tx_err, rx_dropped=tx_drop,
        tx_bytes=rx_bytes, tx_packets=rx_pkts, tx_errors=rx_err, tx_dropped=rx_drop,
    )  # fmt: skip


def add_bridge(name: str, mac: bytes) -> Message:
    """A bridge, up, that no port will ever join: a place for addresses (there is no dummy)."""
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "bridge"))
    body = _IFINFO.pack(0, 0, 0, _IFF_UP, _IFF_UP) + text(_IFLA_IFNAME, name)
    return Message(_NEWLINK, _MAKE, body + attr(_IFLA_ADDRESS, mac) + info)


def add_vxlan(device: Vxlan) -> Message:
    """A VXLAN device, up, that learns nothing: peers are static entries."""
    detail = [
        u32(_VXLAN_ID, device.vni),
        attr(_VXLAN_LOCAL, socket.inet_aton(device.local)),
        attr(_VXLAN_LEARNING, b"\0"),
        attr(_VXLAN_PORT, struct.pack("!H", device.port)),
    ]
    if device.link:
        detail.append(u32(_VXLAN_LINK, device.link))
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "vxlan"), nested(_INFO_DATA, *detail))
    body = _IFINFO.pack(0, 0, 0, _IFF_UP, _IFF_UP) + text(_IFLA_IFNAME, device.name)
    body += attr(_IFLA_ADDRESS, device.mac) + u32(_IFLA_MTU, device.mtu) + info
    return Message(_NEWLINK, _MAKE, body)


def add_veth(
    *, host: tuple[str, bytes], task: tuple[str, bytes], mtu: int, netns_fd: int
) -> Message:
    """A veth pair; the task's end is born in the namespace `netns_fd`, only the host's end is up.

    The kernel refuses to bring the task's end up before the pair is complete (ENOTCONN).

    host, task: (interface name, MAC).
    """
    peer = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, task[0])
    peer += attr(_IFLA_ADDRESS, task[1]) + u32(_IFLA_MTU, mtu) + u32(_IFLA_NET_NS_FD, netns_fd)
    detail = nested(_INFO_DATA, attr(_VETH_PEER | 0x8000, peer))
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "veth"), detail)
    body = _IFINFO.pack(0, 0, 0, _IFF_UP, _IFF_UP) + text(_IFLA_IFNAME, host[0])
    body += attr(_IFLA_ADDRESS, host[1]) + u32(_IFLA_MTU, mtu)
    return Message(_NEWLINK, _MAKE, body + info)


def probe_kind(netlink: NetlinkSocket, kind: str) -> bool:
    """Whether the kernel knows devices of `kind`: asked for one with an impossible MAC."""
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, kind))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, "shprobe0")
    try:
        netlink.transact([Message(_NEWLINK, _MAKE, body + attr(_IFLA_ADDRESS, bytes(6)) + info)])
    except NetlinkError as error:
        return error.errno != errno.EOPNOTSUPP
    netlink.transact([delete_link(socket.if_nametoindex("shprobe0"))])
    return True


def set_up(index: int, *, mtu: int = 0, mac: bytes = b"") -> Message:
    """Bring a device up; also set its MTU and MAC where given."""
    body = _IFINFO.pack(0, 0, index, _IFF_UP, _IFF_UP)
    body += u32(_IFLA_MTU, mtu) if mtu else b""
    body += attr(_IFLA_ADDRESS, mac) if mac else b""
    return Message(_NEWLINK, 0, body)


def delete_link(index: int) -> Message:
    """Delete a device. Slow (24-32 ms, RCU): for vxi and the bridge only, never for a task's."""
    return Message(_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))


def set_without_link_local(name: str) -> Message:
    """Have a device make no IPv6 address of its own; for before it comes up."""
    mode = nested(socket.AF_INET6, attr(_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name)
    return Message(_NEWLINK, 0, body + nested(_IFLA_AF_SPEC, mode))


def add_address(index: int, address: str) -> Message:
    """`address` alone (/32 or /128) on a device, added or replaced; in use at once."""
    family, packed = _packed(address)
    flags = _IFA_F_NODAD if family == socket.AF_INET6 else 0
    head = struct.pack("=BBBBI", family, 8 * len(packed), flags, SCOPE_UNIVERSE, index)
    return Message(_NEWADDR, _REPLACE, head + attr(_IFA_LOCAL, packed) + attr(_IFA_ADDRESS, packed))


def delete_address(index: int, address: str, prefix_length: int) -> Message:
    """Remove an address from a device."""
    family, packed = _packed(address)
    head = struct.pack("=BBBBI", family, prefix_length, 0, 0, index)
    return Message(_DELADDR, 0, head + attr(_IFA_LOCAL, packed))


def found_addresses(
    netlink: NetlinkSocket, index: int, family: int = socket.AF_INET
) -> list[tuple[str, int]]:
    """The addresses of a device, of one family, with their prefix lengths."""
    request = Message(_GETADDR, 0, struct.pack("=BBBBI", family, 0, 0, 0, 0))
    found: list[tuple[str, int]] = []
    for payload in netlink.dump(request):
        _family, prefix_length, _flags, _scope, device = struct.unpack_from("=BBBBI", payload)
        attrs = attributes(payload[8:])
        # An IPv6 address has no peer, and is told as its own.
        address = attrs.get(_IFA_LOCAL) or attrs.get(_IFA_ADDRESS)
        if device == index and address is not None:
            found.append((socket.inet_ntop(family, address), prefix_length))
    return found


def put_route(route: Route) -> Message:
    """Add or replace a route."""
    return Message(_NEWROUTE, _REPLACE, _route_body(route))


def add_route(route: Route) -> Message:
    """Add a route beside others to its destination; EEXIST if it is there."""
    return Message(_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, _route_body(route))


def delete_route(route: Route) -> Message:
    """Remove a route of ours."""
    return Message(_DELROUTE, 0, _route_body(route))


def found_routes(netlink: NetlinkSocket, family: int = socket.AF_INET) -> set[Route]:
    """Our routes of one family, in every table."""
    request = Message(_GETROUTE, 0, struct.pack("=BBBBBBBBI", family, *[0] * 8))
    return {
        _route_of(family, payload) for payload in netlink.dump(request) if payload[5] == PROTOCOL
    }


def _route_of(family: int, payload: bytes) -> Route:
    head = struct.unpack_from("=BBBBBBBBI", payload)
    attrs = attributes(payload[12:])
    address = attrs.get(_RTA_DST, bytes(_ADDRESS_BYTES[family]))
    gateway = attrs.get(_RTA_GATEWAY)
    unreachable = head[7] == _RTN_UNREACHABLE
    return Route(
        destination=f"{socket.inet_ntop(family, address)}/{head[1]}",
        # IPv6 tells of `lo`, which nobody asked for.
        device=0 if unreachable else _number(attrs.get(_RTA_OIF)),
        gateway=socket.inet_ntop(family, gateway) if gateway else "",
        table=_number(attrs.get(_RTA_TABLE)) or head[4],
        unreachable=unreachable,
        local=head[7] == _RTN_LOCAL,
    )


def put_neighbour(index: int, address: str, mac: bytes) -> Message:
    """A permanent neighbour."""
    family, packed = _packed(address)
    head = _NDMSG.pack(family, index, _NUD_PERMANENT, 0, 1)
    return Message(_NEWNEIGH, _REPLACE, head + attr(_NDA_DST, packed) + attr(_NDA_LLADDR, mac))


def delete_neighbour(index: int, address: str) -> Message:
    """Remove a neighbour."""
    family, packed = _packed(address)
    head = _NDMSG.pack(family, index, 0, 0, 0)
    return Message(_DELNEIGH, 0, head + attr(_NDA_DST, packed))


def found_neighbours(
    netlink: NetlinkSocket, index: int, family: int = socket.AF_INET
) -> dict[str, bytes]:
    """The permanent neighbours of a device, of one family: MAC by address."""
    request = Message(_GETNEIGH, 0, _NDMSG.pack(family, 0, 0, 0, 0))
    found: dict[str, bytes] = {}
    for payload in netlink.dump(request):
        _family, device, state, _flags, _type = _NDMSG.unpack_from(payload)
        attrs = attributes(payload[_NDMSG.size :])
        if device == index and state & _NUD_PERMANENT and _NDA_DST in attrs:
            found[socket.inet_ntop(family, attrs[_NDA_DST])] = attrs.get(_NDA_LLADDR, b"")
    return found


def put_forwarding(index: int, mac: bytes, remote: str) -> Message:
    """A static VXLAN forwarding entry: frames for `mac` go to the VTEP at `remote`.

    NTF_SELF is explicit: without it the kernel would write to a bridge's table, silently.
    """
    state = _NUD_PERMANENT | _NUD_NOARP
    head = _NDMSG.pack(_BRIDGE_FAMILY, index, state, _NTF_SELF, 0)
    body = head + attr(_NDA_LLADDR, mac) + attr(_NDA_DST, socket.inet_aton(remote))
    return Message(_NEWNEIGH, _REPLACE, body)


def delete_forwarding(index: int, mac: bytes) -> Message:
    """Remove a VXLAN forwarding entry."""
    head = _NDMSG.pack(_BRIDGE_FAMILY, index, 0, _NTF_SELF, 0)
    return Message(_DELNEIGH, 0, head + attr(_NDA_LLADDR, mac))


def found_forwarding(netlink: NetlinkSocket, index: int) -> dict[bytes, str]:
    """The VXLAN forwarding entries of a device: remote VTEP by MAC."""
    request = Message(_GETNEIGH, 0, _IFINFO.pack(_BRIDGE_FAMILY, 0, 0, 0, 0))
    found: dict[bytes, str] = {}
    for payload in netlink.dump(request):
        _family, device, _state, _flags, _type = _NDMSG.unpack_from(payload)
        attrs = attributes(payload[_NDMSG.size :])
        if device == index and len(attrs.get(_NDA_DST, b"")) == 4 and _NDA_LLADDR in attrs:
            found[attrs[_NDA_LLADDR]] = socket.inet_ntoa(attrs[_NDA_DST])
    return found


def add_rule(rule: Rule) -> Message:
    """Add a policy rule; EEXIST if it is there."""
    return Message(_NEWRULE, _MAKE, _rule_body(rule))


def delete_rule(rule: Rule) -> Message:
    """Remove a policy rule of ours."""
    return Message(_DELRULE, 0, _rule_body(rule))


def found_rules(netlink: NetlinkSocket, family: int = socket.AF_INET) -> set[Rule]:
    """Our policy rules of one family."""
    request = Message(_GETRULE, 0, struct.pack("=BBBBBBBBI", family, *[0] * 8))
    found: set[Rule] = set()
    for payload in netlink.dump(request):
        head = struct.unpack_from("=BBBBBBBBI", payload)
        attrs = attributes(payload[12:])
        if attrs.get(_FRA_PROTOCOL, b"\0")[0] == PROTOCOL:
            table = _number(attrs.get(_FRA_TABLE)) or head[4]
            target = attrs.get(_FRA_DST)
            found.add(
                Rule(
                    priority=_number(attrs.get(_FRA_PRIORITY)),
                    family=family,
                    destination=f"{socket.inet_ntop(family, target)}/{head[1]}" if target else "",
                    mark=_number(attrs.get(_FRA_FWMARK)),
                    mask=_number(attrs.get(_FRA_FWMASK)),
                    table=table if head[7] == _ACT_TABLE else 0,
                    goto=_number(attrs.get(_FRA_GOTO)),
                )
            )
    return found


def _by_name(name: str) -> Message:
    return Message(_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name))


def _number(payload: bytes | None) -> int:
    return struct.unpack_from("=I", payload)[0] if payload and len(payload) >= 4 else 0


def _packed(address: str) -> tuple[int, bytes]:
    """The address's family and bytes. Raises: OSError for what is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _route_body(route: Route) -> bytes:
    network = ipaddress.ip_network(route.destination)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    # The kernel gives IPv6 routes one scope, whatever is asked for.
    scope = SCOPE_UNIVERSE if route.gateway or route.unreachable else SCOPE_LINK
    kind = _RTN_UNREACHABLE if route.unreachable else _RTN_LOCAL if route.local else _RTN_UNICAST
    flags = _RTNH_ONLINK if route.gateway else 0
    head = struct.pack(
        "=BBBBBBBBI", family, network.prefixlen, 0, 0, 0, PROTOCOL, scope, kind, flags
    )
    body = head + u32(_RTA_TABLE, route.table)
    if network.prefixlen:
        body += attr(_RTA_DST, network.network_address.packed)
    if route.gateway:
        body += attr(_RTA_GATEWAY, _packed(route.gateway)[1])
    return body + (u32(_RTA_OIF, route.device) if route.device else b"")


def _rule_body(rule: Rule) -> bytes:
    action = _ACT_GOTO if rule.goto else _ACT_TABLE if rule.table else _ACT_NOP
    target = ipaddress.ip_network(rule.destination) if rule.destination else None
    length = 0 if target is None else target.prefixlen
    head = struct.pack("=BBBBBBBBI", rule.family, length, 0, 0, 0, 0, 0, action, 0)
    body = head + u32(_FRA_PRIORITY, rule.priority) + attr(_FRA_PROTOCOL, bytes([PROTOCOL]))
    if target is not None:
        body += attr(_FRA_DST, target.network_address.packed)
    if rule.mask:
        body += u32(_FRA_FWMARK, rule.mark) + u32(_FRA_FWMASK, rule.mask)
    if rule.table:
        body += u32(_FRA_TABLE, rule.table)
    return body + (u32(_FRA_GOTO, rule.goto) if rule.goto else b"")
