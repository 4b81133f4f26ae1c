"""The Watch service: commits of the store as a stream, one message per commit.

Invariant: what a watcher was told, in versions, is all that it asked for up to there; so a watch
that is resumed from the last version it was told, at whichever manager leads by then, misses
nothing and repeats nothing. Refuses to resume where that cannot be kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from typing_extensions import override

from manager.controlapi.nodes import without_keys
from manager.store.store import Store, StoreEvent
from shoal.api.v1 import watch_pb2 as pb
from shoal.api.v1.objects_pb2 import ActionKind as PbActionKind
from shoal.api.v1.types_pb2 import Version
from shoal.api.v1.watch_pb2_grpc import WatchServicer
from shoal.errors import InvalidArgument
from shoal.model.objects import AnyObject, Cluster, Node, Secret, Task
from shoal.model.row import Row
from shoal.wire.objects import object_to_pb

Context = grpc.aio.ServicerContext[Any, Any]

KINDS = {
    "node", "service", "task", "network", "cluster", "secret", "config", "stack", "revision",
}  # fmt: skip
SELECTORS_MAX = 64
PASSED_OVER_MAX = 256
"""Commits of no interest after which a watcher is told how far it is, lest the history that it
would resume from goes on without it."""


class Selector(Row, frozen=True):
    """What a watcher wants of one kind; empty fields do not filter."""

    kind: str
    ids: frozenset[str] = frozenset()
    id_prefixes: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    service_ids: frozenset[str] = frozenset()
    node_ids: frozenset[str] = frozenset()
    slots: frozenset[int] = frozenset()
    desired_states: frozenset[int] = frozenset()
    roles: frozenset[int] = frozenset()
    labels: tuple[str, ...] = ()
    actions: frozenset[int] = frozenset()


class WatchServer(WatchServicer):
    """Serves `shoal.api.v1.Watch`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @override
    async def Watch(
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchMessage]:
        selectors = _selectors(request)
        start = request.resume_from.index
        with self._store.watch(after=start or None) as watcher:
            yield _message(start or self._store.view.version)
            passed_over = 0
            async for commit in watcher:
                events = [event for event in commit.events if _wanted(event, selectors)]
                passed_over = 0 if events else passed_over + 1
                if events or passed_over == PASSED_OVER_MAX:
                    passed_over = 0
                    yield _message(commit.version, events, with_old=request.include_old_object)


def _message(
    version: int, events: Sequence[StoreEvent] = (), *, with_old: bool = False
) -> pb.WatchMessage:
    return pb.WatchMessage(
        version=Version(index=version),
        events=[_event(event, with_old=with_old) for event in events],
    )


def _event(event: StoreEvent, *, with_old: bool) -> pb.WatchEvent:
    message = pb.WatchEvent(
        action=PbActionKind.ValueType(event.action), object=object_to_pb(_shown(event.subject))
    )
    if with_old and event.old is not None:
        message.old_object.CopyFrom(object_to_pb(_shown(event.old)))
    return message


def _shown(row: AnyObject) -> AnyObject:
    """The object without what never leaves the managers."""
    if isinstance(row, Secret):
        return row.replaced(spec=row.spec.replaced(data=b""))
    return without_keys(row) if isinstance(row, Cluster) else row


def _selectors(request: pb.WatchRequest) -> tuple[Selector, ...]:
    if len(request.selectors) > SELECTORS_MAX:
        raise InvalidArgument(f"selectors: {len(request.selectors)}, at most {SELECTORS_MAX}")
    for selector in request.selectors:
        if selector.kind not in KINDS:
            raise InvalidArgument(
                f"selector kind: {selector.kind!r} must be one of {', '.join(sorted(KINDS))}"
            )
    return tuple(
        Selector(
            kind=message.kind,
            ids=frozenset(message.ids),
            id_prefixes=tuple(message.id_prefixes),
            names=frozenset(message.names),
            service_ids=frozenset(message.service_ids),
            node_ids=frozenset(message.node_ids),
            slots=frozenset(message.slots),
            desired_states=frozenset(message.desired_states),
            roles=frozenset(message.roles),
            labels=tuple(message.labels),
            actions=frozenset(message.actions),
        )
        for message in request.selectors
    )


def _wanted(event: StoreEvent, selectors: Sequence[Selector]) -> bool:
    return not selectors or any(_matches(event, selector) for selector in selectors)


def _matches(event: StoreEvent, selector: Selector) -> bool:
    row = event.subject
    if type(row).__name__.lower() != selector.kind:
        return False
    if selector.actions and event.action not in selector.actions:
        return False
    return (
        (not selector.ids or row.id in selector.ids)
        and (not selector.id_prefixes or row.id.startswith(selector.id_prefixes))
        and (not selector.names or _name(row) in selector.names)
        and all(_has_label(row, label) for label in selector.labels)
        and _matches_task(row, selector)
        and (not selector.roles or (isinstance(row, Node) and row.role in selector.roles))
    )


def _matches_task(row: AnyObject, selector: Selector) -> bool:
    if not (selector.service_ids or selector.node_ids or selector.slots or selector.desired_states):
        return True
    return (
        isinstance(row, Task)
        and (not selector.service_ids or row.service_id in selector.service_ids)
        and (not selector.node_ids or row.node_id in selector.node_ids)
        and (not selector.slots or row.slot in selector.slots)
        and (not selector.desired_states or row.desired_state in selector.desired_states)
    )


def _name(row: AnyObject) -> str:
    if isinstance(row, Task):
        return row.annotations.name
    if isinstance(row, Node):
        return row.spec.annotations.name or row.description.hostname
    return row.spec.annotations.name


def _has_label(row: AnyObject, wanted: str) -> bool:
    labels = (row.annotations if isinstance(row, Task) else row.spec.annotations).labels
    key, has_value, value = wanted.partition("=")
    return key in labels and (not has_value or labels[key] == value)
