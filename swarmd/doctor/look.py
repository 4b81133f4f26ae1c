"""Looks at this node: kernel settings, devices, the clock, and which peers answer.

Changes nothing. Every wait has a deadline: a peer that does not answer costs a second, and so many
are asked at once that a whole cluster costs a few.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import itertools
import os
import shutil
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

from swarmd.doctor.core import Reach
from worker.network import wireguard
from worker.network.fabric import VXLAN_DEVICE
from worker.network.netlink import NETLINK_ROUTE, NetlinkSocket
from worker.network.overlay.secrecy import GENERATIONS_MAX, port_of
from worker.network.route import link_of

PEERS_MAX = 1024
TUNNEL = VXLAN_DEVICE
_SETTINGS = (
    "ipv4/ip_forward", "ipv4/conf/vxi/rp_filter", "ipv4/conf/vxi/route_localnet",
    "ipv6/conf/all/disable_ipv6", "ipv6/conf/vxi/disable_ipv6", "ipv6/conf/all/forwarding",
    "netfilter/nf_conntrack_max", "netfilter/nf_conntrack_count",
)  # fmt: skip
_ANSWER_S = 1.0
_AT_ONCE = 64
_HEADERS_BYTES = 28  # IPv4 and ICMP
_SIOCGIFADDR, _SIOCGIFMTU = 0x8915, 0x8921
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3  # never cut, and mind no known MTU of the path
_ECHO, _ECHO_REPLY = 8, 0
_TIME_ERROR = 5
_TIMEX_BYTES = 256  # struct timex is 208

_numbers = itertools.count(1)


class Peer(msgspec.Struct, frozen=True):
    """Another node. gateway: its address in the mesh; "" without a place there."""

    name: str
    address: str
    gateway: str


class Tunnel(msgspec.Struct, frozen=True):
    """The mesh's VXLAN. port: UDP, of this node and of the others."""

    mtu: int
    port: int


def settings() -> dict[str, str | None]:
    """Kernel settings that the mesh depends on; None for those this kernel does not have."""
    found: dict[str, str | None] = dict.fromkeys(_SETTINGS)
    for name in _SETTINGS:
        with contextlib.suppress(OSError):
            found[name] = Path("/proc/sys/net", name).read_text().strip()
    return found


def has_nft() -> bool:
    """Whether the program that loads the rules is there."""
    return shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def why_no_encryption() -> str:
    """Why the kernel cannot carry encrypted networks, "" when it can: a device comes and goes."""
    try:
        return wireguard.missing()
    except OSError as error:
        return f"the kernel does not say whether it has WireGuard: {error.strerror}"


def tunnel() -> Tunnel | None:
    """The mesh's device; None without one."""
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        link = link_of(netlink, TUNNEL)
    return None if link is None else Tunnel(link.mtu, link.vxlan_port)


def sealed_ports(data_path_port: int) -> tuple[int, ...]:
    """The ports of encrypted networks that are open on this node."""
    try:
        lines = Path("/proc/net/udp").read_text().splitlines()[1:]
    except OSError:
        return ()
    bound = {int(line.split()[1].rpartition(":")[2], 16) for line in lines}
    ours = (port_of(generation, data_path_port) for generation in range(GENERATIONS_MAX))
    return tuple(port for port in ours if port in bound)


def device_with(address: str) -> tuple[str, int]:
    """Name and MTU of the device that has an IPv4 address; ("", 0) without one."""
    for _, name in socket.if_nameindex():
        with contextlib.suppress(OSError):
            answer = _device_request(_SIOCGIFADDR, name)
            if socket.inet_ntoa(answer[20:24]) == address:
                return name, _mtu(name) or 0
    return "", 0


def clock_is_synchronized() -> bool:
    """What the kernel says of its clock (adjtimex)."""
    libc = ctypes.CDLL(None, use_errno=True)
    state: int = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return state not in (-1, _TIME_ERROR)


async def reach(peers: Sequence[Peer], mesh_mtu: int | None) -> tuple[Reach, ...]:
    """Ask every peer, below the mesh and through it. mesh_mtu: None leaves the mesh out."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def ask(peer: Peer) -> Reach:
        async with gate:
            underlay = await echo(peer.address)
            if mesh_mtu is None or not peer.gateway:
                return Reach(peer.name, peer.address, underlay)
            mesh = await echo(peer.gateway)
            full = mesh and await echo(peer.gateway, size=mesh_mtu)
            return Reach(peer.name, peer.address, underlay, mesh, full)

    return tuple(await asyncio.gather(*map(ask, peers)))


async def echo(address: str, *, size: int = 64) -> bool:
    """Whether a host answers an echo request of `size` bytes, headers included, sent whole."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await _echo(address, size)
    except (OSError, TimeoutError):
        return False


async def _echo(address: str, size: int) -> bool:
    loop = asyncio.get_running_loop()
    mark = struct.pack("!HH", os.getpid() & 0xFFFF, next(_numbers) & 0xFFFF)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        sock.connect((address, 0))
        await loop.sock_sendall(sock, _request(mark, size - _HEADERS_BYTES))
        while True:
            packet = await loop.sock_recv(sock, 65_536)
            message = packet[4 * (packet[0] & 0x0F) :]
            if message[:1] == bytes([_ECHO_REPLY]) and message[4:8] == mark:
                return True


def _request(mark: bytes, payload_bytes: int) -> bytes:
    body = mark + bytes(payload_bytes)
    head = struct.pack("!BBH", _ECHO, 0, 0)
    return struct.pack("!BBH", _ECHO, 0, _checksum(head + body)) + body


def _checksum(data: bytes) -> int:
    """The Internet's: of RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _mtu(name: str) -> int | None:
    try:
        answer = _device_request(_SIOCGIFMTU, name)
    except OSError:
        return None
    return int(struct.unpack_from("i", answer, 16)[0])


def _device_request(number: int, name: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, number, struct.pack("16s24x", name.encode()))
