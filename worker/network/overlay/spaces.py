"""The namespace of each overlay network on this node: a bridge, a VXLAN device, ports of tasks.

Invariant: what is there already and as it should be is not touched, so a restart interrupts no
connection; what differs is made anew. The namespace has no addresses: neither the node nor its
firewall are on the network, and networks may have the same subnet. Every method blocks and belongs
to one thread.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from shoal.errors import InvalidArgument, Unimplemented
from worker.network import netns, route, sysctl
from worker.network.api import NetworkSettings
from worker.network.local.links import add_port
from worker.network.netlink import NETLINK_ROUTE, Message, NetlinkError, NetlinkSocket
from worker.network.overlay import links
from worker.network.overlay.api import OverlayLink, OverlayNetwork
from worker.network.overlay.encryption import Encryption, mtu_within
from worker.network.overlay.plan import Remotes, hardware_address, version_of

BRIDGE: Final = "br0"
VXLAN: Final = "vx0"
SEALED_VXLAN: Final = "vs0"
"""Of an encrypted network, whose namespace is never taken over for one in the clear."""
MESSAGES_MAX: Final = 256
"""Messages sent in one call."""
_ABSENT = (errno.ENOENT, errno.ESRCH, errno.ENODEV)


class _Space:
    """One namespace that is in order. remotes: what its tables hold."""

    def __init__(self, netlink: NetlinkSocket, bridge: int, vxlan: int) -> None:
        self.netlink = netlink
        self.bridge = bridge
        self.vxlan = vxlan
        self.remotes = Remotes(
            links.found_neighbours(netlink, vxlan), route.found_forwarding(netlink, vxlan)
        )

    def send(self, messages: Iterable[Message], *, absent_ok: bool = False) -> None:
        rest = list(messages)
        for start in range(0, len(rest), MESSAGES_MAX):
            part = rest[start : start + MESSAGES_MAX]
            try:
                self.netlink.transact(part)
            except NetlinkError as error:
                if not absent_ok or error.errno not in _ABSENT:
                    raise


class NetworkSpaces:
    """The networks of this node, in the kernel."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._settings = settings
        self._directory = Path(settings.run_dir) / "overlay" / "netns"
        self._route = NetlinkSocket(NETLINK_ROUTE)
        self._spaces: dict[str, _Space] = {}
        self.encryption = Encryption(settings, self._route)

    def open(self) -> None:
        """Raises: Unimplemented naming what the kernel lacks."""
        kinds = ("veth", "vxlan", "bridge")
        missing = [kind for kind in kinds if not route.probe_kind(self._route, kind)]
        if missing:
            raise Unimplemented(
                "overlay networks: this kernel has no network devices of type "
                f"{', '.join(missing)}; load the modules or use a kernel that has them"
            )
        self.encryption.open()

    def close(self, *, remove: bool) -> None:
        """Let go; with `remove`, drop every network."""
        if remove:
            for network_id in self.ids():
                self.drop(network_id)
            netns.unshare_directory(self._directory)
        for space in self._spaces.values():
            space.netlink.close()
        self._spaces.clear()
        self.encryption.close(remove=remove)
        self._route.close()

    def ids(self) -> list[str]:
        """The networks that have a namespace here."""
        if not self._directory.exists():
            return []
        return sorted(path.name for path in self._directory.iterdir())

    def mtu(self, network: OverlayNetwork) -> int:
        """Bytes of a packet inside the network."""
        if network.mtu:
            return network.mtu
        return mtu_within(self._settings) if network.encrypted else self._settings.mtu

    def ensure(self, network: OverlayNetwork) -> None:
        """Make the network's namespace, or take it over. Raises: NetlinkError, InvalidArgument."""
        path = self._path(network.network_id)
        wanted = self._device(network)
        if network.network_id in self._spaces:
            return
        if netns.is_mounted(path):
            with netns.entered(path):
                netlink = NetlinkSocket(NETLINK_ROUTE)
            space = _taken_over(netlink, wanted)
            if space is not None:
                self._spaces[network.network_id] = space
                return
            netlink.close()
        netns.share_directory(self._directory)
        self.drop(network.network_id)
        self._spaces[network.network_id] = self._made(path, network, wanted)

    def drop(self, network_id: str) -> None:
        """Take a network off this node. Idempotent.

        The VXLAN device is deleted first (24 to 32 ms), since the kernel ends the namespace later,
        and until then no other device could have its number.
        """
        path = self._path(network_id)
        if netns.is_mounted(path):
            with netns.entered(path), NetlinkSocket(NETLINK_ROUTE) as inside:
                for name in (VXLAN, SEALED_VXLAN):
                    link = route.link_of(inside, name)
                    if link is not None:
                        inside.transact([route.delete_link(link.index)])
        netns.drop(path)
        self.forget(network_id)

    def forget(self, network_id: str) -> None:
        """Look at the kernel again before the next change: somebody else has changed something."""
        space = self._spaces.pop(network_id, None)
        if space is not None:
            space.netlink.close()

    def put_remotes(self, network_id: str, wanted: Remotes) -> None:
        """Make the endpoints of other nodes reachable. Raises: NetlinkError."""
        space = self._spaces[network_id]
        held, index = space.remotes, space.vxlan
        space.send(
            [
                *(
                    route.put_forwarding(index, mac, node)
                    for mac, node in wanted.forwarding.items()
                    if held.forwarding.get(mac) != node
                ),
                *(
                    links.put_neighbour(index, address, mac)
                    for address, mac in wanted.neighbours.items()
                    if held.neighbours.get(address) != mac
                ),
            ]
        )
        space.remotes = Remotes(
            {**held.neighbours, **wanted.neighbours}, {**held.forwarding, **wanted.forwarding}
        )

    def drop_remotes(self, network_id: str, wanted: Remotes) -> None:
        """Forget the endpoints that are not in `wanted`. Raises: NetlinkError."""
        space = self._spaces[network_id]
        held, index = space.remotes, space.vxlan
        for message in (
            *(
                links.delete_neighbour(index, address)
                for address in held.neighbours.keys() - wanted.neighbours.keys()
            ),
            *(
                route.delete_forwarding(index, mac)
                for mac in held.forwarding.keys() - wanted.forwarding.keys()
            ),
        ):
            space.send([message], absent_ok=True)
        space.remotes = wanted

    def has_port(self, network_id: str, task_id: str) -> bool:
        """Whether the task is plugged in, in a network that is not known to be broken."""
        path = self._path(network_id)
        if not netns.is_mounted(path):
            return False
        with netns.entered(path):
            return _index_of(port_name(task_id)) is not None

    def plug(self, network: OverlayNetwork, task_id: str, link: OverlayLink, task_fd: int) -> None:
        """Give a task its interface, unless it has it. Raises: NetlinkError."""
        space = self._spaces[network.network_id]
        name, mac = port_name(task_id), hardware_address(link.addresses)
        found = route.link_of(space.netlink, name)
        if found is not None and not _has_interface(task_fd, link.interface):
            space.send([route.delete_link(found.index)])  # of an earlier run of the task
            found = None
        if found is None:
            space.send(
                [
                    add_port(
                        host=name,
                        inside=link.interface,
                        mac=mac,
                        mtu=self.mtu(network),
                        bridge=space.bridge,
                        netns_fd=task_fd,
                    )
                ]
            )
            found = route.link_of(space.netlink, name)
        if found is not None:
            space.send(
                [links.set_port(found.index, floods=False), links.put_port_entry(found.index, mac)]
            )

    def unplug(self, task_id: str, link: OverlayLink) -> None:
        """Send a task no more frames: its address may be elsewhere before its namespace ends.

        The interface goes with that namespace, which the kernel ends when it has time. Idempotent.
        """
        space = self._spaces.get(link.network_id)
        port = None if space is None else route.link_of(space.netlink, port_name(task_id))
        if space is not None and port is not None:
            mac = hardware_address(link.addresses)
            space.send([links.delete_port_entry(port.index, mac)], absent_ok=True)

    def pull(self, network_id: str, task_id: str) -> None:
        """Take the interface from whoever runs on; its other end goes at once. Idempotent."""
        space = self._spaces.get(network_id)
        port = None if space is None else route.link_of(space.netlink, port_name(task_id))
        if space is not None and port is not None:
            space.send([route.delete_link(port.index)], absent_ok=True)

    def _made(self, path: Path, network: OverlayNetwork, wanted: route.Vxlan) -> _Space:
        with netns.fresh(path) as inside_fd, contextlib.ExitStack() as undo:
            sysctl.try_write("ipv6/conf/default/disable_ipv6", "1")
            netlink = undo.enter_context(NetlinkSocket(NETLINK_ROUTE))
            # Made through the socket of another namespace: there its packets come and go.
            outside = self.encryption.netlink if network.encrypted else self._route
            outside.transact([links.add_vxlan(wanted, inside_fd)])
            netlink.transact([links.add_bridge(BRIDGE, wanted.mtu)])
            bridge, vxlan = socket.if_nametoindex(BRIDGE), socket.if_nametoindex(wanted.name)
            if any(version_of(subnet) == 6 for subnet in network.subnets):
                # It answers neighbour solicitations only with IPv6 of its own.
                sysctl.write(f"ipv6/conf/{wanted.name}/accept_dad", "0")
                sysctl.write(f"ipv6/conf/{wanted.name}/disable_ipv6", "0")
            netlink.transact([links.join(vxlan, bridge), links.set_port(vxlan, floods=True)])
            space = _Space(netlink, bridge, vxlan)
            undo.pop_all()
        return space

    def _device(self, network: OverlayNetwork) -> route.Vxlan:
        settings = self._settings
        underlay = 0
        if settings.underlay_interface is not None and not network.encrypted:
            link = route.link_of(self._route, settings.underlay_interface)
            if link is None:
                raise InvalidArgument(
                    f"underlay_interface {settings.underlay_interface} does not exist on this node"
                )
            underlay = link.index
        return route.Vxlan(
            name=SEALED_VXLAN if network.encrypted else VXLAN,
            vni=network.vni,
            local=settings.underlay_address,
            port=settings.data_path_port,
            mtu=self.mtu(network),
            mac=b"",
            link=underlay,
        )

    def _path(self, network_id: str) -> Path:
        return self._directory / network_id


def port_name(task_id: str) -> str:
    """The port of a task in a network's namespace."""
    return f"t{task_id[:14]}"


def _taken_over(netlink: NetlinkSocket, wanted: route.Vxlan) -> _Space | None:
    """The namespace as it is; None when it is not as it should be."""
    bridge, vxlan = route.link_of(netlink, BRIDGE), route.link_of(netlink, wanted.name)
    if bridge is None or vxlan is None or vxlan.kind != "vxlan":
        return None
    found = (vxlan.vxlan_id, vxlan.vxlan_port, vxlan.vxlan_local, vxlan.vxlan_link, vxlan.mtu)
    if found != (wanted.vni, wanted.port, wanted.local, wanted.link, wanted.mtu):
        return None
    return _Space(netlink, bridge.index, vxlan.index)


def _has_interface(task_fd: int, name: str) -> bool:
    with netns.entered(Path(f"/proc/self/fd/{task_fd}")):
        return _index_of(name) is not None


def _index_of(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:  # it carries no errno
        return None
