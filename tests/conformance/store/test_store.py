"""What a store promises, whatever makes its transactions durable."""

from __future__ import annotations

import asyncio

import pytest

from manager.store.store import Store, TransactionTooLarge, commit_with_retry
from shoal.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NameConflict,
    NotFound,
    SequenceConflict,
)
from shoal.model.enums import ActionKind
from shoal.model.objects import Service, StoreAction, StoreEntry
from shoal.model.plan import CHANGES_MAX, Change, create, remove, update
from shoal.model.types import Annotations
from tests.conformance.store.conftest import Backend
from tests.support.planning import a_node, a_service, a_task


def renamed(service: Service, name: str) -> Service:
    return service.replaced(spec=service.spec.replaced(annotations=Annotations(name=name)))


def named(service_id: str, name: str) -> Service:
    return renamed(a_service(service_id), name)


def held(store: Store) -> dict[tuple[str, str], object]:
    return {(type(row).__name__, row.id): row for row in store.rows()}


async def propose(store: Store, *actions: tuple[ActionKind, object, int]):
    """An entry as it is, past the checks of `commit`."""
    entry = StoreEntry(
        actions=tuple(
            StoreAction(kind=kind, object=row, expected_version=version)
            for kind, row, version in actions
        ),
        proposed_at_ns=7,
    )
    return await store._proposer.propose(entry)


async def test_a_commit_is_seen_by_its_author_when_it_returns(backend: Backend):
    async with backend.opened() as store:
        commit = await store.commit([create(a_service("web")), create(a_task("t1"))])
        assert store.view.version == commit.version
        assert [event.object for event in commit.events] == [
            store.view.services.resolve("web"),
            store.view.tasks.resolve("t1"),
        ]
        assert {event.object.meta.version.index for event in commit.events} == {commit.version}
        later = await store.commit([remove(store.view.tasks.resolve("t1"))])
        assert later.version > commit.version
        assert later.events[0].old == commit.events[1].object
        assert len(store.view.tasks) == 0


async def test_a_transaction_is_all_or_nothing(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(a_service("web")), create(a_task("t1"))])
        before = held(store)
        task = store.view.tasks.resolve("t1")
        changes = [remove(task), create(a_task("t2")), create(named("two", "web"))]
        with pytest.raises(
            NameConflict,
            match=r"^service name 'web' is already in use by web: choose another name or remove",
        ):
            await store.commit(changes)
        assert held(store) == before
        assert dict(store.view.tasks_of_node("n1")) == {"t1": task}


async def test_a_stale_version_is_refused_and_says_both_versions(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(a_service("web"))])
        read = store.view.services.resolve("web")
        newer = await store.commit([update(read)])
        for change in (update(read), remove(read)):
            with pytest.raises(SequenceConflict) as refused:
                await store.commit([change])
            assert refused.value.message == (
                f"service web: update out of sequence (read at version {read.meta.version.index}, "
                f"now at {newer.version}): read it again and retry"
            )


async def test_of_pipelined_proposals_one_wins(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(a_service("web"))])
        web = store.view.services.resolve("web")
        results = await asyncio.gather(
            *(store.commit([update(web)]) for _ in range(8)), return_exceptions=True
        )
        won = [result for result in results if not isinstance(result, BaseException)]
        assert len(won) == 1
        assert {type(result) for result in results if result is not won[0]} == {SequenceConflict}
        assert store.view.services.resolve("web").meta.version.index == won[0].version


async def test_an_update_without_a_version_comes_after_whatever_is_there(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(a_service("web"))])
        blind = [store.commit([update(a_service("web", replicas=n))]) for n in range(6)]
        commits = await asyncio.gather(*blind)
        assert len({commit.version for commit in commits}) == 6
        last = max(commits, key=lambda commit: commit.version)
        assert store.view.services.resolve("web") == last.events[0].object
        await store.commit([remove(a_service("web"))])
        assert len(store.view.services) == 0


