"""Apply a committed entry to the tables: the deterministic heart of the store.

Same tables and same entry give the same result on every manager. Whether a transaction conflicts
is decided here, by the versions it read, so proposals may be pipelined: nobody holds a lock over a
round of consensus. A refused entry changes nothing. Time comes from the entry.
"""

from __future__ import annotations

from manager.store.tables import Tables
from manager.store.view import unique_name
from shoal.errors import (
    AlreadyExists,
    InvalidArgument,
    NameConflict,
    NotFound,
    SequenceConflict,
    SwarmError,
    violated,
)
from shoal.model.enums import ActionKind
from shoal.model.objects import AnyObject, Node, Service, StoreAction, StoreEntry
from shoal.model.row import Row
from shoal.model.types import Meta, Version


class StoreEvent(Row, frozen=True):
    """One object changed. `object` is None for REMOVE, `old` is None for CREATE."""

    action: ActionKind
    object: AnyObject | None
    old: AnyObject | None

    @property
    def subject(self) -> AnyObject:
        """The object after the change, or before it when it was removed."""
        found = self.object if self.object is not None else self.old
        return found if found is not None else violated("event without an object")


class Commit(Row, frozen=True):
    """All changes of one entry, in the order of the transaction."""

    version: int
    events: tuple[StoreEvent, ...]


def apply_entry(tables: Tables, entry: StoreEntry, index: int) -> Commit:
    """Apply all actions of an entry, or none.

    index: position of the entry in the log; becomes the version of every object it writes.
    Raises: SequenceConflict, NotFound, AlreadyExists, NameConflict, InvalidArgument. The tables
    then hold what they held before, but for their version, which is `index` in any case.
    """
    tables.version = index
    undo: list[tuple[AnyObject, AnyObject | None]] = []
    events: list[StoreEvent] = []
    try:
        for action in entry.actions:
            old = tables.get_same(action.object)
            _check(tables, action, old)
            undo.append((action.object, old))
            events.append(_write(tables, action, old, index, entry.proposed_at_ns))
    except SwarmError:
        for row, old in reversed(undo):
            if old is None:
                tables.remove(row)
            else:
                tables.put(old)
        raise
    return Commit(version=index, events=tuple(events))


def _check(tables: Tables, action: StoreAction, old: AnyObject | None) -> None:
    row = action.object
    kind = tables.table_of(row).kind
    if action.kind is ActionKind.UNSPECIFIED:
        raise InvalidArgument(f"{kind} {row.id}: the action must be create, update or remove")
    if action.kind is ActionKind.CREATE:
        if old is not None:
            raise AlreadyExists(f"{kind} {row.id} already exists")
        _check_name(tables, row)
        return
    if old is None:
        raise NotFound(f"{kind} {row.id} not found")
    if action.expected_version not in (0, old.meta.version.index):
        raise SequenceConflict(
            f"{kind} {row.id}: update out of sequence (read at version "
            f"{action.expected_version}, now at {old.meta.version.index}): read it again and retry"
        )
    if action.kind is ActionKind.UPDATE and unique_name(row) != unique_name(old):
        _check_name(tables, row)


def _check_name(tables: Tables, row: AnyObject) -> None:
    name = unique_name(row)
    if not name or isinstance(row, Node):
        return
    table = tables.table_of(row)
    other = table.by_name(name)
    if other is not None and other.id != row.id:
        raise NameConflict(
            f"{table.kind} name {name!r} is already in use by {other.id}: "
            "choose another name or remove that one"
        )


def _write(
    tables: Tables, action: StoreAction, old: AnyObject | None, index: int, now_ns: int
) -> StoreEvent:
    if action.kind is ActionKind.REMOVE:
        tables.remove(action.object)
        return StoreEvent(action=action.kind, object=None, old=old)
    created_at_ns = now_ns if old is None else old.meta.created_at_ns
    meta = Meta(version=Version(index=index), created_at_ns=created_at_ns, updated_at_ns=now_ns)
    row = action.object.replaced(meta=meta)
    if isinstance(row, Service):
        row = _with_spec_version(row, old if isinstance(old, Service) else None, index)
    tables.put(row)
    return StoreEvent(action=action.kind, object=row, old=old)


def _with_spec_version(service: Service, old: Service | None, index: int) -> Service:
    """Mark the version of the task template: tasks made from an older one are out of date."""
    if old is None or old.spec.task != service.spec.task:
        return service.replaced(spec_version=Version(index=index))
    return service.replaced(spec_version=old.spec_version)
