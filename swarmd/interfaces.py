"""The addresses of this machine, asked of the kernel over rtnetlink (RTM_GETLINK, RTM_GETADDR)."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator

from shoal.errors import Unavailable
from swarmd.addresses import InterfaceAddress, IpAddress

_NLMSG = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST_DUMP = 0x301
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFLA_IFNAME = 3
_IFF_UP = 1
_TIMEOUT_S = 5.0
_BUFFER_BYTES = 1 << 18


def machine_addresses() -> list[InterfaceAddress]:
    """Every address of every interface, in the kernel's order. Blocks for well under 1 ms.

    Raises: Unavailable when the kernel does not answer.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.settimeout(_TIMEOUT_S)
            netlink.bind((0, 0))
            links = dict(_links(netlink))
            return [
                InterfaceAddress(links[index][0], address, up=links[index][1])
                for index, address in _addresses(netlink)
                if index in links
            ]
    except OSError as error:
        raise Unavailable(f"cannot list this machine's addresses: {error}") from error


def _links(netlink: socket.socket) -> Iterator[tuple[int, tuple[str, bool]]]:
    for body in _dump(netlink, _RTM_GETLINK, _RTM_NEWLINK, _IFINFO.pack(0, 0, 0, 0, 0)):
        _, _, index, flags, _ = _IFINFO.unpack_from(body)
        name = _attributes(body[_IFINFO.size :]).get(_IFLA_IFNAME, b"")
        yield index, (name.rstrip(b"\0").decode(errors="replace"), bool(flags & _IFF_UP))


def _addresses(netlink: socket.socket) -> Iterator[tuple[int, IpAddress]]:
    for body in _dump(netlink, _RTM_GETADDR, _RTM_NEWADDR, _IFADDR.pack(0, 0, 0, 0, 0)):
        index = _IFADDR.unpack_from(body)[4]
        attributes = _attributes(body[_IFADDR.size :])
        # On a point-to-point link IFA_ADDRESS is the other end's.
        packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        if packed:
            yield index, ipaddress.ip_address(packed)


def _dump(netlink: socket.socket, kind: int, answer: int, body: bytes) -> Iterator[bytes]:
    length = _NLMSG.size + len(body)
    netlink.send(_NLMSG.pack(length, kind, _NLM_F_REQUEST_DUMP, 1, 0) + body)
    while True:
        data = netlink.recv(_BUFFER_BYTES)
        while len(data) >= _NLMSG.size:
            size, found, _, _, _ = _NLMSG.unpack_from(data)
            if found == _NLMSG_DONE:
                return
            if found == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", data, _NLMSG.size)[0]
                raise OSError(number, "rtnetlink refused the dump")
            if found == answer:
                yield data[_NLMSG.size : size]
            data = data[_aligned(size) :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        if size < _ATTRIBUTE.size:
            break
        found[kind] = data[_ATTRIBUTE.size : size]
        data = data[_aligned(size) :]
    return found


def _aligned(size: int) -> int:
    return (size + 3) & ~3
