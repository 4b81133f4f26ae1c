"""Transactions, retries and the watch."""

from __future__ import annotations

import asyncio

import pytest

from manager.store.store import Store, commit_with_retry
from manager.store.tables import Tables
from shoal.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    InvariantViolation,
    NameConflict,
    NotFound,
    SequenceConflict,
)
from shoal.model.enums import ActionKind
from shoal.model.objects import StoreAction, StoreEntry
from shoal.model.plan import CHANGES_MAX, create, remove, update
from tests.support.managing import HandClock, a_store
from tests.support.planning import a_node, a_service, a_task


async def test_a_transaction_is_all_or_nothing():
    store, _ = a_store([a_service("web"), a_task("t1")])
    web, task = store.view.services.get("web"), store.view.tasks.get("t1")
    assert web is not None
    assert task is not None
    changes = [remove(task), create(a_task("t2")), create(a_service("two").replaced(spec=web.spec))]
    with pytest.raises(NameConflict, match="'web' is already in use by web: choose another"):
        await store.commit(changes)
    assert list(store.view.tasks) == [task]
    assert dict(store.view.tasks_of_node("n1")) == {"t1": task}
    assert store.view.services.by_name("WEB") is web


async def test_a_stale_version_is_refused_at_apply_also_when_both_were_under_way():
    store, proposer = a_store([a_service("web")])
    read = store.view.services.get("web")
    assert read is not None
    proposer.gate.clear()
    both = [asyncio.create_task(store.commit([update(read)])) for _ in range(2)]
    await asyncio.sleep(0)
    proposer.gate.set()
    results = await asyncio.gather(*both, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["Commit", "SequenceConflict"]
    assert "update out of sequence (read at version 1, now at 2)" in str(results[1])


async def test_creating_twice_and_changing_what_is_not_there_are_refused():
    store, _ = a_store([a_service("web")])
    with pytest.raises(AlreadyExists, match="service web already exists"):
        await store.commit([create(a_service("web"))])
    for change in (update(a_service("gone")), remove(a_service("gone"))):
        with pytest.raises(NotFound, match="service gone not found"):
            await store.commit([change])


async def test_an_action_without_a_kind_is_refused():
    store, _ = a_store()
    row = a_service("web")
    entry = StoreEntry(actions=(StoreAction(kind=ActionKind.UNSPECIFIED, object=row),))
    assert isinstance(store.apply(entry, 9, 1), InvalidArgument)
    assert store.view.version == 9
    assert len(store.view.services) == 0


async def test_too_many_changes_are_refused_and_none_write_nothing():
    store, proposer = a_store()
    many = [create(a_task(f"t{number}")) for number in range(CHANGES_MAX + 1)]
    with pytest.raises(InvalidArgument, match="201 changes, at most 200"):
        await store.commit(many)
    assert (await store.commit([])).events == ()
    assert proposer.entries == []


async def test_nothing_is_committed_before_there_is_a_proposer():
    with pytest.raises(InvariantViolation):
        await Store(Tables(), HandClock()).commit([create(a_task("t1"))])


async def test_a_retry_builds_from_the_newest_view_and_gives_up_in_the_end():
    store, proposer = a_store([a_service("web", replicas=0)])

    def add_one(view):
        web = view.services.get("web")
        return [update(web.replaced(spec=a_service(replicas=web.spec.mode.replicas + 1).spec))]

    await asyncio.gather(*(commit_with_retry(store, add_one, attempts_max=30) for _ in range(20)))
    web = store.view.services.get("web")
    assert web is not None
    assert web.spec.mode.replicas == 20
    stale = web.replaced(meta=web.meta.replaced(version=web.spec_version))
    proposer.entries.clear()
    with pytest.raises(SequenceConflict):
        await commit_with_retry(store, lambda _: [update(stale)], attempts_max=3)
    assert len(proposer.entries) == 3


async def test_a_watch_sees_exactly_the_commits_after_it_whole_and_in_order():
    store, _ = a_store([a_service("web")])
    with store.watch() as watcher:
        first = await store.commit([create(a_task("t1")), create(a_task("t2"))])
        with pytest.raises(AlreadyExists):
            await store.commit([create(a_task("t1"))])
        second = await store.commit([remove(store.view.tasks.resolve("t1"))])
        assert [await watcher.next(), await watcher.next()] == [first, second]
        assert watcher.take_ready() == []
        assert [event.subject.id for event in first.events] == ["t1", "t2"]
        (event,) = second.events
        assert (event.object, event.old) == (None, first.events[0].object)
        third = await store.commit([create(a_task("t3"))])
        assert watcher.take_ready() == [third]
    await store.commit([create(a_task("t4"))])
    assert watcher.take_ready() == []


async def test_a_slow_watcher_is_told_to_resync_and_disturbs_no_other():
    store, _ = a_store()
    with store.watch(queue_max=2) as slow, store.watch() as other:
        for number in range(4):
            await store.commit([create(a_task(f"t{number}"))])
        seen = [(await slow.next()).version for _ in range(2)]
        with pytest.raises(FailedPrecondition, match="fell behind: read the state again"):
            await slow.next()
        await store.commit([create(a_task("t9"))])
        with pytest.raises(FailedPrecondition):
            await slow.next()
        assert seen == [1, 2]
        assert [commit.version for commit in other.take_ready()] == [1, 2, 3, 4, 5]


async def test_the_spec_version_rises_with_the_template_alone():
    store, _ = a_store([a_service("web", replicas=1)])
    web = store.view.services.resolve("web")
    scaled = await store.commit([update(web.replaced(spec=a_service("web", replicas=5).spec))])
    web = store.view.services.resolve("web")
    assert web.meta.version.index == scaled.version
    assert web.spec_version.index == 1
    template = web.spec.task.replaced(force_update=1)
    changed = await store.commit([update(web.replaced(spec=web.spec.replaced(task=template)))])
    assert store.view.services.resolve("web").spec_version.index == changed.version


def test_nodes_that_share_a_name_are_ambiguous_until_one_is_left():
    one, two = (a_node(name) for name in ("n1", "n2"))
    two = two.replaced(description=one.description)
    tables = Tables([one, two])
    with pytest.raises(InvalidArgument, match=r"host-n1 is ambiguous \(2 matches found\)"):
        tables.nodes.resolve("host-n1")
    tables.remove(one)
    assert tables.nodes.resolve("HOST-N1") == two
    with pytest.raises(InvalidArgument, match="node: a name or id is needed"):
        tables.nodes.resolve("")
