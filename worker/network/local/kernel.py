"""Bridges, namespaces, links and rules of local networks: every call into the kernel.

Blocking; all of it belongs to one thread. Nothing is touched before `open`, which is called when
the first network or container needs it. Invariant: one process per network namespace has the local
networks of that namespace; a second one is refused, whatever its directories are.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog

from shoal.errors import NotFound, PermissionDenied, Unavailable
from worker.network import netns, route, sysctl
from worker.network.conntrack import ConntrackSocket, Match
from worker.network.local import links, plan, ruleset
from worker.network.local.addresses import Subnet, parse_subnet, pool_of
from worker.network.local.api import Endpoint, LinkCounters, LocalNetwork
from worker.network.local.files import Holding
from worker.network.local.nftables import Nft, NftError
from worker.network.local.options import BridgeOptions, bridge_options
from worker.network.local.ruleset import Bridge, Published
from worker.network.netlink import NETLINK_ROUTE, NetlinkError, NetlinkSocket

_LOCK: Final = "\0shoal-local-networks"
_UDP: Final = 17
_GONE = (errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL)
Networks = Mapping[str, LocalNetwork]

_log = structlog.get_logger()


def machine_subnets(ignored: Iterable[str] = ()) -> list[Subnet]:
    """Where this machine sends what, without the ways through devices called `ignored`."""
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        by_name = links.found_links(netlink)
        skipped = {by_name[name] for name in ignored if name in by_name}
        found = [subnet for subnet, device in links.found_routes(netlink) if device not in skipped]
        for device, address, prefix in links.found_addresses(netlink):
            if device not in skipped:
                found.append(ipaddress.ip_network(f"{address}/{prefix}", strict=False))
    return found


def has_device(name: str) -> bool:
    """Whether the namespace has a device of that name."""
    with NetlinkSocket(NETLINK_ROUTE) as netlink:
        return route.link_of(netlink, name) is not None


def bridge_of(network: LocalNetwork) -> Bridge:
    """What the rules know of a network."""
    options = bridge_options(network)
    return Bridge(
        name=options.bridge,
        subnets=tuple(pool.subnet for pool in network.pools),
        internal=network.internal,
        talks=options.talks,
        masquerades=options.masquerades,
    )


class Kernel:
    """The kernel's side of the local networks of this namespace."""

    def __init__(self, namespaces: Path) -> None:
        """namespaces: directory of the containers' network namespaces."""
        self._namespaces = namespaces
        self._stack = contextlib.ExitStack()
        self._opened = False
        self._route: NetlinkSocket
        self._nft: Nft
        self._conntrack: ConntrackSocket

    @property
    def is_open(self) -> bool:
        """Whether this process has the namespace's local networks."""
        return self._opened

    def open(self, networks: Iterable[LocalNetwork], ports: Iterable[Published] = ()) -> None:
        """Take the networks over: lock, forwarding, bridges, rules. Idempotent.

        Raises: Unavailable when another process has them, Unimplemented, OSError.
        """
        if self._opened:
            return
        known = list(networks)
        with contextlib.ExitStack() as stack:
            stack.callback(_lock().close)
            self._route = stack.enter_context(NetlinkSocket(NETLINK_ROUTE))
            self._nft = stack.enter_context(Nft())
            self._conntrack = stack.enter_context(contextlib.closing(ConntrackSocket()))
            netns.share_directory(self._namespaces)
            sysctl.ensure("ipv4/ip_forward", "1")
            for network in known:
                self._ensure_bridge(network)
            self._nft.run(ruleset.whole(map(bridge_of, known), ports))
            self._stack = stack.pop_all()
        self._opened = True

    def close(self, *, remove: Iterable[LocalNetwork] | None = None) -> None:
        """Let go. remove: take these networks and the rules off the machine. Idempotent."""
        if not self._opened:
            return
        try:
            if remove is not None:
                self._nft.run(ruleset.delete_table())
                for network in remove:
                    self._delete_bridge(network)
                netns.unshare_directory(self._namespaces)
        finally:
            self._opened = False
            self._stack.close()

    # Networks ---------------------------------------------------------------------------------

    def add_network(self, network: LocalNetwork) -> None:
        """Its bridge and its rules. Raises: PermissionDenied (the device is there), OSError."""
        bridge = bridge_of(network)
        if route.link_of(self._route, bridge.name) is not None:
            raise PermissionDenied(f"a device {bridge.name} is on this machine already")
        try:
            self._ensure_bridge(network)
            self._nft.run(ruleset.add_bridge(bridge))
        except BaseException:
            self._delete_bridge(network)
            raise

    def remove_network(self, network: LocalNetwork) -> None:
        """Idempotent."""
        with contextlib.suppress(NftError):  # it was interrupted before
            self._nft.run(ruleset.delete_bridge(bridge_of(network)))
        self._delete_bridge(network)

    def _ensure_bridge(self, network: LocalNetwork) -> None:
        options = bridge_options(network)
        wanted = dict(_gateways(network))
        link = route.link_of(self._route, options.bridge)
        if link is None:
            four = next(address for address in wanted if address.version == 4)
            mac = b"\x02\x42" + four.packed
            self._route.transact([links.add_bridge(options.bridge, mac, options.mtu)])
            link = route.link_of(self._route, options.bridge)
        if link is None or link.kind != "bridge":
            raise PermissionDenied(f"device {options.bridge} is no bridge: remove or rename it")
        self._set_up_bridge(options.bridge, has_ipv6=network.enable_ipv6)
        found = {
            address: prefix
            for device, address, prefix in links.found_addresses(self._route)
            if device == link.index and not address.is_link_local
        }
        stale = [links.delete_address(link.index, *one) for one in found.items() - wanted.items()]
        fresh = [links.put_address(link.index, *one) for one in wanted.items() - found.items()]
        self._route.transact([*stale, *fresh, route.set_up(link.index)])

    def _bridge(self, network: LocalNetwork) -> route.Link:
        """A network's bridge, made again if somebody has removed it. Raises: Unavailable."""
        name = bridge_options(network).bridge
        link = route.link_of(self._route, name)
        if link is None:
            _log.warning("network.bridge_was_gone", bridge=name)
            self._ensure_bridge(network)
            link = route.link_of(self._route, name)
        if link is None:
            raise Unavailable(f"bridge {name} of network {network.name} vanishes: who removes it?")
        return link

    def _set_up_bridge(self, name: str, *, has_ipv6: bool) -> None:
        sysctl.ensure(f"ipv4/conf/{name}/route_localnet", "1")
        sysctl.try_write(f"ipv6/conf/{name}/accept_dad", "0")
        sysctl.try_write(f"ipv6/conf/{name}/accept_ra", "0")
        sysctl.try_write(f"ipv6/conf/{name}/disable_ipv6", "0" if has_ipv6 else "1")
        if has_ipv6:
            sysctl.ensure("ipv6/conf/all/forwarding", "1")

    def _delete_bridge(self, network: LocalNetwork) -> None:
        link = route.link_of(self._route, bridge_options(network).bridge)
        if link is not None and link.kind == "bridge":
            self._route.transact([links.delete_link(link.index)])

    # Containers -------------------------------------------------------------------------------

    def namespace(self, container: str) -> Path:
        """Where its network namespace is mounted."""
        return self._namespaces / container

    def lacks(self, holding: Holding) -> frozenset[str] | None:
        """Links of the container that are not there; None when its whole namespace is not."""
        if not netns.is_mounted(self.namespace(holding.wanted.container)):
            return None
        return frozenset(holding.host_links) - links.found_links(self._route).keys()

    def raise_up(self, holding: Holding, networks: Networks) -> None:
        """Make the namespace with all its interfaces. Raises: OSError, and nothing is left."""
        path = self.namespace(holding.wanted.container)
        bridges = [self._bridge(networks[one.network_id]) for one in holding.endpoints]
        netns.drop(path)  # left by a crash
        with (
            netns.fresh(path, holding.wanted.owner) as inside_fd,
            NetlinkSocket(NETLINK_ROUTE) as inside,
        ):
            sysctl.try_write("ipv6/conf/default/disable_ipv6", "1")
            inside.transact([route.set_up(socket.if_nametoindex("lo"))])
            for endpoint, host, bridge in zip(
                holding.endpoints, holding.host_links, bridges, strict=True
            ):
                options = bridge_options(networks[endpoint.network_id])
                self._plug(inside_fd, endpoint, host, bridge, options)
                _configure(inside, endpoint)
            _route_outside(inside, holding.endpoints, networks)

    def connect(self, holding: Holding, endpoint: Endpoint, host: str, networks: Networks) -> None:
        """One more interface. holding: with it. Raises: OSError."""
        path = self.namespace(holding.wanted.container)
        network = networks[endpoint.network_id]
        bridge = self._bridge(network)
        inside_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._plug(inside_fd, endpoint, host, bridge, bridge_options(network))
            with self._inside(path) as inside:
                _configure(inside, endpoint)
                _route_outside(inside, holding.endpoints, networks)
        except BaseException:
            self._unplug(host)
            raise
        finally:
            os.close(inside_fd)

    def disconnect(
        self, holding: Holding, endpoint: Endpoint, host: str, networks: Networks
    ) -> None:
        """One interface less. holding: without it. Idempotent."""
        self._unplug(host)
        self._forget(endpoint)
        path = self.namespace(holding.wanted.container)
        if netns.is_mounted(path):
            with self._inside(path) as inside:
                _route_outside(inside, holding.endpoints, networks)

    def take_down(self, holding: Holding) -> None:
        """Give the namespace up. Idempotent.

        The kernel ends it with its last user; one that still lives there (`container:ID`) keeps
        its interfaces but not the addresses, which somebody else may get now.
        """
        path = self.namespace(holding.wanted.container)
        if netns.is_mounted(path):
            with self._inside(path) as inside:
                _strip(inside)
        netns.drop(path)
        for endpoint in holding.endpoints:
            self._forget(endpoint)

    def unplug(self, host_links: Iterable[str]) -> None:
        """Delete links, though somebody may live behind them. Idempotent."""
        for host in host_links:
            self._unplug(host)

    def drop_strangers(self, known: Iterable[str]) -> None:
        """Drop the namespaces of containers nobody knows."""
        names = set(known)
        for path in self._namespaces.iterdir():
            if path.name not in names:
                netns.drop(path)

    def redirect_names(self, container: str, ports: tuple[int, int]) -> None:
        """Let the container's queries reach the resolver. Raises: NftError."""
        with netns.entered(self.namespace(container)), Nft() as nft:
            nft.run(ruleset.names_table(*ports))

    def counters(self, container: str) -> tuple[LinkCounters, ...]:
        """Of each interface, seen from inside. Raises: NotFound."""
        path = self.namespace(container)
        if not netns.is_mounted(path):
            raise NotFound(f"container {container} has no network of its own")
        with self._inside(path) as inside:
            return tuple(links.counters(inside))

    # Published ports --------------------------------------------------------------------------

    def publish(self, ports: Sequence[Published]) -> None:
        """In one transaction. Raises: NftError."""
        if ports:
            self._nft.run("\n".join(map(ruleset.add_port, ports)))
            self._conntrack.forget(
                [Match(protocol=_UDP, port=one.host_port) for one in ports if one.protocol == "udp"]
            )

    def reload(self, networks: Iterable[LocalNetwork], ports: Iterable[Published]) -> None:
        """All rules anew, when somebody has removed them. Raises: NftError."""
        self._nft.run(ruleset.whole(map(bridge_of, networks), ports))

    def unpublish(self, ports: Sequence[Published]) -> None:
        """Idempotent."""
        for port in ports:
            with contextlib.suppress(NftError):  # it is not there: a change was interrupted
                self._nft.run(ruleset.delete_port(port))

    # ------------------------------------------------------------------------------------------

    def _plug(
        self,
        inside_fd: int,
        endpoint: Endpoint,
        host: str,
        bridge: route.Link,
        options: BridgeOptions,
    ) -> None:
        """The thread may be in the container's namespace: our socket is not."""
        port = links.add_port(
            host=host,
            inside=endpoint.interface,
            mac=bytes.fromhex(endpoint.mac_address.replace(":", "")),
            mtu=options.mtu,
            bridge=bridge.index,
            netns_fd=inside_fd,
        )
        self._route.transact([port])
        link = route.link_of(self._route, host)
        if link is not None:
            self._route.transact(
                [links.set_port(link.index, hairpin=True, isolated=not options.talks)]
            )

    def _unplug(self, host: str) -> None:
        link = route.link_of(self._route, host)
        if link is not None:
            with _nothing_if_gone():
                self._route.transact([links.delete_link(link.index)])

    def _forget(self, endpoint: Endpoint) -> None:
        """Forget its connections: whoever gets the address next must not be taken for it."""
        if endpoint.ipv4_address:
            address = endpoint.ipv4_address
            self._conntrack.forget([Match(address=address), Match(address=address, original=True)])

    @contextlib.contextmanager
    def _inside(self, path: Path) -> Iterator[NetlinkSocket]:
        with netns.entered(path), NetlinkSocket(NETLINK_ROUTE) as inside:
            yield inside


