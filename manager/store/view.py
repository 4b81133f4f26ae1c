"""Reads of the store: tables with secondary indexes, as planners and the control API see them.

A View is valid until the caller awaits: commits are applied by the event loop's thread between
awaits, so synchronous code always sees one consistent version. Rows are frozen and may be kept
for as long as one likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from shoal.errors import InvalidArgument, NotFound
from shoal.model.enums import TaskState
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

RowT = TypeVar("RowT", bound=AnyObject)
RowT_co = TypeVar("RowT_co", bound=AnyObject, covariant=True)


class TableView(Protocol[RowT_co]):
    """One kind of object, read-only."""

    def get(self, object_id: str) -> RowT_co | None:
        """The object with that id."""
        ...

    def by_name(self, name: str) -> RowT_co | None:
        """The object with that name, upper and lower case alike; the youngest of several nodes."""
        ...

    def named(self, name: str) -> Sequence[RowT_co]:
        """All objects with that name, oldest first: at most one, but for nodes."""
        ...

    def resolve(self, reference: str) -> RowT_co:
        """The object by full id, exact name or unique id prefix, in this order.

        Raises: NotFound; InvalidArgument when a name or prefix fits several objects.
        """
        ...

    def __iter__(self) -> Iterator[RowT_co]:
        """Every object, in no order that means anything."""
        ...

    def __len__(self) -> int:
        """Number of objects."""
        ...


class View(Protocol):
    """Everything the store holds, at one version."""

    @property
    def version(self) -> int:
        """Index of the last applied entry."""
        ...

    @property
    def nodes(self) -> TableView[Node]:
        """All nodes."""
        ...

    @property
    def services(self) -> TableView[Service]:
        """All services."""
        ...

    @property
    def tasks(self) -> TableView[Task]:
        """All tasks, dead ones of the history included."""
        ...

    @property
    def networks(self) -> TableView[Network]:
        """All networks."""
        ...

    @property
    def clusters(self) -> TableView[Cluster]:
        """The cluster: at most one row."""
        ...

    @property
    def secrets(self) -> TableView[Secret]:
        """All secrets."""
        ...

    @property
    def configs(self) -> TableView[Config]:
        """All configs."""
        ...

    @property
    def stacks(self) -> TableView[Stack]:
        """All revisions of all stacks."""
        ...

    @property
    def revisions(self) -> TableView[Revision]:
        """The specs that services have and had, by `manager.orchestrator.revisions.revision_id`."""
        ...

    @property
    def cluster(self) -> Cluster | None:
        """The cluster, once it is initialised."""
        ...

    def tasks_of_service(self, service_id: str) -> Mapping[str, Task]:
        """Tasks of a service by task id; do not keep the mapping over an await."""
        ...

    def tasks_of_node(self, node_id: str) -> Mapping[str, Task]:
        """Tasks assigned to a node by task id; do not keep the mapping over an await."""
        ...

    def unassigned_tasks(self) -> Mapping[str, Task]:
        """Tasks below ASSIGNED, by task id; do not keep the mapping over an await.

        Those of global services have their node from the beginning.
        """
        ...


def is_unassigned(task: Task) -> bool:
    """Whether the task still waits for the allocator or the scheduler."""
    return task.status.state < TaskState.ASSIGNED


class Table(Generic[RowT]):
    """One kind of object with its primary key and its name index; the writable side."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.rows: dict[str, RowT] = {}
        self._ids_by_name: dict[str, set[str]] = {}

    def get(self, object_id: str) -> RowT | None:
        """The object with that id."""
        return self.rows.get(object_id)

    def by_name(self, name: str) -> RowT | None:
        """The object with that name, upper and lower case alike; the youngest of several nodes."""
        found = self.named(name)
        return found[-1] if found else None

    def named(self, name: str) -> Sequence[RowT]:
        """All objects with that name, oldest first: at most one, but for nodes."""
        return oldest_first(self.rows[row_id] for row_id in self._ids_by_name.get(name.lower(), ()))

    def resolve(self, reference: str) -> RowT:
        """The object by full id, exact name or unique id prefix, in this order."""
        return resolve_in(self, self.kind, reference)

    def __iter__(self) -> Iterator[RowT]:
        """Every object."""
        return iter(self.rows.values())

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.rows)

    def put(self, row: RowT) -> None:
        """Insert or replace, keeping the name index right."""
        old = self.rows.get(row.id)
        name = unique_name(row)
        if old is not None and unique_name(old) != name:
            self._forget_name(old)
        if name:
            self._ids_by_name.setdefault(name, set()).add(row.id)
        self.rows[row.id] = row

    def remove(self, object_id: str) -> RowT | None:
        """Take out an object."""
        old = self.rows.pop(object_id, None)
        if old is not None:
            self._forget_name(old)
        return old

    def take(self, other: Table[RowT]) -> None:
        """Hold the rows of another table in place of one's own."""
        self.rows = dict(other.rows)
        self._ids_by_name = {name: set(ids) for name, ids in other._ids_by_name.items()}

    def _forget_name(self, row: RowT) -> None:
        name = unique_name(row)
        ids = self._ids_by_name.get(name)
        if ids is not None:
            ids.discard(row.id)
            if not ids:
                del self._ids_by_name[name]


def resolve_in(table: TableView[RowT], kind: str, reference: str) -> RowT:
    """The object by full id, exact name or unique id prefix, in this order.

    Raises: NotFound; InvalidArgument without a reference, or when it fits several objects.
    """
    if not reference:
        raise InvalidArgument(f"{kind}: a name or id is needed")
    found = table.get(reference)
    if found is not None:
        return found
    matches = table.named(reference)
    if not matches:
        matches = [row for row in table if row.id.startswith(reference)]
    if len(matches) > 1:
        raise InvalidArgument(
            f"{kind} {reference} is ambiguous ({len(matches)} matches found): "
            "give the id, or more characters of it"
        )
    if not matches:
        raise NotFound(f"{kind} {reference} not found")
    return matches[0]


def oldest_first(rows: Iterable[RowT]) -> list[RowT]:
    """Sorted by age; those made by the same entry, or not committed yet, by id."""
    return sorted(rows, key=lambda row: (row.meta.created_at_ns, row.id))


def unique_name(row: AnyObject) -> str:
    """The name that no other object of the kind may have, in lower case; "" where none is unique.

    Tasks and revisions have no unique name. Nodes are found by their name or hostname, which may
    repeat: then only their ids name one of them.
    """
    if isinstance(row, Task | Revision):
        return ""
    if isinstance(row, Node):
        return (row.spec.annotations.name or row.description.hostname).lower()
    return row.spec.annotations.name.lower()
