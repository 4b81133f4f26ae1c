"""Filters and pages of the list calls. Pure: rows in, rows out.

Values of one kind are OR-ed, kinds are AND-ed; ids and names match as prefixes, as in Docker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from manager.allocator.networks.subnets import DRIVER
from manager.orchestrator.update.dirty import is_dirty
from manager.store.view import View
from shoal.errors import InvalidArgument, SwarmError
from shoal.model.enums import NodeMembership, NodeRole, TaskState
from shoal.model.modes import is_of_this_iteration
from shoal.model.objects import AnyObject, Config, Network, Node, Secret, Service, Task
from shoal.model.row import Row
from shoal.model.specs import GlobalJobMode, GlobalMode, ReplicatedJobMode, ReplicatedMode

PAGE_SIZE_MAX = 1_000
PAGE_BYTES_MAX = 2 << 20
"""A page is full when it holds more than this: with its last object it stays below gRPC's limit."""

_MODES: dict[str, type[Row]] = {
    "replicated": ReplicatedMode,
    "global": GlobalMode,
    "replicated-job": ReplicatedJobMode,
    "global-job": GlobalJobMode,
}

RowT = TypeVar("RowT", bound=AnyObject)
FileT = TypeVar("FileT", Secret, Config)


class Filters(Row, frozen=True):
    """What a list call asks for; empty fields do not filter."""

    ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    node_labels: tuple[str, ...] = ()
    roles: tuple[NodeRole, ...] = ()
    memberships: tuple[NodeMembership, ...] = ()
    modes: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    desired_states: tuple[TaskState, ...] = ()
    up_to_date: bool = False
    slot: int = 0
    drivers: tuple[str, ...] = ()


def select_nodes(view: View, filters: Filters) -> list[Node]:
    """Nodes that match. `labels` are the engine's, `node_labels` those of the spec."""

    def matches(node: Node) -> bool:
        return (
            _prefix(node.id, filters.ids)
            and _prefix(node.description.hostname, filters.names)
            and _labels(node.description.engine.labels, filters.labels)
            and _labels(node.spec.annotations.labels, filters.node_labels)
            and (not filters.roles or node.role in filters.roles)
            and (not filters.memberships or node.spec.membership in filters.memberships)
        )

    return [node for node in view.nodes if matches(node)]


def select_services(view: View, filters: Filters) -> list[Service]:
    """Services that match. Raises InvalidArgument for an unknown mode."""
    for mode in filters.modes:
        if mode not in _MODES:
            raise InvalidArgument(f"filter mode: {mode!r} must be one of {', '.join(_MODES)}")
    modes = tuple(_MODES[mode] for mode in filters.modes)

    def matches(service: Service) -> bool:
        return (
            _prefix(service.id, filters.ids)
            and _prefix(service.spec.annotations.name, filters.names)
            and _labels(service.spec.annotations.labels, filters.labels)
            and (not modes or isinstance(service.spec.mode, modes))
        )

    return [service for service in view.services if matches(service)]


def select_tasks(view: View, filters: Filters) -> list[Task]:
    """Tasks that match. Services and nodes that do not exist match nothing."""
    service_ids = _resolve(view.services.resolve, filters.services)
    node_ids = _resolve(view.nodes.resolve, filters.nodes)
    candidates: Iterable[Task] = view.tasks
    if filters.services:
        candidates = [task for key in service_ids for task in view.tasks_of_service(key).values()]
    elif filters.nodes:
        candidates = [task for key in node_ids for task in view.tasks_of_node(key).values()]

    def matches(task: Task) -> bool:
        return (
            _prefix(task.id, filters.ids)
            and _prefix(task_name(task), filters.names)
            and _labels(task.container.labels, filters.labels)
            and (not filters.nodes or task.node_id in node_ids)
            and (not filters.desired_states or task.desired_state in filters.desired_states)
            and (not filters.slot or task.slot == filters.slot)
            and (not filters.up_to_date or _is_up_to_date(view, task))
        )

    return [task for task in candidates if matches(task)]


def select_networks(view: View, filters: Filters) -> list[Network]:
    """Networks that match; all of them have the one driver there is."""

    def matches(network: Network) -> bool:
        return (
            _prefix(network.id, filters.ids)
            and _prefix(network.spec.annotations.name, filters.names)
            and _labels(network.spec.annotations.labels, filters.labels)
            and (not filters.drivers or DRIVER in filters.drivers)
        )

    return [network for network in view.networks if matches(network)]


def select_files(rows: Iterable[FileT], filters: Filters) -> list[FileT]:
    """Secrets or configs that match."""

    def matches(row: FileT) -> bool:
        annotations = row.spec.annotations
        return (
            _prefix(row.id, filters.ids)
            and _prefix(annotations.name, filters.names)
            and _labels(annotations.labels, filters.labels)
        )

    return [row for row in rows if matches(row)]


def task_name(task: Task) -> str:
    """SERVICE.SLOT.ID, or SERVICE.NODE.ID for tasks without a slot."""
    return f"{task.service_annotations.name}.{task.slot or task.node_id}.{task.id}"


def page(rows: Sequence[RowT], *, size: int, token: str, attach: Callable[[RowT], int]) -> str:
    """Hand the rows of one page to `attach`, oldest first; the result is the next page's token.

    size: 0 means the most a page may hold. attach: answers the bytes the row takes on the wire.
    Raises InvalidArgument for a token that is none.
    """
    after = _after(token)
    ordered = sorted((row for row in rows if _order(row) > after), key=_order)
    used_bytes = 0
    for place, row in enumerate(ordered):
        used_bytes += attach(row)
        is_full = place + 1 >= (size or PAGE_SIZE_MAX) or place + 1 >= PAGE_SIZE_MAX
        if (is_full or used_bytes > PAGE_BYTES_MAX) and place + 1 < len(ordered):
            created_at_ns, object_id = _order(row)
            return f"{created_at_ns}-{object_id}"
    return ""


def _after(token: str) -> tuple[int, str]:
    if not token:
        return -1, ""
    created, _, object_id = token.partition("-")
    if not (created.isascii() and created.isdigit() and object_id) or len(created) > 20:
        raise InvalidArgument("page token: must be the one the last page gave")
    return int(created), object_id


def _order(row: AnyObject) -> tuple[int, str]:
    return row.meta.created_at_ns, row.id


def _prefix(value: str, prefixes: tuple[str, ...]) -> bool:
    return not prefixes or value.startswith(prefixes)


def _labels(labels: Mapping[str, str], wanted: tuple[str, ...]) -> bool:
    for text in wanted:
        key, has_value, value = text.partition("=")
        if key not in labels or (has_value and labels[key] != value):
            return False
    return True


def _is_up_to_date(view: View, task: Task) -> bool:
    service = view.services.get(task.service_id)
    if service is None or not is_of_this_iteration(service, task):
        return False
    return not is_dirty(view, service, task)


def _resolve(resolve: Callable[[str], AnyObject], references: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    for reference in references:
        try:
            found.add(resolve(reference).id)
        except SwarmError:
            continue
    return found
