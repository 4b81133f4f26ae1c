"""What every data plane is told: the nodes of the mesh, who answers on each published port.

Derived from the store alone. A task is in the table while the store says that it runs, is wanted
and has an address, and that its node is not down. The table has a version that rises with each
change; agents acknowledge the version in force on their node, and a task is asked to stop only
after every node that is not down has acknowledged a version without it (bounded by a deadline): new
connections never meet a task that is about to stop.

No two peers have one underlay address, which would stop the mesh of every node: where a machine
left and joined again its old row stays until somebody removes it. The address belongs to the row
whose node is there; of two that are both there, to the one that joined first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address

from manager.dispatcher.overlays import OverlayChanges, OverlayTable
from manager.store.view import View
from shoal.model.defaults import is_wanted
from shoal.model.enums import (
    NodeState,
    PortProtocol,
    PublishMode,
    PublishPreference,
    PublishSource,
    TaskState,
)
from shoal.model.objects import Node, Service, Task
from shoal.model.published import weight_of
from shoal.model.row import Row
from shoal.model.types import NetworkKey, NodeDescription, PortConfig

LEFT_REMEMBERED_MAX = 50_000
ADDRESSES6_MAX = 16
FIRST_VERSION = 1
"""A node that has acknowledged nothing may still have the table of the manager that led before."""


class Member(Row, frozen=True):
    """A task that takes traffic."""

    task_id: str
    node_id: str
    address: str
    weight: int = 1


class PortRow(Row, frozen=True):
    """One published port and its members, by task id."""

    service_id: str
    protocol: PortProtocol
    published_port: int
    target_port: int
    publish_mode: PublishMode
    members: tuple[Member, ...]
    sticky: bool = False
    source: PublishSource = PublishSource.CLIENT
    prefer: PublishPreference = PublishPreference.ANY
    address: str = ""
    interface: str = ""

    @property
    def key(self) -> PortKey:
        """What the row is found by; a service may publish a port in one way only."""
        return PortKey(
            self.service_id, self.protocol, self.published_port, self.address, self.interface
        )

    def for_node(self, node_id: str) -> PortRow | None:
        """The row as one node serves it: in host mode its own tasks alone, None without any."""
        if self.publish_mode is PublishMode.INGRESS:
            return self
        own = tuple(member for member in self.members if member.node_id == node_id)
        return self.replaced(members=own) if own else None


class PortKey(Row, frozen=True):
    """Identity of a published port: a service may publish one number at several places."""

    service_id: str
    protocol: PortProtocol
    published_port: int
    address: str = ""
    interface: str = ""


class PeerRow(Row, frozen=True):
    """A node of the mesh. address: underlay address of its VXLAN; subnet: CIDR of its tasks.

    lost: the node is down, and connections to its tasks are over. It stays a peer: clients that
    enter there still reach the tasks of others if it was the managers alone that it has lost.
    ipv6: its tasks have IPv6 addresses. ipv6_addresses: the node's own.
    """

    node_id: str
    index: int
    address: str
    subnet: str
    lost: bool = False
    network_keys: tuple[NetworkKey, ...] = ()
    ipv6: bool = False
    ipv6_addresses: tuple[str, ...] = ()


class EndpointTable:
    """The current rows, and when each task left them."""

    def __init__(self) -> None:
        self.version = FIRST_VERSION
        self.ports: dict[PortKey, PortRow] = {}
        self.peers: dict[str, PeerRow] = {}
        self.overlays = OverlayTable()
        self._address_by_node: dict[str, str] = {}
        self._nodes_by_address: dict[str, set[str]] = {}
        self._keys_by_service: dict[str, set[PortKey]] = {}
        self._members: set[str] = set()
        self._left_at: dict[str, int] = {}

    def left_at(self, task_id: str) -> int:
        """Version at which the task left the table; 0 if it never was in it.

        A task that is in it has yet to leave: the result is a version that is still to come.
        """
        if task_id in self._members or self.overlays.is_ready(task_id):
            return self.version + 1
        return self._left_at.get(task_id, 0)

    def service_ids(self) -> frozenset[str]:
        """Services that have rows."""
        return frozenset(self._keys_by_service)

    def node_ids(self) -> frozenset[str]:
        """Nodes that have an underlay address, peers or not."""
        return frozenset(self._address_by_node)

    def nodes_at(self, address: str) -> frozenset[str]:
        """Nodes that have this underlay address; one of them at most is a peer."""
        return frozenset(self._nodes_by_address.get(address, ()))

    def forget_task(self, task_id: str) -> None:
        """The task is gone for good."""
        self._left_at.pop(task_id, None)

    def update_services(self, view: View, service_ids: Iterable[str]) -> set[PortKey]:
        """Compute the rows of some services anew. Result: the keys that changed."""
        changed: set[PortKey] = set()
        for service_id in service_ids:
            new = {row.key: row for row in _port_rows(view, service_id)}
            old_keys = self._keys_by_service.get(service_id, set())
            differing = {
                key for key in old_keys | new.keys() if self.ports.get(key) != new.get(key)
            }
            if not differing:
                continue
            changed |= differing
            self._note_members(old_keys, new)
            for key in old_keys - new.keys():
                del self.ports[key]
            self.ports.update(new)
            self._keys_by_service[service_id] = set(new)
            if not new:
                del self._keys_by_service[service_id]
        if changed:
            self.version += 1
        return changed

    def update_nodes(self, view: View, node_ids: Iterable[str]) -> set[str]:
        """Compute the peers of some nodes anew, and of those that have an address of theirs.

        Result: the node ids that changed.
        """
        concerned = set(node_ids)
        for node_id in tuple(concerned):
            concerned |= self._note_address(node_id, view.nodes.get(node_id))
        changed: set[str] = set()
        for node_id in concerned:
            row = self._peer_row(view, node_id)
            if self.peers.get(node_id) == row:
                continue
            changed.add(node_id)
            if row is None:
                del self.peers[node_id]
            else:
                self.peers[node_id] = row
        if changed:
            self.version += 1
        return changed

    def update_overlays(
        self,
        view: View,
        *,
        networks: Iterable[str] = (),
        services: Iterable[str] = (),
        tasks: Iterable[str] = (),
    ) -> OverlayChanges:
        """Compute the rows of overlay networks anew, as far as these objects are concerned."""
        changes = self.overlays.update(view, networks=networks, services=services, tasks=tasks)
        for task_id in changes.ended:
            self._note_left(task_id)
        for task_id in changes.began:
            self._left_at.pop(task_id, None)
        if changes.keys:
            self.version += 1
        return changes

    def _note_address(self, node_id: str, node: Node | None) -> set[str]:
        """Take note of where a node is now. Result: all nodes that were or are there too."""
        old, new = self._address_by_node.pop(node_id, ""), _address(node)
        if old:
            self._nodes_by_address[old].discard(node_id)
        if new:
            self._address_by_node[node_id] = new
            self._nodes_by_address.setdefault(new, set()).add(node_id)
        others = {*self._nodes_by_address.get(old, ()), *self._nodes_by_address.get(new, ())}
        if old and not self._nodes_by_address[old]:
            del self._nodes_by_address[old]
        return others

    def _peer_row(self, view: View, node_id: str) -> PeerRow | None:
        node = view.nodes.get(node_id)
        address = _address(node)
        if node is None or node.ingress is None or not address:
            return None
        there = map(view.nodes.get, self._nodes_by_address.get(address, ()))
        rivals = [other for other in there if other is not None and _address(other) == address]
        if node.id != max(rivals, key=_claim, default=node).id:
            return None
        return PeerRow(
            node_id=node.id,
            index=node.ingress.index,
            address=address,
            subnet=node.ingress.subnet,
            lost=is_down(node),
            network_keys=node.description.network_keys,
            ipv6=node.description.ingress_ipv6,
            ipv6_addresses=_addresses6(node.description),
        )

    def _note_members(self, old_keys: set[PortKey], new: Mapping[PortKey, PortRow]) -> None:
        before = {m.task_id for key in old_keys for m in self.ports[key].members}
        after = {m.task_id for row in new.values() for m in row.members}
        for task_id in before - after:
            self._members.discard(task_id)
            self._note_left(task_id)
        for task_id in after:
            self._members.add(task_id)
            self._left_at.pop(task_id, None)

    def _note_left(self, task_id: str) -> None:
        """The task takes no connections from the next version on, on ports or on networks."""
        self._left_at[task_id] = self.version + 1
        while len(self._left_at) > LEFT_REMEMBERED_MAX:
            del self._left_at[next(iter(self._left_at))]


def free_at(table: EndpointTable, task: Task) -> int:
    """Version in which no data plane balances to a task that is to stop; 0: none ever did.

    A task that was to stop already before this manager led was never in its table: any version of
    it will do, but nodes may still have the one of the manager before.
    """
    ports = task.endpoint.ports if task.endpoint is not None else ()
    return table.left_at(task.id) or (FIRST_VERSION if ports or task.networks else 0)


def takes_traffic(task: Task) -> bool:
    """Whether new connections may go to the task, as far as the task is concerned."""
    return task.status.state is TaskState.RUNNING and is_wanted(task) and bool(task.status.address)


def is_down(node: Node | None) -> bool:
    """Whether nothing of the node is reached any more."""
    return node is not None and node.status.state is NodeState.DOWN


def _port_rows(view: View, service_id: str) -> Iterable[PortRow]:
    service = view.services.get(service_id)
    if service is None or service.endpoint is None:
        return
    tasks = view.tasks_of_service(service_id)
    members = tuple(
        Member(task.id, task.node_id, task.status.address)
        for _, task in sorted(tasks.items())
        if takes_traffic(task) and not is_down(view.nodes.get(task.node_id))
    )
    yield from _rows_of(view, service, members)


def _rows_of(view: View, service: Service, members: tuple[Member, ...]) -> Iterable[PortRow]:
    for port in service.endpoint.ports if service.endpoint is not None else ():
        if port.published_port:
            yield PortRow(
                service_id=service.id,
                protocol=port.protocol,
                published_port=port.published_port,
                target_port=port.target_port,
                publish_mode=port.publish_mode,
                members=_weighted(view, port, members),
                sticky=port.sticky,
                source=port.source,
                prefer=port.prefer,
                address=port.address,
                interface=port.interface,
            )


def _weighted(view: View, port: PortConfig, members: tuple[Member, ...]) -> tuple[Member, ...]:
    if not port.weight_label:
        return members
    nodes = {member.node_id: view.nodes.get(member.node_id) for member in members}
    weights = {
        node_id: weight_of(port, {} if node is None else node.spec.annotations.labels)
        for node_id, node in nodes.items()
    }
    return tuple(member.replaced(weight=weights[member.node_id]) for member in members)


def _address(node: Node | None) -> str:
    """Underlay address of a node that has a place in the mesh; "" without one."""
    return "" if node is None or node.ingress is None else node.description.data_path_address


def _addresses6(description: NodeDescription) -> tuple[str, ...]:
    """Those a node names that are IPv6 addresses, so that no node harms the data plane of all."""
    found = (_address6(text) for text in description.ipv6_addresses[:ADDRESSES6_MAX])
    return tuple(sorted({address for address in found if address}))


def _address6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except ValueError:
        return ""
    return "" if address.scope_id else str(address)


def _claim(node: Node) -> tuple[bool, int, str]:
    """How good a node's claim to its address is: greater is better.

    Of nodes that are there the oldest has it, or a wrong address in the settings of a new node
    would cut off another. Of those that are gone it is the youngest: the machine joined last as it.
    """
    there = node.status.state in (NodeState.READY, NodeState.UNKNOWN)
    age = node.meta.created_at_ns
    return there, -age if there else age, node.id
