"""A view with changes on top that are not committed yet.

Planners that feed each other in one round (orchestrator, allocator, scheduler) read what the one
before them proposed, and `merged` gives the whole as one transaction: a task is created, given its
addresses and put on a node in a single entry. The store below is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from manager.store.view import (
    TableView,
    View,
    is_unassigned,
    oldest_first,
    resolve_in,
    unique_name,
)
from shoal.errors import violated
from shoal.model.enums import ActionKind
from shoal.model.objects import (
    AnyObject,
    Cluster,
    Config,
    Network,
    Node,
    Revision,
    Secret,
    Service,
    Stack,
    Task,
)
from shoal.model.plan import Change

RowT = TypeVar("RowT", bound=AnyObject)
DerivedT = TypeVar("DerivedT")


class OverlayTable(Generic[RowT]):
    """A table with uncommitted changes on top."""

    def __init__(self, below: TableView[RowT], kind: str) -> None:
        self._below = below
        self._kind = kind
        self.changed: dict[str, RowT | None] = {}

    def get(self, object_id: str) -> RowT | None:
        """The object with that id."""
        if object_id in self.changed:
            return self.changed[object_id]
        return self._below.get(object_id)

    def by_name(self, name: str) -> RowT | None:
        """The object with that name, upper and lower case alike; the youngest of several nodes."""
        found = self.named(name)
        return found[-1] if found else None

    def named(self, name: str) -> Sequence[RowT]:
        """All objects with that name, oldest first: at most one, but for nodes."""
        if not name:
            return ()
        found = [row for row in self._below.named(name) if row.id not in self.changed]
        found.extend(
            row
            for row in self.changed.values()
            if row is not None and unique_name(row) == name.lower()
        )
        return oldest_first(found)

    def resolve(self, reference: str) -> RowT:
        """The object by full id, exact name or unique id prefix, in this order."""
        return resolve_in(self, self._kind, reference)

    def __iter__(self) -> Iterator[RowT]:
        """Every object."""
        for row in self._below:
            if row.id not in self.changed:
                yield row
        for changed in self.changed.values():
            if changed is not None:
                yield changed

    def __len__(self) -> int:
        """Number of objects."""
        added = sum(
            (row is not None) - (self._below.get(object_id) is not None)
            for object_id, row in self.changed.items()
        )
        return len(self._below) + added


class Overlay:
    """A View over another, with `apply` for changes. Implements `manager.store.view.View`."""

    def __init__(self, below: View) -> None:
        self._below = below
        self.version = below.version
        self.nodes: OverlayTable[Node] = OverlayTable(below.nodes, "node")
        self.services: OverlayTable[Service] = OverlayTable(below.services, "service")
        self.tasks: OverlayTable[Task] = OverlayTable(below.tasks, "task")
        self.networks: OverlayTable[Network] = OverlayTable(below.networks, "network")
        self.clusters: OverlayTable[Cluster] = OverlayTable(below.clusters, "cluster")
        self.secrets: OverlayTable[Secret] = OverlayTable(below.secrets, "secret")
        self.configs: OverlayTable[Config] = OverlayTable(below.configs, "config")
        self.stacks: OverlayTable[Stack] = OverlayTable(below.stacks, "stack")
        self.revisions: OverlayTable[Revision] = OverlayTable(below.revisions, "revision")
        self._by_class: dict[type[AnyObject], OverlayTable[Any]] = {
            Node: self.nodes,
            Service: self.services,
            Task: self.tasks,
            Network: self.networks,
            Cluster: self.clusters,
            Secret: self.secrets,
            Config: self.configs,
            Stack: self.stacks,
            Revision: self.revisions,
        }
        self._by_service: dict[str, dict[str, Task]] = {}
        self._by_node: dict[str, dict[str, Task]] = {}
        self._unassigned: dict[str, Task] | None = None
        self._merged: dict[tuple[type[AnyObject], str], Change] = {}
        self._derived: dict[str, tuple[Service, Any]] = {}

    @property
    def cluster(self) -> Cluster | None:
        """The cluster, once it is initialised."""
        return next(iter(self.clusters), None)

    def tasks_of_service(self, service_id: str) -> Mapping[str, Task]:
        """Tasks of a service by task id."""
        found = self._by_service.get(service_id)
        return self._below.tasks_of_service(service_id) if found is None else found

    def tasks_of_node(self, node_id: str) -> Mapping[str, Task]:
        """Tasks assigned to a node by task id."""
        found = self._by_node.get(node_id)
        return self._below.tasks_of_node(node_id) if found is None else found

    def unassigned_tasks(self) -> Mapping[str, Task]:
        """Tasks that the scheduler has not assigned yet, by task id."""
        found = self._unassigned
        return self._below.unassigned_tasks() if found is None else found

    def derived(self, service: Service, derive: Callable[[], DerivedT]) -> DerivedT:
        """What `derive` says of a service's tasks, asked again only when one of them has changed.

        The planners of a round ask the same of the same tasks, one after the other; nothing is
        kept beyond the round.
        """
        known = self._derived.get(service.id)
        if known is None or known[0] is not service:
            known = self._derived[service.id] = (service, derive())
        found: DerivedT = known[1]
        return found

    def apply(self, changes: Iterable[Change]) -> None:
        """Put changes on top."""
        for change in changes:
            row = change.object
            table = self._by_class[type(row)]
            old = table.get(row.id)
            table.changed[row.id] = None if change.kind is ActionKind.REMOVE else row
            if isinstance(row, Task):
                self._derived.pop(row.service_id, None)
                self._reindex(old, None if change.kind is ActionKind.REMOVE else row)
            self._merge(change)

    def merged(self) -> tuple[Change, ...]:
        """Everything applied so far, at most one change per object."""
        return tuple(self._merged.values())

    def _merge(self, change: Change) -> None:
        key = (type(change.object), change.object.id)
        before = self._merged.pop(key, None)
        if before is None or before.kind is ActionKind.UPDATE:
            self._merged[key] = change
        elif before.kind is not ActionKind.CREATE:
            violated("change after removal", id=change.object.id)
        elif change.kind is ActionKind.UPDATE:
            self._merged[key] = Change(kind=ActionKind.CREATE, object=change.object)

    def _reindex(self, old: Task | None, new: Task | None) -> None:
        if old is not None:
            self._bucket(self._by_service, old.service_id, self._below.tasks_of_service).pop(
                old.id, None
            )
            self._bucket(self._by_node, old.node_id, self._below.tasks_of_node).pop(old.id, None)
        if new is not None:
            self._bucket(self._by_service, new.service_id, self._below.tasks_of_service)[new.id] = (
                new
            )
            self._bucket(self._by_node, new.node_id, self._below.tasks_of_node)[new.id] = new
        if any(task is not None and is_unassigned(task) for task in (old, new)):
            self._reindex_unassigned(old, new)

    def _reindex_unassigned(self, old: Task | None, new: Task | None) -> None:
        if self._unassigned is None:
            self._unassigned = dict(self._below.unassigned_tasks())
        if old is not None:
            self._unassigned.pop(old.id, None)
        if new is not None and is_unassigned(new):
            self._unassigned[new.id] = new

    @staticmethod
    def _bucket(index: dict[str, dict[str, Task]], key: str, below: Any) -> dict[str, Task]:
        bucket = index.get(key)
        if bucket is None:
            bucket = index[key] = dict(below(key))
        return bucket
