"""What data planes are told of overlay networks: their services, and who is on them and where.

Derived from the store alone. A task is on its networks from the moment it has a node until it has
ended, and takes new connections while it runs and is wanted. A node hears of a network while a task
of its own is on it, then of everything on it, and of no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import TypeVar

from manager.allocator.networks.subnets import vni_of
from manager.store.view import View
from shoal.model.defaults import is_encrypted, is_terminal, is_wanted
from shoal.model.enums import NodeState, TaskState
from shoal.model.objects import Network, Service, Task
from shoal.model.row import Row
from shoal.model.types import NetworkAttachment

KeyT = TypeVar("KeyT")
ItemT = TypeVar("ItemT")

MTU_OPTION = "com.docker.network.driver.mtu"


class OverlayKind(IntEnum):
    """In the order in which a node has to hear of them."""

    NETWORK = 0
    SERVICE = 1
    ENDPOINT = 2


class OverlayKey(Row, frozen=True, order=True):
    """Identity of a row. id: of the network, service or task."""

    kind: OverlayKind
    network_id: str
    id: str


class NetworkRow(Row, frozen=True):
    """A network. subnets: (CIDR, gateway). mtu 0: what the underlay leaves."""

    network_id: str
    name: str
    vni: int
    subnets: tuple[tuple[str, str], ...]
    mtu: int
    internal: bool
    encrypted: bool


class ServiceRow(Row, frozen=True):
    """A service on a network. virtual_ips: without mask; empty for DNSRR."""

    network_id: str
    service_id: str
    name: str
    virtual_ips: tuple[str, ...]
    aliases: tuple[str, ...]


class EndpointRow(Row, frozen=True):
    """A task on a network. addresses: without mask."""

    network_id: str
    task_id: str
    service_id: str
    node_id: str
    addresses: tuple[str, ...]
    names: tuple[str, ...]
    ready: bool


OverlayRow = NetworkRow | ServiceRow | EndpointRow


class OverlayChanges(Row, frozen=True):
    """What an update changed. moved: networks that nodes came to or went from, by node."""

    keys: frozenset[OverlayKey] = frozenset()
    moved: Mapping[str, frozenset[str]] = {}
    began: frozenset[str] = frozenset()
    """Tasks that take connections now, and did not before."""
    ended: frozenset[str] = frozenset()
    """Tasks that take none any more."""


class OverlayTable:
    """The current rows of all networks."""

    def __init__(self) -> None:
        self.rows: dict[OverlayKey, OverlayRow] = {}
        self.counts: Counter[OverlayKind] = Counter()
        """How many rows there are of each kind."""
        self._keys_by_subject: dict[tuple[OverlayKind, str], set[OverlayKey]] = {}
        self._keys_by_network: dict[str, set[OverlayKey]] = {}
        self._tasks_by_place: dict[tuple[str, str], set[str]] = {}

    def is_on(self, node_id: str, network_id: str) -> bool:
        """Whether a task of the node is on the network."""
        return (node_id, network_id) in self._tasks_by_place

    def is_ready(self, task_id: str) -> bool:
        """Whether the task takes connections on some network."""
        return any(row.ready for row in self.places_of(task_id))

    def places_of(self, task_id: str) -> list[EndpointRow]:
        """The task on its networks, in their order."""
        rows = (self.rows[key] for key in sorted(self._keys_by_subject.get(_task(task_id), ())))
        return [row for row in rows if isinstance(row, EndpointRow)]

    def keys_of(self, network_id: str) -> frozenset[OverlayKey]:
        """Everything that is on the network, and the network itself."""
        return frozenset(self._keys_by_network.get(network_id, ()))

    @property
    def network_ids(self) -> frozenset[str]:
        """Networks that have a row."""
        return self._ids_of(OverlayKind.NETWORK)

    @property
    def service_ids(self) -> frozenset[str]:
        """Services that are on a network."""
        return self._ids_of(OverlayKind.SERVICE)

    @property
    def task_ids(self) -> frozenset[str]:
        """Tasks that are on a network."""
        return self._ids_of(OverlayKind.ENDPOINT)

    def _ids_of(self, kind: OverlayKind) -> frozenset[str]:
        return frozenset(subject_id for of, subject_id in self._keys_by_subject if of is kind)

    def update(
        self,
        view: View,
        *,
        networks: Iterable[str] = (),
        services: Iterable[str] = (),
        tasks: Iterable[str] = (),
    ) -> OverlayChanges:
        """Compute the rows of some objects anew, those that are gone included."""
        changed: set[OverlayKey] = set()
        moved: dict[str, set[str]] = {}
        tasks = list(tasks)
        ready_before = {task_id: self.is_ready(task_id) for task_id in tasks}
        for network_id in networks:
            new = _network_rows(view, network_id)
            changed |= self._replace((OverlayKind.NETWORK, network_id), new, moved)
        for service_id in services:
            new = _service_rows(view, service_id)
            changed |= self._replace((OverlayKind.SERVICE, service_id), new, moved)
        for task_id in tasks:
            changed |= self._replace(_task(task_id), _task_rows(view, task_id), moved)
        ready = {task_id: self.is_ready(task_id) for task_id in ready_before}
        return OverlayChanges(
            keys=frozenset(changed),
            moved={node_id: frozenset(ids) for node_id, ids in moved.items()},
            began=frozenset(t for t, was in ready_before.items() if ready[t] and not was),
            ended=frozenset(t for t, was in ready_before.items() if was and not ready[t]),
        )

    def _replace(
        self,
        subject: tuple[OverlayKind, str],
        rows: Iterator[tuple[OverlayKey, OverlayRow]],
        moved: dict[str, set[str]],
    ) -> set[OverlayKey]:
        new = dict(rows)
        old = self._keys_by_subject.get(subject, set())
        changed = {key for key in old | new.keys() if self.rows.get(key) != new.get(key)}
        for key in changed:
            self._place(key, self.rows.get(key), new.get(key), moved)
            if key in new:
                self.counts[key.kind] += key not in self.rows
                self.rows[key] = new[key]
                self._keys_by_network.setdefault(key.network_id, set()).add(key)
            else:
                del self.rows[key]
                self.counts[key.kind] -= 1
                _discard(self._keys_by_network, key.network_id, key)
        if new:
            self._keys_by_subject[subject] = set(new)
        else:
            self._keys_by_subject.pop(subject, None)
        return changed

    def _place(
        self,
        key: OverlayKey,
        old: OverlayRow | None,
        new: OverlayRow | None,
        moved: dict[str, set[str]],
    ) -> None:
        """Take note of which nodes are on the network because of the task."""
        was = old.node_id if isinstance(old, EndpointRow) else ""
        now = new.node_id if isinstance(new, EndpointRow) else ""
        if was == now:
            return
        if was:
            _discard(self._tasks_by_place, (was, key.network_id), key.id)
            if not self.is_on(was, key.network_id):
                moved.setdefault(was, set()).add(key.network_id)
        if now:
            if not self.is_on(now, key.network_id):
                moved.setdefault(now, set()).add(key.network_id)
            self._tasks_by_place.setdefault((now, key.network_id), set()).add(key.id)


def _task(task_id: str) -> tuple[OverlayKind, str]:
    return OverlayKind.ENDPOINT, task_id


def _network_rows(view: View, network_id: str) -> Iterator[tuple[OverlayKey, OverlayRow]]:
    network = view.networks.get(network_id)
    if network is not None and network.driver_state is not None:
        yield OverlayKey(OverlayKind.NETWORK, network_id, network_id), _network_row(network)


def _network_row(network: Network) -> NetworkRow:
    driver = network.spec.driver
    return NetworkRow(
        network_id=network.id,
        name=network.spec.annotations.name,
        vni=vni_of(network),
        subnets=tuple((config.subnet, config.gateway) for config in network.ipam.configs),
        mtu=int(driver.options.get(MTU_OPTION, "0")) if driver is not None else 0,
        internal=network.spec.internal,
        encrypted=is_encrypted(network),
    )


def _service_rows(view: View, service_id: str) -> Iterator[tuple[OverlayKey, OverlayRow]]:
    service = view.services.get(service_id)
    if service is None:
        return
    for wish in service.spec.task.networks:
        row = ServiceRow(
            network_id=wish.target,
            service_id=service_id,
            name=service.spec.annotations.name,
            virtual_ips=_virtual_ips(service, wish.target),
            aliases=wish.aliases,
        )
        yield OverlayKey(OverlayKind.SERVICE, wish.target, service_id), row


def _virtual_ips(service: Service, network_id: str) -> tuple[str, ...]:
    held = service.endpoint.virtual_ips if service.endpoint is not None else ()
    return tuple(_bare(one.address) for one in held if one.network_id == network_id)


def _task_rows(view: View, task_id: str) -> Iterator[tuple[OverlayKey, OverlayRow]]:
    task = view.tasks.get(task_id)
    if task is None or not task.node_id or task.status.state < TaskState.ASSIGNED:
        return
    if is_terminal(task):
        return
    for held in task.networks:
        row = EndpointRow(
            network_id=held.network_id,
            task_id=task_id,
            service_id=task.service_id,
            node_id=task.node_id,
            addresses=tuple(map(_bare, held.addresses)),
            names=_names(task, held),
            ready=_is_ready(view, task),
        )
        yield OverlayKey(OverlayKind.ENDPOINT, held.network_id, task_id), row


def _names(task: Task, held: NetworkAttachment) -> tuple[str, ...]:
    """What a task alone is called; aliases of services' tasks are names of the service."""
    aliases = () if task.service_id else held.aliases
    return tuple(name for name in (task.annotations.name, *aliases) if name)


def _is_ready(view: View, task: Task) -> bool:
    node = view.nodes.get(task.node_id)
    is_down = node is not None and node.status.state is NodeState.DOWN
    return task.status.state is TaskState.RUNNING and is_wanted(task) and not is_down


def _bare(address: str) -> str:
    return address.partition("/")[0]


def _discard(index: dict[KeyT, set[ItemT]], key: KeyT, item: ItemT) -> None:
    bucket = index[key]
    bucket.discard(item)
    if not bucket:
        del index[key]
