"""Decisions on the state we hold, and the transactions that etcd is asked for."""

from __future__ import annotations

import pytest

from manager.etcd.core import Decision, decide, find_outcome, settled
from manager.etcd.keys import Keys, barrier, campaign, leader_of, operations, transaction
from manager.store.apply import apply_entry
from manager.store.tables import Tables
from shoal.errors import FailedPrecondition, NameConflict
from shoal.etcd.v1 import rpc_pb2 as pb
from shoal.model.enums import ActionKind
from shoal.model.objects import AnyObject, Service, StoreAction, StoreEntry
from shoal.model.types import Annotations
from shoal.wire.objects import object_from_bytes, object_to_bytes
from tests.support.planning import a_node, a_service, a_task

CREATE, UPDATE, REMOVE = ActionKind.CREATE, ActionKind.UPDATE, ActionKind.REMOVE
KEYS = Keys("p/q")


def named(service_id: str, name: str) -> Service:
    service = a_service(service_id)
    return service.replaced(spec=service.spec.replaced(annotations=Annotations(name=name)))


def an_entry(*actions: tuple[ActionKind, AnyObject]) -> StoreEntry:
    return StoreEntry(
        actions=tuple(StoreAction(kind=kind, object=row) for kind, row in actions),
        proposed_at_ns=11,
    )


def tables_with(*rows: AnyObject) -> Tables:
    tables = Tables()
    for version, row in enumerate(rows, 1):
        apply_entry(tables, an_entry((CREATE, row)), version)
    return tables


def shown(request: pb.TxnRequest) -> list[str]:
    """One line for each condition and operation."""
    lines = []
    for one in request.compare:
        field = one.WhichOneof("target_union")
        lines.append(f"if {one.key.decode()} {field} == {getattr(one, field)}")
    for word, operations_ in (("then", request.success), ("else", request.failure)):
        for one in operations_:
            kind = one.WhichOneof("request")
            body = getattr(one, kind)
            value = body.value if kind == "request_put" and b"/names/" in body.key else b""
            lines.append(f"{word} {kind} {body.key.decode()} {value.decode()}".rstrip())
    return lines


def test_the_same_entry_gives_the_same_commit_as_the_embedded_log():
    entry = an_entry((CREATE, a_task("t2")), (UPDATE, a_service("web", replicas=9)))
    mine = decide(tables_with(a_service("web"), a_task("t1")), entry).commit(40)
    assert mine == apply_entry(tables_with(a_service("web"), a_task("t1")), entry, 40)


def test_deciding_changes_nothing():
    tables = tables_with(a_service("web"))
    before = tuple(tables.all_rows())
    decide(tables, an_entry((REMOVE, a_service("web")), (CREATE, a_task("t"))))
    with pytest.raises(NameConflict):
        decide(tables, an_entry((CREATE, a_task("t")), (CREATE, named("x", "web"))))
    assert tuple(tables.all_rows()) == before
    assert tables.version == 1


def test_the_transaction_of_a_create_an_update_and_a_removal():
    tables = tables_with(a_service("web"), a_task("t1"), a_node("n1"))
    decision = decide(
        tables,
        an_entry((CREATE, named("new", "New")), (UPDATE, a_node("n1")), (REMOVE, a_task("t1"))),
    )
    assert shown(transaction(KEYS, decision, fence=8)) == [
        "if /p/q/leader create_revision == 8",
        "if /p/q/store/service/new create_revision == 0",
        "if /p/q/store/node/n1 mod_revision == 3",
        "if /p/q/store/task/t1 mod_revision == 2",
        "if /p/q/names/service/new create_revision == 0",
        "then request_put /p/q/store/service/new",
        "then request_put /p/q/store/node/n1",
        "then request_delete_range /p/q/store/task/t1",
        "then request_put /p/q/names/service/new new",
        "else request_range /p/q/leader",
        "else request_put /p/q/store/barrier",
    ]
    assert operations(transaction(KEYS, decision, fence=8)) == 5
    assert operations(transaction(KEYS, decision, fence=0)) == 4


def test_names_move_with_their_objects():
    tables = tables_with(named("a", "one"), named("b", "two"))
    renamed = decide(tables, an_entry((UPDATE, named("a", "three"))))
    assert [line for line in shown(transaction(KEYS, renamed, 0)) if "names" in line] == [
        "if /p/q/names/service/three create_revision == 0",
        "then request_put /p/q/names/service/three a",
        "then request_delete_range /p/q/names/service/one",
    ]
    passed_on = decide(tables, an_entry((REMOVE, named("a", "one")), (UPDATE, named("b", "ONE"))))
    assert [line for line in shown(transaction(KEYS, passed_on, 0)) if "names" in line] == [
        "then request_put /p/q/names/service/one b",
        "then request_delete_range /p/q/names/service/two",
    ]
    kept = decide(tables, an_entry((UPDATE, named("a", "ONE"))))
    assert [line for line in shown(transaction(KEYS, kept, 0)) if "names" in line] == []


