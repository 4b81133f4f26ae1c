"""Reads of the store: tables with secondary indexes, as planners and the control API see them.

A View is valid until the caller awaits: commits are applied by the event loop's thread between
awaits, so synchronous code always sees one consistent version. Rows are frozen and may be kept
for as long as one likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from shoal.errors import InvalidArgument, NotFound
from shoal.model.objects import (
    AnyObject,
    Cluster,
    Config,
    Network,
    Node,
    Secret,
    Service,
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
        """The object with that name, upper and lower case alike."""
        ...

    def resolve(self, reference: str) -> RowT_co:
        """The object by full id, exact name or unique id prefix, in this order.

        Raises: NotFound; InvalidArgument when a prefix fits several objects.
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
        """Tasks without a node, by task id; do not keep the mapping over an await."""
        ...


class Table(Generic[RowT]):
    """One kind of object with its primary key and its name index; the writable side."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.rows: dict[str, RowT] = {}
        self._id_by_name: dict[str, str] = {}

    def get(self, object_id: str) -> RowT | None:
        """The object with that id."""
        return self.rows.get(object_id)

    def by_name(self, name: str) -> RowT | None:
        """The object with that name, upper and lower case alike."""
        object_id = self._id_by_name.get(name.lower())
        return None if object_id is None else self.rows[object_id]

    def resolve(self, reference: str) -> RowT:
        """The object by full id, exact name or unique id prefix, in this order."""
        if not reference:
            raise InvalidArgument(f"{self.kind}: a name or id is needed")
        found = self.rows.get(reference) or self.by_name(reference)
        if found is not None:
            return found
        matches = [row for object_id, row in self.rows.items() if object_id.startswith(reference)]
        if len(matches) > 1:
            raise InvalidArgument(
                f"{self.kind} {reference} is ambiguous ({len(matches)} matches found): "
                "use more characters of the id"
            )
        if not matches:
            raise NotFound(f"{self.kind} {reference} not found")
        return matches[0]

    def __iter__(self) -> Iterator[RowT]:
        """Every object."""
        return iter(self.rows.values())

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.rows)

    def put(self, row: RowT) -> None:
        """Insert or replace, keeping the name index right."""
        old = self.rows.get(row.id)
        new_name = unique_name(row)
        if old is not None:
            old_name = unique_name(old)
            if old_name and old_name != new_name:
                self._id_by_name.pop(old_name, None)
        if new_name:
            self._id_by_name[new_name] = row.id
        self.rows[row.id] = row

    def remove(self, object_id: str) -> RowT | None:
        """Take out an object."""
        old = self.rows.pop(object_id, None)
        if old is not None:
            self._id_by_name.pop(unique_name(old), None)
        return old


def unique_name(row: AnyObject) -> str:
    """The name that no other object of the kind may have, in lower case; "" where none is unique.

    Tasks have no unique name. Nodes are found by their hostname, which may repeat: the newest
    wins the index, and full ids always work.
    """
    if isinstance(row, Task):
        return ""
    if isinstance(row, Node):
        return (row.spec.annotations.name or row.description.hostname).lower()
    return row.spec.annotations.name.lower()
