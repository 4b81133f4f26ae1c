"""Generic netlink messages for WireGuard devices, and what a device holds, read back.

No program `wg` is needed. A key is 32 bytes; a private one only ever goes from this process to the
kernel, and is in no error and no repr. Refuses: preshared keys, packet marks, endpoints over IPv6
(the underlay is IPv4).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from worker.network import route
from worker.network.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    NetlinkError,
    NetlinkSocket,
    attr,
    attributes,
    iterate,
    nested,
    text,
    u32,
)

NETLINK_GENERIC: Final = 16
MISSING: Final = "node has no WireGuard (CONFIG_WIREGUARD)"
OVERHEAD_BYTES: Final = 80
"""Of a packet within a packet over IPv6; over IPv4 it is 20 less."""
KEEPALIVE_S: Final = 25
PEERS_PER_MESSAGE: Final = 128

_CONTROL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 0x10, 3, 1, 2
_GET_DEVICE, _SET_DEVICE = 0, 1
_IFINDEX, _PRIVATE_KEY, _PUBLIC_KEY, _FLAGS, _LISTEN_PORT, _PEERS = 1, 3, 4, 5, 6, 8
_REPLACE_PEERS = 1
_PEER_KEY, _PEER_FLAGS, _PEER_ENDPOINT, _PEER_KEEPALIVE = 1, 3, 4, 5
_PEER_HANDSHAKE, _PEER_ALLOWED = 6, 9
_REMOVE_ME, _REPLACE_ALLOWED = 1, 2
_IP_FAMILY, _IP_ADDRESS, _IP_LENGTH = 1, 2, 3
_GENERIC = struct.Struct("=BBxx")
_IFINFO = struct.Struct("=BxHiII")
_NEWLINK = 16
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD, _INFO_KIND = 3, 4, 18, 28, 1


class WireguardPeer(msgspec.Struct, frozen=True):
    """A peer of a device: where its packets go, and the one address that it may use inside."""

    endpoint: str
    port: int
    address: str
    keepalive_s: int = 0


class HeldPeer(msgspec.Struct, frozen=True):
    """A peer as the kernel has it. shaken: it has proved that it has its key."""

    peer: WireguardPeer
    shaken: bool


class WireguardDevice(msgspec.Struct, frozen=True):
    """A device as the kernel has it. public_key: empty while it has no private one."""

    public_key: bytes
    port: int
    peers: Mapping[bytes, HeldPeer]


def missing() -> str:
    """Why this node cannot encrypt, "" when it can: a device is made and removed.

    Asks in the network namespace of the calling thread. Raises: OSError.
    """
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        return "" if route.probe_kind(netlink, "wireguard") else MISSING


def add_device(name: str, mtu: int, netns_fd: int) -> Message:
    """A device born in `netns_fd`; what it sends encrypted leaves by our socket's namespace."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name)
    body += u32(_IFLA_MTU, mtu) + u32(_IFLA_NET_NS_FD, netns_fd)
    return Message(
        _NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        body + nested(_IFLA_LINKINFO, text(_INFO_KIND, "wireguard")),
    )