async def test_creating_twice_and_changing_what_is_not_there(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(a_service("web"))])
        with pytest.raises(AlreadyExists, match=r"^service web already exists$"):
            await store.commit([create(a_service("web"))])
        for change in (update(a_task("gone")), remove(a_task("gone"))):
            with pytest.raises(NotFound, match=r"^task gone not found$"):
                await store.commit([change])


async def test_an_action_without_a_kind_is_refused(backend: Backend):
    async with backend.opened() as store:
        with pytest.raises(InvalidArgument, match="the action must be create, update or remove"):
            await propose(store, (ActionKind.UNSPECIFIED, a_task("t1"), 0))
        assert store.rows() == ()


async def test_names_are_unique_without_case_and_free_again_when_given_up(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(named("a", "Web"))])
        with pytest.raises(NameConflict, match="'web' is already in use by a"):
            await store.commit([create(named("b", "WEB"))])
        await store.commit([update(renamed(store.view.services.resolve("a"), "front"))])
        await store.commit([create(named("b", "WEB"))])
        with pytest.raises(NameConflict, match="'web' is already in use by b"):
            await store.commit([update(renamed(store.view.services.resolve("a"), "web"))])
        await store.commit([remove(store.view.services.resolve("b"))])
        await store.commit([update(renamed(store.view.services.resolve("a"), "web"))])
        await store.commit([update(renamed(store.view.services.resolve("a"), "WeB"))])
        assert store.view.services.by_name("web").id == "a"


async def test_a_name_passes_on_within_one_transaction(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(named("a", "web"))])
        await store.commit([remove(store.view.services.resolve("a")), create(named("b", "web"))])
        b = store.view.services.resolve("b")
        await store.commit([update(renamed(b, "old")), create(named("c", "web"))])
        b, c = (store.view.services.resolve(one) for one in "bc")
        with pytest.raises(NameConflict, match="'web' is already in use by c"):
            await store.commit([update(renamed(b, "web")), update(renamed(c, "old"))])
        await store.commit([remove(c), update(renamed(b, "web"))])
        assert {row.id: row.spec.annotations.name for row in store.view.services} == {"b": "web"}
        with pytest.raises(NameConflict):
            await store.commit([create(named("d", "web"))])
        await store.commit([create(named("d", "old"))])


async def test_two_at_once_cannot_have_one_name(backend: Backend):
    async with backend.opened() as store:
        both = (store.commit([create(named(one, "web"))]) for one in ("a", "b", "c"))
        results = await asyncio.gather(*both, return_exceptions=True)
        kinds = sorted(type(result).__name__ for result in results)
        assert kinds == ["Commit", "NameConflict", "NameConflict"]


async def test_tasks_have_no_names_and_nodes_may_share_theirs(backend: Backend):
    async with backend.opened() as store:
        one, two = a_node("n1"), a_node("n2")
        await store.commit([create(one), create(two.replaced(description=one.description))])
        assert [node.id for node in store.view.nodes.named("host-n1")] == ["n1", "n2"]
        tasks = [a_task(one).replaced(annotations=Annotations(name="same")) for one in ("a", "b")]
        await store.commit([create(task) for task in tasks])
        assert len(store.view.tasks) == 2


async def test_one_object_twice_in_a_transaction_ends_as_the_last_change_says(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(a_service("web"))])
        await propose(
            store,
            (ActionKind.CREATE, a_task("t1", slot=1), 0),
            (ActionKind.UPDATE, a_task("t1", slot=2), 0),
            (ActionKind.CREATE, a_task("t2"), 0),
            (ActionKind.REMOVE, a_task("t2"), 0),
            (ActionKind.REMOVE, a_service("web"), 0),
            (ActionKind.CREATE, named("web", "again"), 0),
        )
        assert {task.id: task.slot for task in store.view.tasks} == {"t1": 2}
        assert store.view.services.resolve("again").id == "web"
        await store.commit([create(named("other", "web"))])
        with pytest.raises(AlreadyExists, match="task t3 already exists"):
            await propose(
                store,
                (ActionKind.CREATE, a_task("t3"), 0),
                (ActionKind.CREATE, a_task("t3"), 0),
            )
        assert store.view.tasks.get("t3") is None


