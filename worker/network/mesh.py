"""Published ports: their slot tables in the kernel's maps, the sockets and sysctls that hold them.

Invariant: one `set_ports` is one nft transaction; connections that exist keep their address
translation, only new ones see the new tables. What a restart finds in the maps is the basis of the
next tables, so survivors keep their slots across restarts. A port whose number a host process
listens on is left to that process and reported.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Sequence, Set
from typing import NamedTuple

import msgspec

from worker.network import sysctl
from worker.network.api import Endpoint, NetworkSettings, PortReport, PortStatus, PublishedPort
from worker.network.conntrack import Match
from worker.network.core import (
    NARROW_SLOTS,
    PROTOCOLS,
    PortTable,
    Reach,
    check_port,
    element_changes,
    endpoints_of,
    local_view,
    next_table,
    table_from_slots,
    units_of,
)
from worker.network.netlink import NetlinkError
from worker.network.nft import Element, parse_endpoint
from worker.network.places import (
    PortId,
    TableId,
    addresses_at,
    found_ports,
    found_slot,
    no_address,
    port_element,
    slot_element,
    slot_place,
    versions_at,
)
from worker.network.ports import PortHolder
from worker.network.slots import SLOT_MAPS, MeshSocket

_UDP = PROTOCOLS["udp"]
_DRIFTED = frozenset({errno.ENOENT, errno.EEXIST})


class PortsOutcome(msgspec.Struct, frozen=True):
    """The report for the caller, and the tracked connections to forget."""

    report: PortReport
    forget: tuple[Match, ...]


class _Batch:
    """The elements to delete and add in one transaction, and what depends on their success."""

    def __init__(self) -> None:
        self.deletes: list[Element] = []
        self.adds: list[Element] = []
        self.forget: list[Match] = []


class _Accepted:
    """Ports of one `set_ports` that can be served, none twice at one place."""

    def __init__(self) -> None:
        self.ports: dict[PortId, PublishedPort] = {}
        self._placed: set[PortId] = set()

    def has(self, port_id: PortId) -> bool:
        """Whether a port answers where this one would."""
        if not port_id.address:
            return port_id in self.ports or port_id in self._placed
        return port_id in self.ports or port_id._replace(address="") in self.ports

    def add(self, port_id: PortId, port: PublishedPort) -> None:
        """Note a port that `has` does not know."""
        self.ports[port_id] = port
        if port_id.address:
            self._placed.add(port_id._replace(address=""))


class _View(NamedTuple):
    """A port over one family: with all its endpoints, and with those this node balances over."""

    asked: PublishedPort
    everywhere: PublishedPort
    here: PublishedPort


class Mesh:
    """This node's published ports; every method blocks and belongs to one thread."""

    def __init__(self, settings: NetworkSettings, nft: MeshSocket) -> None:
        self._subnet = ipaddress.IPv4Network(settings.subnet)
        self._reach6 = Reach([settings.subnet] if settings.ipv6 else [])
        self._nft = nft
        self._holder = PortHolder()
        self._tables: dict[TableId, PortTable] = {}
        self._built: dict[TableId, _View] = {}
        self._built_for = self._reach6
        self._public: set[PortId] = set()
        self._by_node: set[PortId] = set()
        self._reserved: set[PortId] = set()
        self._stray: list[Element] = []

    def open(self) -> None:
        """Read back what the kernel's maps hold."""
        self._built.clear()
        self._tables.clear()
        self._stray.clear()
        found: dict[TableId, dict[str, dict[int, Endpoint]]] = {}
        for name, kind in SLOT_MAPS.items():
            for key, value in self._nft.elements(name).items():
                port_id, slot = found_slot(key)
                by_map = found.setdefault(TableId(port_id, kind.version), {})
                by_map.setdefault(name, {})[slot] = parse_endpoint(value)
        for table_id, by_map in found.items():
            self._adopt(table_id, by_map)
        self._public = found_ports(self._nft, "pub")
        self._by_node = found_ports(self._nft, "by_node")
        self._reserved = found_ports(self._nft, "reserved", kinds=("",))

    def close(self) -> None:
        """Let the ports' sockets go; the kernel keeps balancing."""
        self._holder.close()

    def remove(self) -> None:
        """Give back the reserved port numbers (before the table that lists them goes)."""
        self._holder.close()
        sysctl.reserve_ports(remove={one.port for one in self._reserved})

    def set_reach6(self, reach: Reach) -> None:
        """Which nodes' tasks have IPv6 addresses, from the next `set_ports` on."""
        if reach.subnets != self._reach6.subnets:
            self._reach6 = reach

    def set_ports(self, ports: Sequence[PublishedPort]) -> PortsOutcome:
        """Make `ports` all that this node publishes. Raises: NetlinkError."""
        wanted, statuses = self._accept(ports)
        try:
            batch = self._commit(wanted)
        except NetlinkError as error:
            if error.errno not in _DRIFTED:
                raise
            self.open()  # somebody changed our maps: start from what is there
            batch = self._commit(wanted)
        self._hold(wanted.keys())
        changed = len(batch.deletes) + len(batch.adds)
        report = PortReport(tuple(statuses), changed, frozenset(wanted))
        return PortsOutcome(report, tuple(batch.forget))

    def _accept(
        self, ports: Sequence[PublishedPort]
    ) -> tuple[dict[PortId, PublishedPort], list[PortStatus]]:
        """The ports this node can serve, and a status for each one asked for."""
        accepted = _Accepted()
        statuses: list[PortStatus] = []
        for port in ports:
            error = check_port(port) or self._too_many(port) or self._add(port, accepted)
            statuses.append(PortStatus(port.protocol, port.published_port, error))
        return accepted.ports, statuses

    def _too_many(self, port: PublishedPort) -> str:
        """Why so many tasks cannot be balanced over here; empty when they can."""
        if self._nft.features.slot_keys or (units := units_of(port)) <= NARROW_SLOTS:
            return ""
        weighed = f" with weights of {units} in all" if port.weights else ""
        return (
            f"port {port.published_port}/{port.protocol} has {len(port.endpoints)} tasks{weighed}, "
            f"and this node's nft balances over {NARROW_SLOTS} at most: upgrade nftables"
        )

    def _add(self, port: PublishedPort, accepted: _Accepted) -> str:
        """Add the port wherever it answers here; returns why not, if not everywhere there."""
        addresses = addresses_at(port.address, port.interface)
        errors: list[str] = []
        if not addresses:
            name = PortId(port.protocol, port.published_port)
            errors.append(f"port {name}: {no_address(port.interface)}")
        for address in addresses:
            port_id = PortId(port.protocol, port.published_port, address)
            twice = f"port {port_id} is published twice" if accepted.has(port_id) else ""
            error = twice or self._holder.hold(*port_id)
            if error:
                errors.append(error)
            else:
                accepted.add(port_id, _at(port, address))
        return "; ".join(errors)

    def _hold(self, wanted: Set[PortId]) -> None:
        """Let go of what is not wanted any more, and hold what was in the way of it till now."""
        for port_id in self._holder.held:
            if port_id not in wanted:
                self._holder.release(*port_id)
        for port_id in wanted - set(self._holder.held):
            self._holder.hold(*port_id)

    def _commit(self, wanted: dict[PortId, PublishedPort]) -> _Batch:
        batch = _Batch()
        batch.deletes += self._stray
        views = self._views_of(wanted)
        tables = self._plan_tables(views, batch)
        self._plan_public(wanted, batch)
        by_node = self._plan_by_node(wanted, batch)
        reserved = self._plan_reserved(wanted, batch)
        self._nft.apply(batch.deletes, batch.adds)
        self._stray.clear()
        self._tables = tables
        self._built, self._built_for = views, self._reach6
        self._public = set(wanted)
        self._by_node = by_node
        self._reserved = reserved
        return batch

    def _views_of(self, wanted: dict[PortId, PublishedPort]) -> dict[TableId, _View]:
        """Each port as it is served over IPv4 and over IPv6; those of before where it is the same.

        Hundreds of ports may be wanted of which one has changed.
        """
        views: dict[TableId, _View] = {}
        known = self._built if self._built_for is self._reach6 else {}
        twins = self._reach6.view
        for port_id, port in wanted.items():
            for version in versions_at(port_id.address):
                table_id = TableId(port_id, version)
                view = known.get(table_id)
                if view is None or view.asked != port:
                    here = local_view(port, self._subnet)
                    both = (port, here) if version == 4 else (twins(port), twins(here))
                    view = _View(port, *both)
                views[table_id] = view
        return views

    def _plan_tables(self, views: dict[TableId, _View], batch: _Batch) -> dict[TableId, PortTable]:
        tables: dict[TableId, PortTable] = {}
        for table_id in [*views, *(self._tables.keys() - views.keys())]:
            view, old = views.get(table_id), self._tables.get(table_id)
            port = None if view is None else view.everywhere
            if view is not None and old is not None and self._built.get(table_id) == view:
                tables[table_id] = old
                continue
            new = None if view is None else next_table(old, view.here, version=table_id.version)
            change = element_changes(old, new)
            batch.deletes += (slot_element(table_id, e) for e in change.deletes)
            batch.adds += (slot_element(table_id, e) for e in change.adds)
            if table_id.port.protocol == "udp":
                over = self._flows_over(table_id, port) | (
                    change.endpoints_gone - endpoints_of(port)
                )
                batch.forget += (
                    Match(address=gone.address, protocol=_UDP, port=gone.port)
                    for gone in sorted(over)
                )
            if new is not None:
                tables[table_id] = new
        return tables

    def _flows_over(self, table_id: TableId, port: PublishedPort | None) -> frozenset[Endpoint]:
        """Endpoints whose flows are over: they are gone, or shall see clients otherwise.

        One that is only not preferred any more keeps its flows.
        """
        port_id, built = table_id.port, self._built.get(table_id)
        before, after = endpoints_of(built.everywhere if built else None), endpoints_of(port)
        if port is None or port_id not in self._public:
            return before - after
        turned = (port.source == "node") != (port_id in self._by_node)
        return before | after if turned else before - after

    def _plan_public(self, wanted: dict[PortId, PublishedPort], batch: _Batch) -> None:
        added = wanted.keys() - self._public
        batch.deletes += (port_element("pub", p) for p in sorted(self._public - wanted.keys()))
        batch.adds += (port_element("pub", port_id) for port_id in sorted(added))
        # A client that sent before the port was published has an untranslated entry: forget it.
        batch.forget += (
            Match(address=one.address, protocol=_UDP, port=one.port)
            for one in sorted(added)
            if one.protocol == "udp"
        )

    def _plan_by_node(self, wanted: dict[PortId, PublishedPort], batch: _Batch) -> set[PortId]:
        """Ports whose tasks see this node instead of the client."""
        after = {port_id for port_id, port in wanted.items() if port.source == "node"}
        batch.deletes += (port_element("by_node", p) for p in sorted(self._by_node - after))
        batch.adds += (port_element("by_node", p) for p in sorted(after - self._by_node))
        return after

    def _plan_reserved(self, wanted: dict[PortId, PublishedPort], batch: _Batch) -> set[PortId]:
        """Reserve what only we need: the administrator's own reservations stay."""
        if wanted.keys() == self._public:
            return self._reserved
        ours = {one.port for one in self._reserved}
        foreign = sysctl.reserved_ports() - ours
        numbers_of = {port_id._replace(address="") for port_id in wanted}  # no address has its own
        after = {one for one in numbers_of if one.port not in foreign}
        batch.deletes += (port_element("reserved", p) for p in sorted(self._reserved - after))
        batch.adds += (port_element("reserved", p) for p in sorted(after - self._reserved))
        numbers = {one.port for one in after}
        sysctl.reserve_ports(add=numbers, remove=ours - numbers)
        return after

    def _adopt(self, table_id: TableId, by_map: dict[str, dict[int, Endpoint]]) -> None:
        name = next(iter(by_map))
        table = table_from_slots(name, by_map[name])
        if table is not None and len(by_map) == 1 and table_id.port.protocol in PROTOCOLS:
            self._tables[table_id] = table
            return
        # Not a table this program writes: taken out with the next transaction.
        for map_name, owners in by_map.items():
            self._stray += (Element(map_name, slot_place(table_id.port, slot)) for slot in owners)


def _at(port: PublishedPort, address: str) -> PublishedPort:
    """A port of an interface as it is at one of its addresses."""
    if not port.interface:
        return port
    return msgspec.structs.replace(port, address=address, interface="")
