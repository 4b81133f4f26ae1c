"""The tables of the store in memory, with the indexes that planners and the dispatcher need.

Written by `apply` alone, one committed entry at a time. Index buckets are plain dicts that change
in place: whoever reads them must not await in between (see `manager.store.view`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from manager.store.view import Table, is_unassigned
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

_EMPTY: Mapping[str, Task] = MappingProxyType({})


class Tables:
    """Every object of the cluster. Implements `manager.store.view.View`."""

    def __init__(self, rows: Iterable[AnyObject] = (), *, version: int = 0) -> None:
        self.version = version
        self.nodes: Table[Node] = Table("node")
        self.services: Table[Service] = Table("service")
        self.tasks: Table[Task] = Table("task")
        self.networks: Table[Network] = Table("network")
        self.clusters: Table[Cluster] = Table("cluster")
        self.secrets: Table[Secret] = Table("secret")
        self.configs: Table[Config] = Table("config")
        self.stacks: Table[Stack] = Table("stack")
        self.revisions: Table[Revision] = Table("revision")
        self._by_class: dict[type[AnyObject], Table[Any]] = {
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
        self._unassigned: dict[str, Task] = {}
        for row in rows:
            self.put(row)

    @property
    def cluster(self) -> Cluster | None:
        """The cluster, once it is initialised."""
        return next(iter(self.clusters), None)

    def tasks_of_service(self, service_id: str) -> Mapping[str, Task]:
        """Tasks of a service by task id."""
        return self._by_service.get(service_id, _EMPTY)

    def tasks_of_node(self, node_id: str) -> Mapping[str, Task]:
        """Tasks assigned to a node by task id."""
        return self._by_node.get(node_id, _EMPTY)

    def unassigned_tasks(self) -> Mapping[str, Task]:
        """Tasks that the scheduler has not assigned yet, by task id."""
        return MappingProxyType(self._unassigned)

    def table_of(self, row: AnyObject) -> Table[Any]:
        """The table that holds objects of this class."""
        return self._by_class[type(row)]

    def get_same(self, row: AnyObject) -> AnyObject | None:
        """The stored object with the same class and id."""
        found: AnyObject | None = self._by_class[type(row)].get(row.id)
        return found

    def put(self, row: AnyObject) -> None:
        """Insert or replace an object."""
        table = self._by_class[type(row)]
        if isinstance(row, Task):
            self._unindex(table.get(row.id))
            self._by_service.setdefault(row.service_id, {})[row.id] = row
            self._by_node.setdefault(row.node_id, {})[row.id] = row
            if is_unassigned(row):
                self._unassigned[row.id] = row
        table.put(row)

    def remove(self, row: AnyObject) -> None:
        """Take out the object with the same class and id."""
        removed = self._by_class[type(row)].remove(row.id)
        if isinstance(removed, Task):
            self._unindex(removed)

    def copy(self) -> Tables:
        """The same rows in tables of their own: what is written to one is not seen in the other.

        Copies references alone, so it takes some milliseconds for tens of thousands of tasks.
        """
        twin = Tables(version=self.version)
        for kind, table in self._by_class.items():
            twin._by_class[kind].take(table)
        twin._by_service = {key: dict(bucket) for key, bucket in self._by_service.items()}
        twin._by_node = {key: dict(bucket) for key, bucket in self._by_node.items()}
        twin._unassigned = dict(self._unassigned)
        return twin

    def all_rows(self) -> Iterator[AnyObject]:
        """Every object, referred-to kinds first."""
        for table in self._by_class.values():
            yield from table

    def _unindex(self, task: Task | None) -> None:
        if task is None:
            return
        self._unassigned.pop(task.id, None)
        for index, key in ((self._by_service, task.service_id), (self._by_node, task.node_id)):
            bucket = index.get(key)
            if bucket is not None:
                bucket.pop(task.id, None)
                if not bucket:
                    del index[key]