def _lock() -> socket.socket:
    """Held while the process lives; its name is one per network namespace."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(_LOCK)
    except OSError as error:
        lock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise Unavailable(
            "another process of Shoal has the local networks of this machine: end it first"
        ) from None
    return lock


def _gateways(
    network: LocalNetwork,
) -> Iterator[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    for version in (4, 6):
        pool = pool_of(network.pools, version)
        if pool is not None:
            yield ipaddress.ip_address(pool.gateway), parse_subnet(pool.subnet).prefixlen


def _configure(inside: NetlinkSocket, endpoint: Endpoint) -> None:
    """Addresses of an interface; the calling thread is in its namespace."""
    index = socket.if_nametoindex(endpoint.interface)
    if endpoint.ipv6_address:
        for name, value in (("accept_dad", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")):
            sysctl.write(f"ipv6/conf/{endpoint.interface}/{name}", value)
    messages = [route.set_up(index)]
    if endpoint.ipv4_address:
        four = ipaddress.ip_address(endpoint.ipv4_address)
        messages.append(links.put_address(index, four, endpoint.ipv4_prefix))
    if endpoint.ipv6_address:
        six = ipaddress.ip_address(endpoint.ipv6_address)
        messages.append(links.put_address(index, six, endpoint.ipv6_prefix))
    for text in endpoint.spec.link_local_addresses:
        local = ipaddress.ip_address(text)
        messages.append(links.put_address(index, local, 16 if local.version == 4 else 64))
    inside.transact(messages)


def _route_outside(
    inside: NetlinkSocket, endpoints: Sequence[Endpoint], networks: Networks
) -> None:
    """Default routes through the preferred network that leads outside, of each family."""
    leading = plan.outward(endpoints, networks)
    for field in ("gateway", "ipv6_gateway"):
        endpoint = next((one for one in leading if getattr(one, field)), None)
        if endpoint is not None:
            index = socket.if_nametoindex(endpoint.interface)
            gateway = ipaddress.ip_address(getattr(endpoint, field))
            inside.transact([links.put_default_route(index, gateway)])


def _strip(inside: NetlinkSocket) -> None:
    loopback = socket.if_nametoindex("lo")
    for index, address, prefix in links.found_addresses(inside):
        if index != loopback:
            with _nothing_if_gone():
                inside.transact([links.delete_address(index, address, prefix)])


@contextlib.contextmanager
def _nothing_if_gone() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.errno not in _GONE:
            raise