def test_no_key_is_written_twice():
    tables = tables_with(named("a", "one"))
    decision = decide(
        tables,
        an_entry(
            (UPDATE, named("a", "two")),
            (CREATE, a_task("t")),
            (REMOVE, a_task("t")),
            (REMOVE, named("a", "two")),
            (CREATE, named("a", "one")),
        ),
    )
    request = transaction(KEYS, decision, 0)
    assert shown(request) == [
        "if /p/q/store/service/a mod_revision == 1",
        "then request_put /p/q/store/service/a",
        "else request_put /p/q/store/barrier",
    ]
    assert decision.commit(5).events[0].action is UPDATE
    nothing = decide(tables, an_entry((CREATE, a_task("t")), (REMOVE, a_task("t"))))
    assert nothing == Decision((), ())


def test_versions_left_open_become_the_revision_that_wrote_them():
    tables = tables_with(a_service("web"))
    web = tables.services.resolve("web")
    template = web.spec.task.replaced(force_update=1)
    for spec, spec_version in (
        (web.spec, 1),
        (web.spec.replaced(task=template), 30),
    ):
        decision = decide(tables, an_entry((UPDATE, web.replaced(spec=spec))))
        (put, *_) = transaction(KEYS, decision, 0).success
        stored = object_from_bytes(put.request_put.value)
        assert isinstance(stored, Service)
        assert stored.meta.version.index == 0
        kv = pb.KeyValue(key=put.request_put.key, value=put.request_put.value, mod_revision=30)
        row = KEYS.decode(kv)
        assert isinstance(row, Service)
        assert (row.meta.version.index, row.spec_version.index) == (30, spec_version)
        assert row == decision.commit(30).events[0].object


@pytest.mark.parametrize(
    ("key", "row", "text"),
    [
        (b"/p/q/store/alien/x", a_task("x"), "store/alien/x is not ours"),
        (b"/p/q/store/task/", a_task("x"), "is not ours"),
        (b"/p/q/store/task", a_task("x"), "is not ours"),
        (b"/p/q/store/task/y", a_task("x"), "store/task/y holds task x: somebody copied it"),
        (b"/p/q/store/node/x", a_task("x"), "store/node/x holds task x"),
        (b"/p/q/store/task/x", None, "value of /p/q/store/task/x: object"),
    ],
)
def test_what_is_not_ours_is_refused(key: bytes, row: AnyObject | None, text: str):
    value = b"\xff\xff" if row is None else object_to_bytes(row)
    with pytest.raises(FailedPrecondition, match=text):
        KEYS.decode(pb.KeyValue(key=key, value=value, mod_revision=3))


def test_whether_a_transaction_happened_is_read_from_the_state():
    tables = tables_with(a_service("web"), a_task("t1"))
    entry = an_entry(
        (UPDATE, a_service("web", replicas=7)), (REMOVE, a_task("t1")), (CREATE, a_task("t2"))
    )
    decision = decide(tables, entry)
    assert find_outcome(tables, decision) == (None, True)
    apply_entry(tables, an_entry((CREATE, a_task("other"))), 3)
    assert find_outcome(tables, decision) == (None, True)
    expected = apply_entry(tables, entry, 4)
    apply_entry(tables, an_entry((CREATE, a_task("another"))), 5)
    assert find_outcome(tables, decision) == (expected, False)
    apply_entry(tables, an_entry((UPDATE, a_task("t2"))), 6)
    assert find_outcome(tables, decision) == (None, False)


def test_whether_a_removal_or_an_equal_update_happened():
    tables = tables_with(a_service("web"), a_task("t1"))
    removal = decide(tables, an_entry((REMOVE, a_task("t1"))))
    same = decide(tables, an_entry((UPDATE, tables.services.resolve("web"))))
    assert find_outcome(tables, removal) == (None, True)
    assert find_outcome(tables, same) == (None, True)
    apply_entry(tables, an_entry((REMOVE, a_task("t1"))), 3)
    assert find_outcome(tables, removal) == (removal.commit(3), False)
    apply_entry(tables, an_entry((UPDATE, tables.services.resolve("web"))), 4)
    assert find_outcome(tables, same) == (same.commit(4), False)


def test_barrier_and_campaign():
    assert shown(barrier(KEYS, 0)) == ["then request_put /p/q/store/barrier"]
    assert shown(barrier(KEYS, 3)) == [
        "if /p/q/leader create_revision == 3",
        "then request_put /p/q/store/barrier",
        "else request_range /p/q/leader",
    ]
    request = campaign(KEYS, "me:1", 77)
    assert shown(request) == [
        "if /p/q/leader create_revision == 0",
        "then request_put /p/q/leader",
        "else request_range /p/q/leader",
    ]
    assert request.success[0].request_put.lease == 77
    found = pb.ResponseOp(response_range=pb.RangeResponse(kvs=[pb.KeyValue(value=b"you:1")]))
    empty = pb.ResponseOp(response_range=pb.RangeResponse())
    holder = leader_of(pb.TxnResponse(responses=[found]))
    assert holder is not None
    assert holder.value == b"you:1"
    assert leader_of(pb.TxnResponse(responses=[empty])) is None
    assert leader_of(pb.TxnResponse()) is None


def test_settling_touches_only_what_is_open():
    task = a_task("t", version=5)
    assert settled(task, 9).meta.version.index == 9
    assert settled(task, 9).spec_version.index == 5
