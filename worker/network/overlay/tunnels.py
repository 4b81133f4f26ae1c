"""The namespace through which encrypted networks leave this node, and its WireGuard devices.

Nothing leads out of it but WireGuard: VXLAN of encrypted networks has its socket here, so that a
packet is encrypted or goes nowhere, whatever else fails. What the devices send leaves by the node's
own namespace, in which they were made. Inside, nodes have their underlay addresses. Invariant: what
is there and as it should be is not touched. Every method blocks and belongs to one thread.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shoal.errors import FailedPrecondition
from shoal.security.exchange import public_key
from worker.network import netns, route, sysctl
from worker.network.api import NetworkSettings
from worker.network.keys import PrivateKeys
from worker.network.netlink import NETLINK_ROUTE, NetlinkError, NetlinkSocket
from worker.network.overlay import secrecy
from worker.network.overlay.secrecy import Tunnels
from worker.network.wireguard import OVERHEAD_BYTES, WireguardPeer, WireguardSocket, add_device

VXLAN_BYTES: Final = 50
LOOPBACK: Final = 1
"""The index of `lo` in every namespace."""
_NAME: Final = "netns"
_ABSENT: Final = (errno.ENOENT, errno.ESRCH, errno.ENODEV)


class _Device:
    """The device of one generation. peers: those it holds, by public key."""

    def __init__(self, index: int, peers: dict[bytes, WireguardPeer]) -> None:
        self.index = index
        self.peers = peers


class _Inside:
    """Sockets of the namespace, made by a thread in it, and what it holds."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            self.netlink = undo.enter_context(NetlinkSocket(NETLINK_ROUTE))
            self.wireguard = undo.enter_context(contextlib.closing(WireguardSocket()))
            self.devices: dict[int, _Device] = {}
            self.routes = {
                one.destination.removesuffix("/32"): one.device
                for one in route.found_routes(self.netlink)
            }
            self._close = undo.pop_all().close

    def close(self) -> None:
        self._close()


