"""What every data plane is told: the nodes of the mesh and who answers on each published port.

Derived from the store alone. A task is in the table while the store says that it runs, is wanted
and has an address. The table has a version that rises with each change; agents acknowledge the
version in force on their node, and a task is asked to stop only after every connected node has
acknowledged a version without it (bounded by a deadline): new connections never meet a task that
is about to stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from manager.store.view import View
from shoal.model.defaults import is_wanted
from shoal.model.enums import PortProtocol, PublishMode, TaskState
from shoal.model.objects import Node, Service, Task
from shoal.model.row import Row

LEFT_REMEMBERED_MAX = 50_000


class Member(Row, frozen=True):
    """A task that takes traffic."""

    task_id: str
    node_id: str
    address: str


class PortRow(Row, frozen=True):
    """One published port and its members, by task id."""

    service_id: str
    protocol: PortProtocol
    published_port: int
    target_port: int
    publish_mode: PublishMode
    members: tuple[Member, ...]

    @property
    def key(self) -> PortKey:
        """What the row is found by; a service may publish a port in one way only."""
        return PortKey(self.service_id, self.protocol, self.published_port)

    def for_node(self, node_id: str) -> PortRow | None:
        """The row as one node serves it: in host mode its own tasks alone, None without any."""
        if self.publish_mode is PublishMode.INGRESS:
            return self
        own = tuple(member for member in self.members if member.node_id == node_id)
        return self.replaced(members=own) if own else None


class PortKey(Row, frozen=True):
    """Identity of a published port."""

    service_id: str
    protocol: PortProtocol
    published_port: int


class PeerRow(Row, frozen=True):
    """A node of the mesh. address: underlay address of its VXLAN; subnet: CIDR of its tasks."""

    node_id: str
    index: int
    address: str
    subnet: str


class EndpointTable:
    """The current rows, and when each task left them."""

    def __init__(self) -> None:
        self.version = 1
        self.ports: dict[PortKey, PortRow] = {}
        self.peers: dict[str, PeerRow] = {}
        self._keys_by_service: dict[str, set[PortKey]] = {}
        self._members: set[str] = set()
        self._left_at: dict[str, int] = {}

    def left_at(self, task_id: str) -> int:
        """Version at which the task left the table; 0 if it never was in it.

        A task that is in it has yet to leave: the result is a version that is still to come.
        """
        return self.version + 1 if task_id in self._members else self._left_at.get(task_id, 0)

    def service_ids(self) -> frozenset[str]:
        """Services that have rows."""
        return frozenset(self._keys_by_service)

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
        """Compute the peers of some nodes anew. Result: the node ids that changed."""
        changed: set[str] = set()
        for node_id in node_ids:
            row = _peer_row(view.nodes.get(node_id))
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

    def _note_members(self, old_keys: set[PortKey], new: Mapping[PortKey, PortRow]) -> None:
        before = {m.task_id for key in old_keys for m in self.ports[key].members}
        after = {m.task_id for row in new.values() for m in row.members}
        for task_id in before - after:
            self._members.discard(task_id)
            self._left_at[task_id] = self.version + 1
        for task_id in after:
            self._members.add(task_id)
            self._left_at.pop(task_id, None)
        while len(self._left_at) > LEFT_REMEMBERED_MAX:
            del self._left_at[next(iter(self._left_at))]


def takes_traffic(task: Task) -> bool:
    """Whether new connections may go to the task."""
    return task.status.state is TaskState.RUNNING and is_wanted(task) and bool(task.status.address)


def _port_rows(view: View, service_id: str) -> Iterable[PortRow]:
    service = view.services.get(service_id)
    if service is None or service.endpoint is None:
        return
    tasks = view.tasks_of_service(service_id)
    members = tuple(
        Member(task.id, task.node_id, task.status.address)
        for _, task in sorted(tasks.items())
        if takes_traffic(task)
    )
    yield from _rows_of(service, members)


def _rows_of(service: Service, members: tuple[Member, ...]) -> Iterable[PortRow]:
    for port in service.endpoint.ports if service.endpoint is not None else ():
        if port.published_port:
            yield PortRow(
                service_id=service.id,
                protocol=port.protocol,
                published_port=port.published_port,
                target_port=port.target_port,
                publish_mode=port.publish_mode,
                members=members,
            )


def _peer_row(node: Node | None) -> PeerRow | None:
    if node is None or node.ingress is None or not node.description.data_path_address:
        return None
    return PeerRow(
        node_id=node.id,
        index=node.ingress.index,
        address=node.description.data_path_address,
        subnet=node.ingress.subnet,
    )