class WireguardSocket:
    """WireGuard's generic netlink, for devices in the calling thread's namespace."""

    def __init__(self) -> None:
        """Raises: NetlinkError (ENOENT) when the kernel has no WireGuard."""
        self._netlink = NetlinkSocket(NETLINK_GENERIC)
        try:
            self._family = _family_id(self._netlink)
        except BaseException:
            self._netlink.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def configure(self, index: int, private_key: bytes, port: int) -> None:
        """Give a device its key and port, and take its peers away. Raises: NetlinkError."""
        self._set(
            u32(_IFINDEX, index),
            u32(_FLAGS, _REPLACE_PEERS),
            attr(_PRIVATE_KEY, private_key),
            attr(_LISTEN_PORT, struct.pack("=H", port)),
        )

    def put_peers(self, index: int, peers: Mapping[bytes, WireguardPeer]) -> None:
        """Add peers by public key, or change them. An address is the last peer's that got it."""
        self._set_peers(index, (_peer(key, peer) for key, peer in peers.items()))

    def drop_peers(self, index: int, keys: Iterable[bytes]) -> None:
        """Remove peers. Those that are not there are no error."""
        self._set_peers(
            index, (nested(0, attr(_PEER_KEY, key), u32(_PEER_FLAGS, _REMOVE_ME)) for key in keys)
        )

    def read(self, index: int) -> WireguardDevice:
        """What a device holds. Raises: NetlinkError (ENODEV, EOPNOTSUPP)."""
        request = Message(self._family, 0, _GENERIC.pack(_GET_DEVICE, 1) + u32(_IFINDEX, index))
        public_key, port = b"", 0
        peers: dict[bytes, HeldPeer] = {}
        for payload in self._netlink.dump(request):
            attrs = attributes(payload[_GENERIC.size :])
            public_key = attrs.get(_PUBLIC_KEY, public_key)
            if _LISTEN_PORT in attrs:
                (port,) = struct.unpack("=H", attrs[_LISTEN_PORT])
            for _, one in iterate(attrs.get(_PEERS, b"")):
                key, peer = _held(attributes(one))
                peers[key] = peer
        return WireguardDevice(public_key, port, peers)

    def _set_peers(self, index: int, peers: Iterable[bytes]) -> None:
        waiting = list(peers)
        for start in range(0, len(waiting), PEERS_PER_MESSAGE):
            part = waiting[start : start + PEERS_PER_MESSAGE]
            self._set(u32(_IFINDEX, index), nested(_PEERS, *part))

    def _set(self, *attrs: bytes) -> None:
        body = _GENERIC.pack(_SET_DEVICE, 1) + b"".join(attrs)
        self._netlink.transact([Message(self._family, 0, body)])


def _family_id(netlink: NetlinkSocket) -> int:
    body = _GENERIC.pack(_GET_FAMILY, 1) + text(_FAMILY_NAME, "wireguard")
    answer = attributes(netlink.get(Message(_CONTROL, 0, body))[_GENERIC.size :])
    if _FAMILY_ID not in answer:
        raise NetlinkError(errno.ENOENT, MISSING, 0)
    (number,) = struct.unpack("=H", answer[_FAMILY_ID])
    return int(number)


def _peer(key: bytes, peer: WireguardPeer) -> bytes:
    endpoint = struct.pack("=H", socket.AF_INET) + struct.pack("!H", peer.port)
    endpoint += socket.inet_aton(peer.endpoint) + bytes(8)
    return nested(
        0,
        attr(_PEER_KEY, key),
        u32(_PEER_FLAGS, _REPLACE_ALLOWED),
        attr(_PEER_ENDPOINT, endpoint),
        attr(_PEER_KEEPALIVE, struct.pack("=H", peer.keepalive_s)),
        nested(_PEER_ALLOWED, nested(0, *_allowed(peer.address))),
    )


def _allowed(address: str) -> Iterator[bytes]:
    yield attr(_IP_FAMILY, struct.pack("=H", socket.AF_INET))
    yield attr(_IP_ADDRESS, ipaddress.IPv4Address(address).packed)
    yield attr(_IP_LENGTH, b"\x20")


def _held(attrs: Mapping[int, bytes]) -> tuple[bytes, HeldPeer]:
    endpoint, port = "", 0
    raw = attrs.get(_PEER_ENDPOINT, b"")
    if len(raw) >= 8 and struct.unpack_from("=H", raw) == (socket.AF_INET,):
        (port,) = struct.unpack_from("!H", raw, 2)
        endpoint = socket.inet_ntoa(raw[4:8])
    addresses = [
        socket.inet_ntoa(found[_IP_ADDRESS])
        for _, one in iterate(attrs.get(_PEER_ALLOWED, b""))
        if len((found := attributes(one)).get(_IP_ADDRESS, b"")) == 4
    ]
    (keepalive_s,) = struct.unpack("=H", attrs.get(_PEER_KEEPALIVE, b"\0\0"))
    address = addresses[0] if addresses else ""  # another peer has got it
    peer = WireguardPeer(endpoint, port, address, keepalive_s)
    return attrs[_PEER_KEY], HeldPeer(peer, any(attrs.get(_PEER_HANDSHAKE, b"")))
