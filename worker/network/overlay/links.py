"""rtnetlink messages for overlay networks: VXLAN, bridge, ports, neighbours of both families.

Nothing is learned: neither by the VXLAN device nor by the bridge. A frame for a hardware address
that is not a port's goes to the VXLAN device alone, and that knows every endpoint of other nodes.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Final

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
from worker.network.route import Vxlan

_NEWLINK, _SETLINK = 16, 19
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_MAKE = NLM_F_CREATE | NLM_F_EXCL
_REPLACE = NLM_F_CREATE | NLM_F_REPLACE
_IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_PROTINFO, _IFLA_LINKINFO = 3, 4, 10, 12, 18
_IFLA_NET_NS_FD = 28
_INFO_KIND, _INFO_DATA = 1, 2
_VXLAN_ID, _VXLAN_LINK, _VXLAN_LOCAL, _VXLAN_LEARNING = 1, 3, 4, 7
_VXLAN_PROXY, _VXLAN_PORT = 11, 15
_BRIDGE_MULTICAST_SNOOPING = 23
_PORT_LEARNING, _PORT_UNICAST_FLOOD = 8, 9
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80
_NTF_MASTER = 4
_IFF_UP: Final = 1
_IFINFO = struct.Struct("=BxHiII")
_NDMSG = struct.Struct("=BxxxiHBB")
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def add_vxlan(device: Vxlan, netns_fd: int) -> Message:
    """A VXLAN device born in `netns_fd`; its UDP socket stays in the namespace of our socket.

    It answers for its neighbours: no ARP and no neighbour solicitation crosses the underlay.
    """
    detail = [
        u32(_VXLAN_ID, device.vni),
        attr(_VXLAN_LOCAL, socket.inet_aton(device.local)),
        attr(_VXLAN_LEARNING, b"\0"),
        attr(_VXLAN_PROXY, b"\1"),
        attr(_VXLAN_PORT, struct.pack("!H", device.port)),
    ]
    if device.link:
        detail.append(u32(_VXLAN_LINK, device.link))
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, device.name)
    body += u32(_IFLA_MTU, device.mtu) + u32(_IFLA_NET_NS_FD, netns_fd)
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "vxlan"), nested(_INFO_DATA, *detail))
    return Message(_NEWLINK, _MAKE, body + info)


def add_bridge(name: str, mtu: int) -> Message:
    """A bridge, up, that floods multicast: neighbour discovery needs it, and nobody queries."""
    body = _IFINFO.pack(0, 0, 0, _IFF_UP, _IFF_UP) + text(_IFLA_IFNAME, name)
    detail = nested(_INFO_DATA, attr(_BRIDGE_MULTICAST_SNOOPING, b"\0"))
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "bridge"), detail)
    return Message(_NEWLINK, _MAKE, body + u32(_IFLA_MTU, mtu) + info)


def join(index: int, bridge: int) -> Message:
    """Make a device a port of the bridge, and bring it up."""
    return Message(
        _NEWLINK, 0, _IFINFO.pack(0, 0, index, _IFF_UP, _IFF_UP) + u32(_IFLA_MASTER, bridge)
    )


def set_port(index: int, *, floods: bool) -> Message:
    """A port that learns nothing. floods: it gets the frames for addresses of no port."""
    flags = nested(
        _IFLA_PROTINFO, attr(_PORT_LEARNING, b"\0"), attr(_PORT_UNICAST_FLOOD, bytes([floods]))
    )
    return Message(_SETLINK, 0, _IFINFO.pack(socket.AF_BRIDGE, 0, index, 0, 0) + flags)


def set_down(index: int) -> Message:
    """Bring a device down; its routes go with it."""
    return Message(_NEWLINK, 0, _IFINFO.pack(0, 0, index, 0, _IFF_UP))


def put_port_entry(index: int, mac: bytes) -> Message:
    """Frames for `mac` leave the bridge through this port."""
    head = _NDMSG.pack(socket.AF_BRIDGE, index, _NUD_NOARP, _NTF_MASTER, 0)
    return Message(_NEWNEIGH, _REPLACE, head + attr(_NDA_LLADDR, mac))


def delete_port_entry(index: int, mac: bytes) -> Message:
    """No frames for `mac` leave the bridge through this port any more."""
    head = _NDMSG.pack(socket.AF_BRIDGE, index, 0, _NTF_MASTER, 0)
    return Message(_DELNEIGH, 0, head + attr(_NDA_LLADDR, mac))


def put_neighbour(index: int, address: str, mac: bytes) -> Message:
    """A permanent neighbour of either family."""
    packed = ipaddress.ip_address(address)
    head = _NDMSG.pack(_FAMILIES[packed.version], index, _NUD_PERMANENT, 0, 1)
    return Message(
        _NEWNEIGH, _REPLACE, head + attr(_NDA_DST, packed.packed) + attr(_NDA_LLADDR, mac)
    )


def delete_neighbour(index: int, address: str) -> Message:
    """Remove a neighbour of either family."""
    packed = ipaddress.ip_address(address)
    head = _NDMSG.pack(_FAMILIES[packed.version], index, 0, 0, 0)
    return Message(_DELNEIGH, 0, head + attr(_NDA_DST, packed.packed))


def found_neighbours(netlink: NetlinkSocket, index: int) -> dict[str, bytes]:
    """The permanent neighbours of a device, of both families: MAC by address."""
    found: dict[str, bytes] = {}
    for family in _FAMILIES.values():
        for payload in netlink.dump(Message(_GETNEIGH, 0, _NDMSG.pack(family, 0, 0, 0, 0))):
            _family, device, state, _flags, _type = _NDMSG.unpack_from(payload)
            attrs = attributes(payload[_NDMSG.size :])
            if device == index and state & _NUD_PERMANENT and _NDA_DST in attrs:
                found[socket.inet_ntop(family, attrs[_NDA_DST])] = attrs.get(_NDA_LLADDR, b"")
    return found