class TunnelSpace:
    """The namespace, while some encrypted network is on this node."""

    def __init__(self, settings: NetworkSettings, home: NetlinkSocket) -> None:
        """home: makes devices; a socket of the node's own namespace."""
        self._settings = settings
        self._home = home
        self._directory = Path(settings.run_dir) / "overlay" / "wireguard"
        self._path = self._directory / _NAME
        self._inside_or_none: _Inside | None = None

    @property
    def is_open(self) -> bool:
        """Whether the namespace is there and known."""
        return self._inside_or_none is not None

    @property
    def netlink(self) -> NetlinkSocket:
        """Of the namespace: a VXLAN device made through it has its socket there."""
        return self._inside.netlink

    def ensure(self, keys: PrivateKeys, mtu: int) -> None:
        """Make namespace and devices, or take them over. mtu: of the largest encrypted network.

        Raises: FailedPrecondition (a port is taken), NetlinkError.
        """
        if not self._take_over():
            self.drop()
            netns.share_directory(self._directory)
            self._make()
            with netns.entered(self._path):
                self._inside_or_none = _Inside()
        least = self._settings.mtu + VXLAN_BYTES - OVERHEAD_BYTES
        with self._path.open("rb") as namespace:
            self._drop_unused(keys)
            for generation, key in keys.by_generation.items():
                link = self._device(namespace.fileno(), generation, max(mtu + VXLAN_BYTES, least))
                with self._port_of(generation) as port:
                    self._load(link.index, generation, key, port)
                    # Not before: it would listen on a port of the kernel's choice.
                    up = route.set_up(link.index, mtu=max(mtu + VXLAN_BYTES, least, link.mtu))
                    self._inside.netlink.transact([up])

    def put(self, wanted: Tunnels) -> int:
        """Make peers reachable. Result: how many are spoken to by an older key than they have."""
        inside = self._inside
        for generation, peers in wanted.peers.items():
            device = inside.devices[generation]
            missing = {key: one for key, one in peers.items() if device.peers.get(key) != one}
            inside.wireguard.put_peers(device.index, missing)
            device.peers.update(missing)
        return self.settle(wanted)

    def settle(self, wanted: Tunnels) -> int:
        """Speak to peers by newer keys where they have proved to have them. Result: as of `put`."""
        inside = self._inside
        chosen = secrecy.spoken(wanted, self._shaken(wanted))
        changed = {
            address: inside.devices[generation].index
            for address, generation in chosen.items()
            if inside.routes.get(address) != inside.devices[generation].index
        }
        inside.netlink.transact(
            [route.put_route(_route(address, index)) for address, index in changed.items()]
        )
        inside.routes.update(changed)
        return secrecy.behind(wanted, chosen)

    def drop_others(self, wanted: Tunnels) -> None:
        """Forget peers that are not wanted. Raises: NetlinkError."""
        inside = self._inside
        for address in inside.routes.keys() - wanted.generations():
            gone = route.delete_route(_route(address, inside.routes[address]))
            with _absent_ok():
                inside.netlink.transact([gone])
            del inside.routes[address]
        for generation, device in inside.devices.items():
            others = device.peers.keys() - wanted.peers.get(generation, {}).keys()
            inside.wireguard.drop_peers(device.index, others)
            for key in others:
                del device.peers[key]

    def forget(self) -> None:
        """Look at the kernel again before the next change; nothing in it changes."""
        inside, self._inside_or_none = self._inside_or_none, None
        if inside is not None:
            inside.close()

    def drop(self) -> None:
        """Take it all off this node. Idempotent."""
        if netns.is_mounted(self._path):
            with netns.entered(self._path), NetlinkSocket(NETLINK_ROUTE) as inside:
                for slot in range(secrecy.GENERATIONS_MAX):
                    _delete(inside, secrecy.device_of(slot))
        self.forget()
        netns.unshare_directory(self._directory)

    @property
    def _inside(self) -> _Inside:
        if self._inside_or_none is None:
            raise FailedPrecondition("encrypted networks: their namespace is not open")
        return self._inside_or_none

    def _take_over(self) -> bool:
        """Whether the namespace is there, and in it this node's address of now."""
        if not netns.is_mounted(self._path):
            return False
        if self._inside_or_none is None:
            with netns.entered(self._path):
                self._inside_or_none = _Inside()
            addresses = route.found_addresses(self._inside.netlink, LOOPBACK)
            return (self._settings.underlay_address, 32) in addresses
        return True

    def _make(self) -> None:
        """A namespace in which this node has its address, and peers answer by either device."""
        with netns.fresh(self._path), NetlinkSocket(NETLINK_ROUTE) as inside:
            sysctl.try_write("ipv6/conf/default/disable_ipv6", "1")
            for name in ("all", "default"):
                sysctl.write(f"ipv4/conf/{name}/rp_filter", "0")
            inside.transact(
                [
                    route.set_up(LOOPBACK),
                    route.add_address(LOOPBACK, self._settings.underlay_address),
                ]
            )

    def _device(self, namespace: int, generation: int, mtu: int) -> route.Link:
        """A generation's device, made if need be."""
        inside, name = self._inside, secrecy.device_of(generation)
        link = route.link_of(inside.netlink, name)
        if link is None:
            self._home.transact([add_device(name, mtu, namespace)])
            link = route.link_of(inside.netlink, name)
        if link is None:
            raise FailedPrecondition(f"encrypted networks: device {name} has vanished")
        return link

    @contextlib.contextmanager
    def _port_of(self, generation: int) -> Iterator[int]:
        """The port of a generation's device. Raises: FailedPrecondition when another has it."""
        port = secrecy.port_of(generation, self._settings.data_path_port)
        try:
            yield port
        except NetlinkError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise FailedPrecondition(
                f"encrypted networks: port {port}/udp is in use by another process on this node;"
                " end it, or make the cluster with another data path port"
            ) from error

    def _load(self, index: int, generation: int, key: bytes, port: int) -> None:
        """Give a device the generation's key and port, unless it has them."""
        inside = self._inside
        known = inside.devices.get(generation)
        if known is not None and known.index == index:
            return
        for other in [one for one, device in inside.devices.items() if device.index == index]:
            del inside.devices[other]
        held = inside.wireguard.read(index)
        peers = {public: one.peer for public, one in held.peers.items()}
        if (held.public_key, held.port) != (public_key(key), port):
            inside.wireguard.configure(index, key, port)
            peers = {}
        inside.devices[generation] = _Device(index, peers)

    def _drop_unused(self, keys: PrivateKeys) -> None:
        """Delete the device that no generation uses: this node has missed one."""
        inside = self._inside
        used = {secrecy.device_of(generation) for generation in keys.by_generation}
        for slot in range(secrecy.GENERATIONS_MAX):
            if secrecy.device_of(slot) not in used:
                _delete(inside.netlink, secrecy.device_of(slot))
        for generation in inside.devices.keys() - keys.by_generation.keys():
            if secrecy.device_of(generation) not in used:
                index = inside.devices.pop(generation).index
                inside.routes = {one: to for one, to in inside.routes.items() if to != index}

    def _shaken(self, wanted: Tunnels) -> dict[int, frozenset[str]]:
        """Who has proved the newest key; asked while there is an older one to speak by."""
        inside = self._inside
        if len(wanted.peers) < secrecy.GENERATIONS_MAX:
            return {}
        newest = max(wanted.peers)
        held = inside.wireguard.read(inside.devices[newest].index).peers
        return {
            newest: frozenset(
                peer.address
                for key, peer in wanted.peers[newest].items()
                if key in held and held[key].shaken
            )
        }


def _route(address: str, device: int) -> route.Route:
    return route.Route(destination=f"{address}/32", device=device)


def _delete(netlink: NetlinkSocket, name: str) -> None:
    link = route.link_of(netlink, name)
    if link is not None:
        netlink.transact([route.delete_link(link.index)])


@contextlib.contextmanager
def _absent_ok() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.errno not in _ABSENT:
            raise
