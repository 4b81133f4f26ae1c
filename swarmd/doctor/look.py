"""Looks at this node: kernel settings, devices, the clock, and which peers answer.

Changes nothing. Every wait has a deadline: a peer that does not answer costs a second, and so many
are asked at once that a whole cluster costs a few.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

from swarmd.doctor.core import Reach
from swarmd.doctor.echo import echo
from worker.network import wireguard
from worker.network.fabric import VXLAN_DEVICE
from worker.network.features import features_of
from worker.network.netlink import NETLINK_ROUTE, NetlinkSocket
from worker.network.nft import NftSocket
from worker.network.overlay.secrecy import GENERATIONS_MAX, port_of
from worker.network.route import link_of
from worker.network.twins import twin

PEERS_MAX = 1024
TUNNEL = VXLAN_DEVICE
_SETTINGS = (
    "ipv4/ip_forward", "ipv4/conf/vxi/rp_filter", "ipv4/conf/vxi/route_localnet",
    "ipv6/conf/all/disable_ipv6", "ipv6/conf/vxi/disable_ipv6", "ipv6/conf/all/forwarding",
    "netfilter/nf_conntrack_max", "netfilter/nf_conntrack_count",
)  # fmt: skip
_AT_ONCE = 64
_SIOCGIFADDR, _SIOCGIFMTU = 0x8915, 0x8921
_TIME_ERROR = 5
_TIMEX_BYTES = 256  # struct timex is 208


class Peer(msgspec.Struct, frozen=True):
    """Another node. gateway: its address in the mesh; "" without a place there.

    ipv6: the mesh is served over IPv6 there, too.
    """

    name: str
    address: str
    gateway: str
    ipv6: bool = False


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


def reduced() -> tuple[str, ...]:
    """What the mesh's rules do without; nothing where there are none."""
    try:
        nft = NftSocket()
    except OSError:  # the kernel has no nf_tables: there is no mesh either
        return ()
    with contextlib.closing(nft):
        return features_of(nft.version() or "").lost


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
            six = (
                await echo(twin(peer.gateway)) if peer.ipv6 and mesh and tunnel_has_ipv6() else None
            )
            return Reach(peer.name, peer.address, underlay, mesh, full, six)

    return tuple(await asyncio.gather(*map(ask, peers)))


def tunnel_has_ipv6() -> bool:
    """Whether this node's end of the tunnel has IPv6."""
    return settings().get("ipv6/conf/vxi/disable_ipv6") == "0"


def _mtu(name: str) -> int | None:
    try:
        answer = _device_request(_SIOCGIFMTU, name)
    except OSError:
        return None
    return int(struct.unpack_from("i", answer, 16)[0])


def _device_request(number: int, name: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, number, struct.pack("16s24x", name.encode()))
