"""The node's own devices and what they know of the peers: gateway bridge, ingress VXLAN, rules.

One neighbour, forwarding entry, route, rule, mark and zone per peer node; nothing per task. What
has an address is there twice, for IPv4 and for IPv6, as far as the peer and this node have that.
Invariant: every call compares the kernel with what it should hold and sends the difference, so it
heals what was tampered with and costs nothing when all is well. A new peer's route and mark are in
place before the call returns; call it before publishing endpoints on that peer. Removes only what
carries our route protocol or sits on our devices.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from shoal.errors import InvalidArgument, Unavailable, Unimplemented
from shoal.model.defaults import INGRESS_VNI
from worker.network import ipv6, route, skeleton, sysctl
from worker.network.api import NetworkSettings, Peer
from worker.network.core import ROUTE_TABLE_BASE, check_peers, gateway_of, vtep_mac
from worker.network.features import features_of
from worker.network.netlink import NETLINK_ROUTE, Message, NetlinkError, NetlinkSocket
from worker.network.nft import Element, elements_of
from worker.network.ports import is_taken
from worker.network.slots import SLOT_MAPS, MeshSocket
from worker.network.twins import twin, twin_subnet

VXLAN_DEVICE: Final = "vxi"
BRIDGE_DEVICE: Final = "shgw0"
VNI: Final = INGRESS_VNI
TABLE_MAX: Final = ROUTE_TABLE_BASE + 4095
LOOPBACK6: Final = "::1/128"
LOOPBACK6_TABLE: Final = ROUTE_TABLE_BASE
_LOOPBACK6_PRIORITY, _GOTO_PRIORITY, _PEER_PRIORITY, _NOP_PRIORITY = 80, 90, 100, 200
_TIME_WAIT_S = "30"
_CONNTRACK_MAX = 1 << 20
_CARRIED = (
    "nodes", "nodes6", "self4", "self6", "reserved", "node_mac", "node_zone",
    *skeleton.PORT_SETS, *SLOT_MAPS,
)  # fmt: skip
_PEER_SETS = ("nodes", "nodes6", "node_mac", "node_zone")
Key = TypeVar("Key")
Value = TypeVar("Value")


class Fabric:
    """The root namespace's side of the mesh; every method blocks and belongs to one thread."""

    def __init__(self, settings: NetworkSettings, nft: MeshSocket) -> None:
        self._settings = settings
        self._nft = nft
        self._route = NetlinkSocket(NETLINK_ROUTE)
        self._vxlan_index = 0
        self._mask = 0xFFF << settings.mark_shift

    def open(self) -> None:
        """Make or adopt devices, rules and the nft table.

        Raises: Unimplemented naming the kernel feature that is missing; InvalidArgument if the
        underlay interface does not exist.
        """
        missing = [k for k in ("veth", "vxlan", "bridge") if not route.probe_kind(self._route, k)]
        if missing:
            raise Unimplemented(f"this kernel has no network devices of type {', '.join(missing)}")
        sysctl.ensure("ipv4/ip_forward", "1")
        if self._settings.ipv6:
            ipv6.forward()
        self._open_bridge()
        self._open_vxlan()
        self._open_rules()
        self._open_table()
        self._tune_conntrack()

    def close(self) -> None:
        """Close the socket; the kernel keeps everything."""
        self._route.close()

    def set_peers(self, peers: Sequence[Peer]) -> list[str]:
        """Make `peers` the whole mesh besides this node; returns the subnets of peers now gone.

        Raises: InvalidArgument for contradicting indexes, addresses or subnets.
        """
        settings = self._settings
        others = [peer for peer in peers if peer.index != settings.index]
        check_peers(others, settings)
        wanted = self._routes(others)
        found = {r for r in self._found_routes() if self._is_peer_route(r)}
        gone = {r.destination for r in found - wanted if r.table == route.TABLE_MAIN}
        gone -= {r.destination for r in wanted}
        sets = self._sets(others)
        deletes, adds = self._set_changes(sets)
        # A peer may be reached, and recognised, before anything is balanced to it.
        self._apply(self._entry_changes(others))
        self._apply([route.put_route(r) for r in sorted(wanted - found)])
        self._sync_rules(others)
        self._nft.apply(deletes, adds)
        replaced = {(r.table, r.destination) for r in wanted}
        stale = [r for r in sorted(found - wanted) if (r.table, r.destination) not in replaced]
        self._apply([route.delete_route(r) for r in stale], absent_ok=True)
        return sorted(gone - {settings.subnet, twin_subnet(settings.subnet)})

    def remove(self) -> None:
        """Take every device, rule, route and the table away."""
        self._nft.delete_table()
        self._apply([route.delete_rule(r) for r in sorted(self._found_rules())], absent_ok=True)
        self._apply([route.delete_route(r) for r in sorted(self._found_routes())], absent_ok=True)
        for name in (VXLAN_DEVICE, BRIDGE_DEVICE):
            link = route.link_of(self._route, name)
            if link is not None:
                self._apply([route.delete_link(link.index)], absent_ok=True)

    def _open_bridge(self) -> None:
        mac = b"\x02\xfd" + socket.inet_aton(gateway_of(self._settings.subnet))
        link = route.link_of(self._route, BRIDGE_DEVICE)
        if link is None:
            self._apply([route.add_bridge(BRIDGE_DEVICE, mac)])
            link = route.link_of(self._route, BRIDGE_DEVICE)
        if link is None or link.kind != "bridge":
            raise InvalidArgument(f"interface {BRIDGE_DEVICE} is not ours: remove or rename it")
        self._set_ipv6(BRIDGE_DEVICE)
        subnets = [self._settings.subnet]
        if self._settings.ipv6:
            subnets.append(twin_subnet(self._settings.subnet))
        # An address without a task is refused, not sent out of the default route.
        here = {route.Route(destination=subnet, unreachable=True) for subnet in subnets}
        old = {r for r in self._found_routes() if r.unreachable} - here
        self._apply(
            [
                *map(route.delete_route, sorted(old)),
                route.set_up(link.index),
                *self._gateway_changes(link.index),
                *map(route.put_route, sorted(here)),
            ]
        )
        if self._settings.ipv6:
            self._apply(self._gateway6_changes(link.index))

    def _open_vxlan(self) -> None:
        settings = self._settings
        wanted = route.Vxlan(
            name=VXLAN_DEVICE,
            vni=VNI,
            local=settings.underlay_address,
            port=settings.data_path_port,
            mtu=settings.mtu,
            mac=vtep_mac(settings.subnet),
            link=self._underlay_index(),
        )
        link = route.link_of(self._route, VXLAN_DEVICE)
        if link is not None and link.kind != "vxlan":
            raise InvalidArgument(f"interface {VXLAN_DEVICE} is not ours: remove or rename it")
        if link is None or link.vxlan_port != wanted.port:
            self._check_data_path_port()
        if link is not None and not _same_tunnel(link, wanted):
            self._apply([route.delete_link(link.index)])
            link = None
        if link is None:
            self._apply([route.add_vxlan(wanted)])
        self._vxlan_index = socket.if_nametoindex(VXLAN_DEVICE)
        self._apply(
            [
                route.set_up(self._vxlan_index, mtu=wanted.mtu, mac=wanted.mac),
                *self._gateway_changes(self._vxlan_index),
            ]
        )
        # The effective value is the larger of all's and ours: only 2 (loose) works everywhere.
        sysctl.ensure(f"ipv4/conf/{VXLAN_DEVICE}/rp_filter", "2")
        sysctl.ensure(f"ipv4/conf/{VXLAN_DEVICE}/route_localnet", "1")
        self._set_ipv6(VXLAN_DEVICE)
        if self._settings.ipv6:
            self._allow_loopback6(self._vxlan_index)

    def _check_data_path_port(self) -> None:
        """Raise Unavailable when somebody else has the port.

        Two VXLAN devices may share one, and the kernel tells their packets apart by number. But we
        drop what does not come from a node of the cluster, and that would be the other's, too.
        """
        port = self._settings.data_path_port
        overlays = Path(self._settings.run_dir, "overlay", "netns")
        if overlays.is_dir() and any(overlays.iterdir()):
            return  # our own, which an earlier process left
        if is_taken("udp", port):
            raise Unavailable(
                f"data path port {port}/udp is in use by other software on this node, such as"
                " Docker's swarm, and we would drop its packets: take it off the node, or make the"
                " cluster with another --data-path-port"
            )

    def _gateway_changes(self, index: int) -> list[Message]:
        """Make the gateway the only address of a device.

        The bridge holds it for the tasks. vxi holds it too, because the kernel takes every packet
        on a device without an address for a martian, even with a loose rp_filter.
        """
        gateway = gateway_of(self._settings.subnet)
        stale = [
            route.delete_address(index, address, prefix_length)
            for address, prefix_length in route.found_addresses(self._route, index)
            if (address, prefix_length) != (gateway, 32)
        ]
        return [*stale, route.add_address(index, gateway)]

    def _gateway6_changes(self, index: int) -> list[Message]:
        """Make the gateway's twin the only IPv6 address of the bridge; vxi needs none."""
        gateway = twin(gateway_of(self._settings.subnet))
        found = route.found_addresses(self._route, index, socket.AF_INET6)
        stale = [route.delete_address(index, *entry) for entry in found if entry[0] != gateway]
        return [*stale, route.add_address(index, gateway)]

    def _set_ipv6(self, device: str) -> None:
        if not self._settings.ipv6:
            sysctl.try_write(f"ipv6/conf/{device}/disable_ipv6", "1")
            return
        sysctl.ensure(f"ipv6/conf/{device}/accept_ra", "0")
        sysctl.ensure(f"ipv6/conf/{device}/disable_ipv6", "0")

    def _allow_loopback6(self, index: int) -> None:
        """Let answers to ::1, translated back, come in from a device (route_localnet of IPv6)."""
        try:
            self._route.transact([route.add_route(loopback6_route(index))])
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise

    def _found_routes(self) -> set[route.Route]:
        return set().union(*(route.found_routes(self._route, f) for f in self._families()))

    def _found_rules(self) -> set[route.Rule]:
        return set().union(*(route.found_rules(self._route, f) for f in self._families()))

    @staticmethod
    def _families() -> Sequence[int]:
        """What may hold anything of ours: with IPv6 switched off, too, while the kernel has it."""
        return route.FAMILIES if ipv6.is_in_kernel() else route.FAMILIES[:1]

    def _underlay_index(self) -> int:
        name = self._settings.underlay_interface
        if name is None:
            return 0
        link = route.link_of(self._route, name)
        if link is None:
            raise InvalidArgument(f"underlay_interface {name} does not exist on this node")
        return link.index

    def _base_rules(self) -> list[route.Rule]:
        # The target of the jump does nothing: lookup goes on with the administrator's rules.
        rules: list[route.Rule] = []
        for family in self._wanted_families():
            nop = route.Rule(priority=_NOP_PRIORITY, family=family)
            jump = route.Rule(
                priority=_GOTO_PRIORITY, family=family, mask=self._mask, goto=_NOP_PRIORITY
            )
            rules += (nop, jump)
        if self._settings.ipv6:
            rules.append(
                route.Rule(
                    priority=_LOOPBACK6_PRIORITY,
                    family=socket.AF_INET6,
                    destination=LOOPBACK6,
                    table=LOOPBACK6_TABLE,
                )
            )
        return rules

    def _wanted_families(self) -> Sequence[int]:
        return route.FAMILIES if self._settings.ipv6 else route.FAMILIES[:1]

    def _open_rules(self) -> None:
        found = self._found_rules()
        self._apply([route.add_rule(rule) for rule in self._base_rules() if rule not in found])

    def _open_table(self) -> None:
        found = self._nft.version()
        self._nft.features = features_of(found or "")
        if found == skeleton.version_of(self._settings, self._nft.features):
            return
        carried: dict[str, Mapping[bytes, bytes]] = {}
        resting: dict[bytes, int] = {}
        if found is not None:
            for name in _CARRIED:
                with contextlib.suppress(NetlinkError):  # an older version may lack the set
                    carried[name] = self._nft.elements(name)
            with contextlib.suppress(NetlinkError):
                resting = self._nft.expirations_ms("resting")
        self._nft.features = skeleton.load_best(self._settings, carried)
        self._nft.apply(
            [], [Element("resting", key, timeout_ms=rest) for key, rest in resting.items() if rest]
        )

    def _tune_conntrack(self) -> None:
        """Short TIME_WAIT and a large table: each is a rate limit on new connections.

        In a namespace that is not the machine's first, the maximum belongs to somebody else.
        """
        sysctl.try_write("netfilter/nf_conntrack_tcp_timeout_time_wait", _TIME_WAIT_S)
        if int(sysctl.read("netfilter/nf_conntrack_max")) < _CONNTRACK_MAX:
            sysctl.try_write("netfilter/nf_conntrack_max", str(_CONNTRACK_MAX))

    def _routes(self, peers: Sequence[Peer]) -> set[route.Route]:
        routes: set[route.Route] = set()
        for peer in peers:
            routes |= self._routes_through(peer, peer.subnet, gateway_of(peer.subnet), "0.0.0.0/0")
            if self._serves6(peer):
                gateway = twin(gateway_of(peer.subnet))
                routes |= self._routes_through(peer, twin_subnet(peer.subnet), gateway, "::/0")
        return routes

    def _routes_through(
        self, peer: Peer, subnet: str, gateway: str, everywhere: str
    ) -> set[route.Route]:
        """To the peer's tasks, and for the answers to clients that came through the peer."""
        return {
            route.Route(
                destination=destination, device=self._vxlan_index, gateway=gateway, table=table
            )
            for destination, table in (
                (subnet, route.TABLE_MAIN),
                (everywhere, ROUTE_TABLE_BASE + peer.index),
            )
        }

    def _serves6(self, peer: Peer) -> bool:
        return self._settings.ipv6 and peer.ipv6

    def _is_peer_route(self, found: route.Route) -> bool:
        return found.device == self._vxlan_index and not found.local

    def _entry_changes(self, peers: Sequence[Peer]) -> list[Message]:
        index = self._vxlan_index
        neighbours = {gateway_of(peer.subnet): vtep_mac(peer.subnet) for peer in peers}
        neighbours |= {
            twin(gateway_of(peer.subnet)): vtep_mac(peer.subnet)
            for peer in peers
            if self._serves6(peer)
        }
        found: dict[str, bytes] = {}
        for family in self._families():
            found |= route.found_neighbours(self._route, index, family)
        forwarding = {vtep_mac(peer.subnet): peer.address for peer in peers}
        return [
            *_difference(
                found,
                neighbours,
                put=lambda address, mac: route.put_neighbour(index, address, mac),
                delete=lambda address: route.delete_neighbour(index, address),
            ),
            *_difference(
                route.found_forwarding(self._route, index),
                forwarding,
                put=lambda mac, remote: route.put_forwarding(index, mac, remote),
                delete=lambda mac: route.delete_forwarding(index, mac),
            ),
        ]

    def _sync_rules(self, peers: Sequence[Peer]) -> None:
        shift = self._settings.mark_shift
        wanted = set(self._base_rules())
        wanted |= {
            route.Rule(
                priority=_PEER_PRIORITY,
                family=family,
                mark=peer.index << shift,
                mask=self._mask,
                table=ROUTE_TABLE_BASE + peer.index,
            )
            for peer in peers
            for family in (route.FAMILIES if self._serves6(peer) else route.FAMILIES[:1])
        }
        found = self._found_rules()
        self._apply([route.add_rule(rule) for rule in sorted(wanted - found, reverse=True)])
        self._apply([route.delete_rule(rule) for rule in sorted(found - wanted)], absent_ok=True)

    def _sets(self, peers: Sequence[Peer]) -> dict[str, dict[bytes, bytes]]:
        shift = self._settings.mark_shift
        nodes = {socket.inet_aton(peer.address): b"" for peer in peers}
        nodes[socket.inet_aton(self._settings.underlay_address)] = b""
        macs = {peer.index: vtep_mac(peer.subnet) for peer in peers}
        return {
            "nodes": nodes,
            "nodes6": {
                socket.inet_pton(socket.AF_INET6, address): b""
                for peer in peers
                for address in peer.ipv6_addresses
            },
            "node_mac": {mac: struct.pack("=I", i << shift) for i, mac in macs.items()},
            "node_zone": {mac: struct.pack("=H", i) for i, mac in macs.items()},
        }

    def _set_changes(
        self, wanted: Mapping[str, Mapping[bytes, bytes]]
    ) -> tuple[list[Element], list[Element]]:
        deletes: list[Element] = []
        adds: list[Element] = []
        for name in _PEER_SETS:
            if name == "node_zone" and not self._nft.features.zones:
                continue
            found = self._nft.elements(name)
            new = wanted[name]
            deletes += elements_of(name, {k: v for k, v in found.items() if new.get(k) != v})
            adds += elements_of(name, {k: v for k, v in new.items() if found.get(k) != v})
        return deletes, adds

    def _apply(self, messages: Sequence[Message], *, absent_ok: bool = False) -> None:
        if not absent_ok:
            self._route.transact(messages)
            return
        for message in messages:
            try:
                self._route.transact([message])
            except NetlinkError as error:
                if error.errno not in (errno.ENOENT, errno.ESRCH, errno.ENODEV):
                    raise


def loopback6_route(device: int) -> route.Route:
    """What is addressed to ::1 may come in by this device, once it has been translated.

    The kernel drops such packets from the wire before anything could translate them.
    """
    return route.Route(destination=LOOPBACK6, device=device, table=LOOPBACK6_TABLE, local=True)


def _same_tunnel(found: route.Link, wanted: route.Vxlan) -> bool:
    return (found.vxlan_id, found.vxlan_port, found.vxlan_local, found.vxlan_link) == (
        wanted.vni,
        wanted.port,
        str(ipaddress.IPv4Address(wanted.local)),
        wanted.link,
    )


def _difference(
    found: Mapping[Key, Value],
    wanted: Mapping[Key, Value],
    *,
    put: Callable[[Key, Value], Message],
    delete: Callable[[Key], Message],
) -> list[Message]:
    """Messages that turn `found` into `wanted`; deletes come last."""
    puts = [put(key, value) for key, value in wanted.items() if found.get(key) != value]
    return puts + [delete(key) for key in found if key not in wanted]
