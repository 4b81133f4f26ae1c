"""Differential test: the tables, and an overlay on them, against a dict that cannot be wrong."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from manager.store.apply import apply_entry
from manager.store.overlay import Overlay
from manager.store.tables import Tables
from manager.store.view import View
from shoal.errors import (
    AlreadyExists,
    InvalidArgument,
    NameConflict,
    NotFound,
    SequenceConflict,
    SwarmError,
)
from shoal.model.enums import ActionKind, TaskState
from shoal.model.objects import AnyObject, Network, Node, Service, StoreAction, StoreEntry, Task
from shoal.model.plan import Change
from shoal.model.specs import NetworkSpec, ReplicatedMode, ServiceSpec, TaskSpec
from shoal.model.types import Annotations, Meta, NodeDescription, TaskStatus, Version

IDS = [f"{letter}{number}" for letter in "ab" for number in range(3)]
NAMES = ["web", "WEB", "db", ""]
KINDS: dict[type[AnyObject], str] = {
    Node: "nodes", Service: "services", Task: "tasks", Network: "networks",
}  # fmt: skip
Key = tuple[type[AnyObject], str]


def named(row: AnyObject) -> str:
    if isinstance(row, Task):
        return ""
    if isinstance(row, Node):
        return (row.spec.annotations.name or row.description.hostname).lower()
    return row.spec.annotations.name.lower()


@st.composite
def rows(draw) -> AnyObject:
    row_id, name = draw(st.sampled_from(IDS)), draw(st.sampled_from(NAMES))
    number = draw(st.integers(0, 2))
    kind = draw(st.sampled_from(list(KINDS)))
    if kind is Node:
        return Node(id=row_id, description=NodeDescription(hostname=name))
    if kind is Network:
        return Network(id=row_id, spec=NetworkSpec(annotations=Annotations(name=name)))
    if kind is Service:
        spec = ServiceSpec(
            annotations=Annotations(name=name),
            task=TaskSpec(force_update=number),
            mode=ReplicatedMode(replicas=draw(st.integers(0, 2))),
        )
        return Service(id=row_id, spec=spec)
    return Task(
        id=row_id,
        service_id=draw(st.sampled_from(["", "s1", "s2"])),
        node_id=draw(st.sampled_from(["", "n1", "n2"])),
        slot=number,
        status=TaskStatus(state=draw(st.sampled_from([TaskState.PENDING, TaskState.ASSIGNED]))),
    )


@st.composite
def actions(draw) -> tuple[ActionKind, AnyObject, int]:
    """What is wished (UNSPECIFIED: whatever fits), the object, and whether its version is stale."""
    fitting = [ActionKind.UNSPECIFIED] * 8
    kinds = [*fitting, ActionKind.CREATE, ActionKind.UPDATE, ActionKind.REMOVE]
    return draw(st.sampled_from(kinds)), draw(rows()), draw(st.sampled_from([0] * 8 + [1]))


class Model:
    """What the store promises, in the plainest words."""

    def __init__(self) -> None:
        self.rows: dict[Key, AnyObject] = {}

    def apply(self, entry: StoreEntry, index: int) -> type[SwarmError] | None:
        after = dict(self.rows)
        for action in entry.actions:
            row, key = action.object, (type(action.object), action.object.id)
            old = after.get(key)
            if action.kind is ActionKind.CREATE and old is not None:
                return AlreadyExists
            if action.kind is not ActionKind.CREATE:
                if old is None:
                    return NotFound
                if action.expected_version not in (0, old.meta.version.index):
                    return SequenceConflict
            if action.kind is ActionKind.REMOVE:
                del after[key]
                continue
            taken = [
                other for (kind, _), other in after.items()
                if kind is type(row) and other.id != row.id and named(other) == named(row)
            ]  # fmt: skip
            renamed = old is None or named(old) != named(row)
            if taken and renamed and named(row) and not isinstance(row, Node):
                return NameConflict
            created = entry.proposed_at_ns if old is None else old.meta.created_at_ns
            meta = Meta(Version(index), created, entry.proposed_at_ns)
            row = row.replaced(meta=meta)
            if isinstance(row, Service):
                same = isinstance(old, Service) and old.spec.task == row.spec.task
                version = old.spec_version if same else Version(index)
                row = row.replaced(spec_version=version)
            after[key] = row
        self.rows = after
        return None


def check_same(view: View, expected: dict[Key, AnyObject]) -> None:
    """Every way to look an object up gives what a search through the dict gives."""
    for kind, attribute in KINDS.items():
        table = getattr(view, attribute)
        mine = {row_id: row for (other, row_id), row in expected.items() if other is kind}
        assert {row.id: row for row in table} == mine
        assert len(table) == len(mine)
        for row_id in IDS:
            assert table.get(row_id) == mine.get(row_id)
        for name in ("web", "Db", "", "none"):
            found = [row for row in mine.values() if name and named(row) == name.lower()]
            found.sort(key=lambda row: (row.meta.created_at_ns, row.id))
            assert list(table.named(name)) == found
            assert table.by_name(name) == (found[-1] if found else None)
            if name:
                assert resolved(table, name) == (found[0] if len(found) == 1 else len(found))
        for prefix in "ab":
            found = [row for row in mine.values() if row.id.startswith(prefix)]
            assert resolved(table, prefix) == (found[0] if len(found) == 1 else len(found))
    tasks = [row for row in expected.values() if isinstance(row, Task)]
    for service_id in ("", "s1", "s2"):
        mine = {task.id: task for task in tasks if task.service_id == service_id}
        assert dict(view.tasks_of_service(service_id)) == mine
    for node_id in ("", "n1", "n2"):
        mine = {task.id: task for task in tasks if task.node_id == node_id}
        assert dict(view.tasks_of_node(node_id)) == mine
    waiting = {task.id: task for task in tasks if task.status.state < TaskState.ASSIGNED}
    assert dict(view.unassigned_tasks()) == waiting


def resolved(table, reference: str) -> AnyObject | int:
    """The object, or the number of those that fit."""
    try:
        return table.resolve(reference)
    except NotFound:
        return 0
    except InvalidArgument as error:
        return int(str(error).split("(")[1].split()[0])


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tables, self.model, self.index = Tables(), Model(), 0
        self.old_indexes = self.indexes()

    def indexes(self) -> tuple[object, ...]:
        """Everything the tables hold besides the rows, in a form that compares."""
        tables = self.tables
        names = {
            kind.__name__: {
                name: set(ids) for name, ids in tables.table_of(kind())._ids_by_name.items()
            }
            for kind in KINDS
        }
        by_service = {key: set(bucket) for key, bucket in tables._by_service.items()}
        by_node = {key: set(bucket) for key, bucket in tables._by_node.items()}
        return names, by_service, by_node

    @rule(changes=st.lists(actions(), min_size=1, max_size=5))
    def transaction(self, changes) -> None:
        """Any transaction: applied as the model says, or refused without a trace."""
        changes = self.fitted(changes)
        self.index += 1
        entry = StoreEntry(
            actions=tuple(
                StoreAction(kind=kind, object=row, expected_version=self.expected(row, stale))
                for kind, row, stale in changes
            ),
            proposed_at_ns=1000 + self.index,
        )
        before = self.indexes()
        error = self.model.apply(entry, self.index)
        if error is None:
            commit = apply_entry(self.tables, entry, self.index)
            assert [event.action for event in commit.events] == [kind for kind, _, _ in changes]
        else:
            with pytest.raises(error):
                apply_entry(self.tables, entry, self.index)
            assert self.indexes() == before

    @rule(changes=st.lists(actions(), min_size=1, max_size=5))
    def overlay(self, changes) -> None:
        """A plan on an overlay reads, and merges, as if it were applied."""
        changes = self.fitted(changes)
        overlay = Overlay(self.tables)
        expected = dict(self.model.rows)
        gone: set[Key] = set()
        for kind, row, _ in changes:
            key = (type(row), row.id)
            exists = key in expected
            if exists == (kind is ActionKind.CREATE) or key in gone:
                continue
            overlay.apply([Change(kind=kind, object=row)])
            if kind is ActionKind.REMOVE:
                del expected[key]
                gone.add(key)
            else:
                expected[key] = row
        check_same(overlay, expected)
        keys = [(type(change.object), change.object.id) for change in overlay.merged()]
        assert len(keys) == len(set(keys))
        merged = dict(self.model.rows)
        for change in overlay.merged():
            key = (type(change.object), change.object.id)
            assert (change.kind is ActionKind.CREATE) == (key not in self.model.rows)
            if change.kind is ActionKind.REMOVE:
                del merged[key]
            else:
                merged[key] = change.object
        assert merged == expected

    @rule()
    def snapshot(self) -> None:
        """Tables built from rows in another order are the same tables."""
        rows = sorted(self.tables.all_rows(), key=lambda row: (row.id, type(row).__name__))
        rebuilt = Tables(rows, version=self.index)
        check_same(rebuilt, self.model.rows)
        self.tables = rebuilt

    @rule(written=st.lists(rows(), max_size=5))
    def copy(self, written) -> None:
        """A copy goes on as the tables would, and neither sees what is written to the other."""
        before, twin = self.indexes(), self.tables.copy()
        for row in written:
            twin.put(row)
            twin.remove(row)
        assert self.indexes() == before
        check_same(self.tables, self.model.rows)
        self.tables = self.tables.copy()
        assert self.indexes() == before

    def fitted(self, changes):
        """The same with CREATE or UPDATE, whichever is possible, where anything will do."""
        there = set(self.model.rows)
        fitted = []
        for kind, row, stale in changes:
            key = (type(row), row.id)
            if kind is ActionKind.UNSPECIFIED:
                kind = ActionKind.UPDATE if key in there else ActionKind.CREATE
            there = there - {key} if kind is ActionKind.REMOVE else there | {key}
            fitted.append((kind, row, stale))
        return fitted

    def expected(self, row: AnyObject, stale: int) -> int:
        old = self.model.rows.get((type(row), row.id))
        return 0 if old is None or stale == 0 else old.meta.version.index - (self.index % 2)

    @invariant()
    def same(self) -> None:
        check_same(self.tables, self.model.rows)
        assert self.tables.version == self.index


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