async def test_times_are_those_of_the_proposal(backend: Backend):
    async with backend.opened() as store:
        made_ns = backend.clock.now_ns()
        await store.commit([create(a_service("web"))])
        backend.clock.advance(5)
        await store.commit([update(store.view.services.resolve("web"))])
        meta = store.view.services.resolve("web").meta
        assert (meta.created_at_ns, meta.updated_at_ns) == (made_ns, made_ns + 5_000_000_000)


async def test_the_spec_version_rises_with_the_template_alone(backend: Backend):
    async with backend.opened() as store:
        first = await store.commit([create(a_service("web", replicas=1))])
        web = store.view.services.resolve("web")
        scaled = await store.commit([update(web.replaced(spec=a_service("web", replicas=5).spec))])
        web = store.view.services.resolve("web")
        assert (web.meta.version.index, web.spec_version.index) == (scaled.version, first.version)
        template = web.spec.task.replaced(force_update=1)
        change = update(web.replaced(spec=web.spec.replaced(task=template)))
        changed = await store.commit([change])
        assert store.view.services.resolve("web").spec_version.index == changed.version
        await store.commit([update(store.view.services.resolve("web"))])
        assert store.view.services.resolve("web").spec_version.index == changed.version


async def test_a_watch_sees_exactly_the_commits_after_it_whole_and_in_order(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(a_service("web"))])
        with store.watch() as watcher:
            first = await store.commit([create(a_task("t2")), create(a_task("t1"))])
            with pytest.raises(AlreadyExists):
                await store.commit([create(a_task("t1"))])
            one, web = store.view.tasks.resolve("t1"), store.view.services.resolve("web")
            second = await store.commit([remove(one), update(web), create(a_task("t0"))])
            assert [await watcher.next(), await watcher.next()] == [first, second]
            assert watcher.take_ready() == []
            assert [event.subject.id for event in first.events] == ["t2", "t1"]
            assert [(event.action, event.subject.id) for event in second.events] == [
                (ActionKind.REMOVE, "t1"),
                (ActionKind.UPDATE, "web"),
                (ActionKind.CREATE, "t0"),
            ]
            assert second.events[1].old == web
        await store.commit([create(a_task("t4"))])
        assert watcher.take_ready() == []


async def test_a_slow_watcher_is_told_to_resync_and_disturbs_no_other(backend: Backend):
    async with backend.opened() as store:
        with store.watch(queue_max=2) as slow, store.watch() as other:
            made = [(await store.commit([create(a_task(f"t{n}"))])).version for n in range(4)]
            assert [(await slow.next()).version for _ in range(2)] == made[:2]
            with pytest.raises(FailedPrecondition, match="fell behind: read the state again"):
                await slow.next()
            assert [commit.version for commit in other.take_ready()] == made


async def test_what_a_transaction_may_hold(backend: Backend):
    async with backend.opened() as store:
        many = [create(a_task(f"t{number}")) for number in range(CHANGES_MAX + 1)]
        with pytest.raises(InvalidArgument, match="201 changes, at most 200"):
            await store.commit(many)
        # In between, etcd wants a larger --max-txn-ops, and says so: tests/integration/etcd.
        assert len((await store.commit(many[:127])).events) == 127
        empty = await store.commit([])
        assert (empty.events, empty.version) == ((), store.view.version)


