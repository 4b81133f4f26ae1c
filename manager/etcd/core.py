"""What a transaction would do to the state we hold, and under which conditions. No I/O.

The same `apply_entry` that the embedded log uses decides here, on a scratch copy of the rows that
the entry touches, so rules and texts cannot part. It runs with index 0: in what it writes, version
0 stands for "the revision that writes this", which etcd alone decides later (`settled`). The
conditions (mod_revisions, free names) are what the decision rests on: etcd carries the transaction
out only where they still hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from manager.store.apply import Commit, StoreEvent, apply_entry
from manager.store.tables import Tables
from manager.store.view import TableView, View, unique_name
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
    StoreEntry,
    Task,
)
from shoal.model.types import Version

KINDS: dict[str, type[AnyObject]] = {
    "cluster": Cluster,
    "config": Config,
    "network": Network,
    "node": Node,
    "revision": Revision,
    "secret": Secret,
    "service": Service,
    "stack": Stack,
    "task": Task,
}
KIND_OF = {row: kind for kind, row in KINDS.items()}

Key = tuple[type[AnyObject], str]


class Write(NamedTuple):
    """The net effect on one object. `old` None: it must not exist; `new` None: remove it."""

    old: AnyObject | None
    new: AnyObject | None

    @property
    def row(self) -> AnyObject:
        """The object, for its class and id."""
        found = self.new if self.new is not None else self.old
        return found if found is not None else violated("write without an object")

    @property
    def expected(self) -> int:
        """The version it must have; 0: it must not exist."""
        return 0 if self.old is None else self.old.meta.version.index


class NameWrite(NamedTuple):
    """The net effect on one unique name. `owner` "": it becomes free."""

    kind: str
    name: str
    owner: str
    must_be_free: bool


class Decision(NamedTuple):
    """An entry that the state we hold accepts."""

    writes: tuple[Write, ...]
    names: tuple[NameWrite, ...]

    def commit(self, revision: int) -> Commit:
        """What it has changed, once etcd has given it a revision."""
        return Commit(version=revision, events=tuple(_event(one, revision) for one in self.writes))


def decide(view: View, entry: StoreEntry) -> Decision:
    """What the entry would write. Raises what `apply_entry` raises when the state refuses it."""
    before = _touched(view, entry)
    scratch = Tables(before.values())
    apply_entry(scratch, entry, 0)
    # By the last change to each: a name is given up before another object takes it.
    keys = list(dict.fromkeys(_key(action.object) for action in reversed(entry.actions)))
    writes: list[Write] = []
    for kind, object_id in reversed(keys):
        old = before.get((kind, object_id))
        new = table(scratch, kind).get(object_id)
        if old is not None or new is not None:
            writes.append(Write(old, new))
    return Decision(tuple(writes), tuple(_name_writes(writes)))


def settled(row: AnyObject, revision: int) -> AnyObject:
    """The row as written by that revision: its version, and every version left open."""
    row = row.replaced(meta=row.meta.replaced(version=Version(index=revision)))
    if isinstance(row, Service) and row.spec_version.index == 0:
        row = row.replaced(spec_version=Version(index=revision))
    return row


class Outcome(NamedTuple):
    """What the state says about a transaction whose answer was lost."""

    commit: Commit | None
    untouched: bool
    """It has not happened, and may be sent again. Neither: it cannot be known any more."""


def find_outcome(view: View, decision: Decision) -> Outcome:
    """Whether a transaction happened, from a state at least as new as the loss of its answer."""
    now = [table(view, type(one.row)).get(one.row.id) for one in decision.writes]
    found = {
        row.meta.version.index
        for row, one in zip(now, decision.writes, strict=True)
        if row is not None and one.new is not None
    }
    revision = found.pop() if len(found) == 1 else view.version
    wanted = [None if one.new is None else settled(one.new, revision) for one in decision.writes]
    if now == wanted and revision not in {one.expected for one in decision.writes}:
        return Outcome(decision.commit(revision), untouched=False)
    return Outcome(None, untouched=now == [one.old for one in decision.writes])


def table(view: View, kind: type[AnyObject]) -> TableView[AnyObject]:
    """The table of a class."""
    tables: dict[type[AnyObject], TableView[AnyObject]] = {
        Node: view.nodes,
        Service: view.services,
        Task: view.tasks,
        Network: view.networks,
        Cluster: view.clusters,
        Secret: view.secrets,
        Config: view.configs,
        Stack: view.stacks,
        Revision: view.revisions,
    }
    return tables[kind]


def _touched(view: View, entry: StoreEntry) -> dict[Key, AnyObject]:
    """Every row the entry can depend on: those it changes, and who has the names it wants."""
    found: dict[Key, AnyObject] = {}
    for action in entry.actions:
        row = action.object
        rows = table(view, type(row))
        name = "" if isinstance(row, Node) else unique_name(row)
        for other in (rows.get(row.id), rows.by_name(name) if name else None):
            if other is not None:
                found[_key(other)] = other
    return found


def _name_writes(writes: Iterable[Write]) -> Iterator[NameWrite]:
    before = {name: row.id for one in writes for name, row in _named(one.old)}
    after = {name: row.id for one in writes for name, row in _named(one.new)}
    for (kind, name), owner in after.items():
        if before.get((kind, name)) != owner:
            yield NameWrite(kind, name, owner, must_be_free=(kind, name) not in before)
    for kind, name in before:
        if (kind, name) not in after:
            yield NameWrite(kind, name, "", must_be_free=False)


def _named(row: AnyObject | None) -> Iterator[tuple[tuple[str, str], AnyObject]]:
    if row is not None and not isinstance(row, Node) and unique_name(row):
        yield (KIND_OF[type(row)], unique_name(row)), row


def _event(write: Write, revision: int) -> StoreEvent:
    new = None if write.new is None else settled(write.new, revision)
    return make_event(write.old, new)


def make_event(old: AnyObject | None, new: AnyObject | None) -> StoreEvent:
    """The event of an object that was `old` and is `new`; not both are None."""
    if new is None:
        return StoreEvent(action=ActionKind.REMOVE, object=None, old=old)
    action = ActionKind.CREATE if old is None else ActionKind.UPDATE
    return StoreEvent(action=action, object=new, old=old)


def _key(row: AnyObject) -> Key:
    return type(row), row.id