async def test_an_entry_above_the_limit_is_refused_and_the_next_is_not(backend: Backend):
    async with backend.opened() as store:
        label = {"blob": "x" * 1_600_000}
        row = a_task("big").replaced(annotations=Annotations(labels=label))
        with pytest.raises(
            TransactionTooLarge, match=r"^transaction: 16\d{5} bytes, at most 1572864: make it"
        ):
            await store.commit([create(row)])
        row = a_task("big").replaced(annotations=Annotations(labels={"blob": "x" * 1_400_000}))
        await store.commit([create(row)])
        await store.commit([update(store.view.tasks.resolve("big"))])
        assert len(store.view.tasks.resolve("big").annotations.labels["blob"]) == 1_400_000


async def test_64_proposers_each_get_their_own_result(backend: Backend):
    async with backend.opened() as store:

        async def one(number: int) -> list[int]:
            versions = []
            for turn in range(5):
                commit = await store.commit([create(a_task(f"t{number}-{turn}"))])
                assert [event.subject.id for event in commit.events] == [f"t{number}-{turn}"]
                assert store.view.tasks.get(f"t{number}-{turn}") is not None
                versions.append(commit.version)
            assert versions == sorted(versions)
            return versions

        versions = [v for found in await asyncio.gather(*map(one, range(64))) for v in found]
        assert len(set(versions)) == len(store.view.tasks) == 320


async def test_a_retry_builds_from_the_newest_view(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(a_service("web", replicas=0))])

        def add_one(view) -> list[Change]:
            web = view.services.get("web")
            return [update(web.replaced(spec=a_service(replicas=web.spec.mode.replicas + 1).spec))]

        tries = (commit_with_retry(store, add_one, attempts_max=30) for _ in range(20))
        await asyncio.gather(*tries)
        assert store.view.services.resolve("web").spec.mode.replicas == 20


async def test_a_cancelled_proposal_disturbs_nobody(backend: Backend):
    async with backend.opened() as store:
        tasks = [asyncio.create_task(store.commit([create(a_task(f"t{n}"))])) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(not isinstance(result, BaseException) for result in results[1::2])
        await store.commit([create(a_task("last"))])
        wanted = {f"t{number}" for number in range(1, 20, 2)} | {"last"}
        assert {task.id for task in store.view.tasks} >= wanted


async def test_opened_again_it_holds_what_it_held(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(a_service("web")), create(a_node("n1")), create(a_task("t1"))])
        await store.commit([update(store.view.services.resolve("web"))])
        template = store.view.services.resolve("web").spec.task.replaced(force_update=3)
        web = store.view.services.resolve("web")
        await store.commit([update(web.replaced(spec=web.spec.replaced(task=template)))])
        await store.commit([remove(store.view.tasks.resolve("t1")), create(a_task("t2"))])
        expected = held(store)
    async with backend.opened() as store:
        assert held(store) == expected
        with pytest.raises(NameConflict):
            await store.commit([create(named("two", "web"))])
        await store.commit([update(store.view.services.resolve("web"))])


async def test_a_watch_goes_on_where_another_ended(backend: Backend):
    async with backend.opened() as store:
        await store.commit([create(a_service("web"))])
        start = store.view.version
        with store.watch() as whole:
            await store.commit([create(a_task("t1")), create(a_task("t2"))])
            with pytest.raises(AlreadyExists):
                await store.commit([create(a_task("t1"))])
            await store.commit([remove(store.view.tasks.resolve("t1"))])
            middle = store.view.version
            with store.watch(after=start) as early, store.watch(after=middle) as late:
                await store.commit([create(a_task("t3"))])
                commits = whole.take_ready()
                assert [len(commit.events) for commit in commits] == [2, 1, 1]
                assert early.take_ready() == commits
                assert late.take_ready() == commits[2:]
        with pytest.raises(FailedPrecondition, match="is unknown: the cluster is at version"):
            store.watch(after=store.view.version + 1).__enter__()
        with (
            pytest.raises(FailedPrecondition, match="is compacted: watches can go on from version"),
            store.watch(after=-1),
        ):
            pass
