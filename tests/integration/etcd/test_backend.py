"""The store over a real etcd: fences, lost answers, kills, compaction, values that are not ours."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import pytest

from manager.etcd.election import Candidate, Election, Leadership
from manager.etcd.errors import Compacted
from manager.etcd.keys import Keys
from manager.store.store import TransactionTooLarge
from shoal.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NameConflict,
    NotLeader,
    SequenceConflict,
    Unavailable,
)
from shoal.etcd.v1 import rpc_pb2 as pb
from shoal.model.plan import create, remove, update
from tests.support.etcd import (
    Etcd,
    Wire,
    etcd_client,
    etcd_server,
    etcd_store,
    needs_etcd,
    until_leader,
)
from tests.support.managing import running, until
from tests.support.planning import a_service, a_task

pytestmark = [pytest.mark.etcd, needs_etcd]

DEADLINE_S = 60.0


def through(wire: Wire, prefix: str, query: str = "") -> str:
    return f"etcd://127.0.0.1:{wire.port}/{prefix}?{query}"


async def test_more_operations_than_etcd_takes_are_refused_whole(server: Etcd, prefix: str):
    async with etcd_store(server.url(prefix), address="me:1") as (store, consensus):
        assert consensus.changes_max == 127
        tasks = [create(a_task(f"t{n}")) for n in range(128)]
        with pytest.raises(
            TransactionTooLarge,
            match=r"129 operations in etcd, at most 128: .* etcd's --max-txn-ops",
        ):
            await store.commit(tasks)
        assert len(store.view.tasks) == 0
        await store.commit(tasks[: consensus.changes_max])
        services = [create(a_service(f"s{n}")) for n in range(64)]
        with pytest.raises(TransactionTooLarge, match="129 operations"):
            await store.commit(services)
        await store.commit(services[:63])


async def test_with_more_operations_allowed_a_transaction_has_200_changes(tmp_path: Path):
    with etcd_server(tmp_path, options=["--max-txn-ops", "512"]) as server:
        url = server.url("big", "max_txn_ops=512")
        async with etcd_store(url, address="me:1") as (store, consensus):
            assert consensus.changes_max == 200
            await store.commit([create(a_service(f"s{n}")) for n in range(200)])
            assert len(store.view.services) == 200


async def test_what_fits_an_entry_but_no_request_is_refused(server: Etcd, prefix: str):
    url = server.url(prefix, "max_request_bytes=65536")
    async with etcd_store(url, address="me:1") as (store, _):
        rows = [create(a_task(f"t{n}", service_id="x" * 2000)) for n in range(60)]
        with pytest.raises(TransactionTooLarge, match=r"at most 65536.*--max-request-bytes"):
            await store.commit(rows)
        await store.commit(rows[:20])


async def test_two_that_write_at_once_are_kept_apart_by_etcd(server: Etcd, prefix: str):
    url = server.url(prefix)
    async with etcd_store(url) as (one, _), etcd_store(url) as (two, _):
        await one.commit([create(a_service("web"))])
        # The second's mirror may not have it yet: it must find out before it refuses.
        with pytest.raises(NameConflict, match="already in use by web"):
            await two.commit([create(a_service("other").replaced(spec=a_service("web").spec))])
        web = two.view.services.resolve("web")
        results = await asyncio.gather(
            *(store.commit([update(web)]) for _ in range(5) for store in (one, two)),
            return_exceptions=True,
        )
        kinds = sorted(type(result).__name__ for result in results)
        assert kinds == ["Commit", *["SequenceConflict"] * 9]
        await two.commit([remove(two.view.services.resolve("web"))])
        await one.commit([create(a_service("other").replaced(spec=a_service("web").spec))])
        await until(lambda: one.rows() == two.rows())


async def test_a_mirror_that_lags_refuses_nothing_before_it_has_caught_up(
    server: Etcd, prefix: str
):
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(server.port))
        late, _ = await stack.enter_async_context(etcd_store(through(wire, prefix)))
        store, _ = await stack.enter_async_context(etcd_store(server.url(prefix)))
        wire.answers.clear()
        made = await store.commit([create(a_service("web"))])
        proposed = asyncio.create_task(late.commit([update(a_service("web", replicas=7))]))
        await asyncio.sleep(0.2)
        assert not proposed.done()
        assert len(late.view.services) == 0
        wire.answers.set()
        (event,) = (await proposed).events
        assert event.old == made.events[0].object


async def test_leadership_is_announced_when_the_store_has_caught_up(server: Etcd, prefix: str):
    caught_up = asyncio.Event()
    fences: list[int] = []

    async def catch_up(fence: int) -> None:
        fences.append(fence)
        await caught_up.wait()

    async with etcd_client(server.url(prefix)) as client:
        election = Election(client, Keys(prefix), Candidate("me:1"), ttl_s=10, catch_up=catch_up)
        async with running(election.run):
            await until(lambda: fences)
            assert not election.leadership.value.leader
            caught_up.set()
            await until(lambda: election.leadership.value.leader)
            assert election.leadership.value == Leadership(True, fences[0], "me:1")
        assert not election.leadership.value.leader
        held = await client.range(pb.RangeRequest(key=Keys(prefix).leader))
        assert held.count == 0, "the leadership is given back at the end"


async def test_followers_mirror_and_refuse_to_write(server: Etcd, prefix: str):
    url = server.url(prefix)
    async with AsyncExitStack() as stack:
        one, leader = await stack.enter_async_context(etcd_store(url, address="one:1"))
        two, follower = await stack.enter_async_context(etcd_store(url, address=None))
        await one.commit([create(a_task("t1"))])
        assert await follower.barrier() >= one.view.version
        assert two.rows() == one.rows()
        three, _ = await stack.enter_async_context(etcd_store(url, address="three:1", lead=False))
        await until(lambda: _leader_seen_by(three) == "one:1")
        with pytest.raises(NotLeader, match="does not lead the cluster, one:1 does") as refused:
            await three.commit([create(a_task("t2"))])
        assert refused.value.context["leader_address"] == "one:1"
        await leader.resign()
        with pytest.raises(NotLeader):
            await one.commit([create(a_task("t2"))])
        async with asyncio.timeout(DEADLINE_S):
            await until_leader(three._proposer)
        await three.commit([create(a_task("t2"))])
        await until(lambda: len(one.view.tasks) == 2)
        await until(lambda: _leader_seen_by(one) == "three:1")


def _leader_seen_by(store) -> str:
    return store._proposer.leading.value.leader_address


async def test_a_leader_that_was_replaced_without_knowing_it_writes_nothing(
    server: Etcd, prefix: str
):
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(server.port))
        opened = etcd_store(through(wire, prefix), address="old:1")
        old, _ = await stack.enter_async_context(opened)
        await old.commit([create(a_task("t1"))])
        wire.requests.clear()
        late = asyncio.create_task(old.commit([create(a_task("late"))]))
        lease = server.ctl("get", f"/{prefix}/leader", "--write-out=fields").split('"Lease" : ')[1]
        server.ctl("lease", "revoke", f"{int(lease.split()[0]):x}")
        opened = etcd_store(server.url(prefix), address="new:1")
        new, _ = await stack.enter_async_context(opened)
        assert not late.done()
        wire.requests.set()
        with pytest.raises(NotLeader, match="does not lead the cluster, new:1 does") as refused:
            await late
        assert refused.value.context["leader_address"] == "new:1"
        await new.commit([create(a_task("t2"))])
        assert {task.id for task in new.view.tasks} == {"t1", "t2"}
        await until(lambda: old.rows() == new.rows())


async def test_leadership_ends_here_before_it_ends_there(server: Etcd, prefix: str):
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(server.port))
        url = through(wire, prefix, "lease_ttl_s=3")
        store, consensus = await stack.enter_async_context(etcd_store(url, address="cut:1"))
        client = await stack.enter_async_context(etcd_client(server.url(prefix)))
        key = f"/{prefix}/leader".encode()
        wire.requests.clear()
        async with asyncio.timeout(DEADLINE_S):
            await until_leader(consensus, leader=False)
        with pytest.raises(NotLeader):
            await store.commit([create(a_task("t1"))])
        held = await client.range(pb.RangeRequest(key=key))
        assert held.kvs[0].value == b"cut:1", "etcd ended it first"
        async with client.watch(key, b"", start_revision=held.header.revision + 1) as watch:
            async with asyncio.timeout(DEADLINE_S):
                gone = await anext(aiter(watch))
        assert gone.events[0].type == pb.Event.DELETE
        wire.cut()
        wire.requests.set()
        async with asyncio.timeout(DEADLINE_S):
            assert await until_leader(consensus) > gone.revision
        await store.commit([create(a_task("t1"))])


async def test_a_leader_whose_key_is_taken_away_steps_back(server: Etcd, prefix: str):
    async with etcd_store(server.url(prefix), address="me:1") as (store, consensus):
        fence = await until_leader(consensus)
        states = consensus.leadership()
        assert (await anext(states)).fence == fence
        server.ctl("del", f"/{prefix}/leader")
        async with asyncio.timeout(DEADLINE_S):
            assert not (await anext(states)).leader
            assert await until_leader(consensus) > fence
        await store.commit([create(a_task("t1"))])
        await states.aclose()


async def test_a_lost_answer_is_found_out(server: Etcd, prefix: str):
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(server.port))
        opened = etcd_store(through(wire, prefix, "timeout_s=5"))
        store, _ = await stack.enter_async_context(opened)
        client = await stack.enter_async_context(etcd_client(server.url(prefix)))
        await store.commit([create(a_service("web")), create(a_task("t1"))])
        web, task = store.view.services.resolve("web"), store.view.tasks.resolve("t1")
        wire.drop_answers = True
        change = [update(web), create(a_task("t2")), remove(task)]
        proposed = asyncio.create_task(store.commit(change))
        key = f"/{prefix}/store/task/t2".encode()
        async with asyncio.timeout(DEADLINE_S):
            while not (answer := await client.range(pb.RangeRequest(key=key))).kvs:
                await asyncio.sleep(0.01)
        wire.cut()
        wire.drop_answers = False
        commit = await proposed
        assert commit.version == answer.kvs[0].mod_revision
        assert [event.subject.id for event in commit.events] == ["web", "t2", "t1"]
        assert commit.events[0].object == store.view.services.resolve("web")


async def test_a_lost_request_is_sent_again(server: Etcd, prefix: str):
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(server.port))
        store, _ = await stack.enter_async_context(etcd_store(through(wire, prefix)))
        await store.commit([create(a_task("t1"))])
        wire.requests.clear()
        proposed = asyncio.create_task(store.commit([create(a_task("t2"))]))
        await asyncio.sleep(0.2)
        wire.cut()
        wire.requests.set()
        commit = await proposed
        assert [event.subject.id for event in commit.events] == ["t2"]
        assert len(store.view.tasks) == 2


async def test_an_outcome_that_cannot_be_known_is_not_guessed(server: Etcd, prefix: str):
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(server.port))
        store, _ = await stack.enter_async_context(etcd_store(through(wire, prefix)))
        other, _ = await stack.enter_async_context(etcd_store(server.url(prefix)))
        await store.commit([create(a_service("web"))])
        wire.drop_answers = True
        web = store.view.services.resolve("web")
        proposed = asyncio.create_task(store.commit([update(web)]))
        await until(lambda: other.view.version > web.meta.version.index)
        await other.commit([update(other.view.services.resolve("web"))])
        wire.cut()
        wire.drop_answers = False
        with pytest.raises(DeadlineExceeded, match="may or may not have been carried out"):
            await proposed


async def test_history_that_was_compacted_away_ends_in_a_resync(server: Etcd, prefix: str):
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(server.port))
        late, _ = await stack.enter_async_context(etcd_store(through(wire, prefix)))
        store, _ = await stack.enter_async_context(etcd_store(server.url(prefix)))
        client = await stack.enter_async_context(etcd_client(server.url(prefix)))
        await store.commit([create(a_service("web")), create(a_task("t1"))])
        await until(lambda: late.rows() == store.rows())
        with late.watch() as watcher:
            waiting = asyncio.create_task(watcher.next())
            wire.requests.clear()
            wire.cut()
            await store.commit([remove(store.view.tasks.resolve("t1"))])
            for number in range(5):
                await store.commit([create(a_task(f"n{number}"))])
            await client.compact(store.view.version)
            wire.requests.set()
            with pytest.raises(FailedPrecondition, match="read the state again"):
                await waiting
            with pytest.raises(FailedPrecondition):
                await watcher.next()
        assert sorted(late.rows(), key=_by_id) == sorted(store.rows(), key=_by_id)
        with late.watch() as watcher:
            commit = await store.commit([create(a_task("after"))])
            assert await watcher.next() == commit
            await late.commit([create(a_task("mine"))])


def _by_id(row) -> str:
    return row.id


async def test_kills_during_writes_lose_nothing_that_was_acknowledged(tmp_path: Path):
    with etcd_server(tmp_path) as server:
        async with AsyncExitStack() as stack:
            opened = etcd_store(server.url("kill"), address="me:1")
            store, consensus = await stack.enter_async_context(opened)
            acknowledged: set[str] = set()
            stop = asyncio.Event()

            async def write(number: int) -> None:
                for turn in count():
                    if stop.is_set():
                        return
                    name = f"t{number}-{turn}"
                    try:
                        await store.commit([create(a_task(name))])
                    except (Unavailable, DeadlineExceeded, NotLeader):
                        await asyncio.sleep(0.05)
                    else:
                        acknowledged.add(name)

            writers = [asyncio.create_task(write(number)) for number in range(16)]
            for _ in range(4):
                before = len(acknowledged)
                async with asyncio.timeout(DEADLINE_S):
                    while len(acknowledged) < before + 200:
                        await asyncio.sleep(0.01)
                server.kill()
                await asyncio.to_thread(server.start)
            before = len(acknowledged)
            async with asyncio.timeout(DEADLINE_S):
                while len(acknowledged) < before + 100:
                    await asyncio.sleep(0.01)
            stop.set()
            await asyncio.gather(*writers)
            await consensus.barrier()
            assert acknowledged <= {task.id for task in store.view.tasks}
            async with etcd_store(server.url("kill")) as (fresh, _):
                assert acknowledged <= {task.id for task in fresh.view.tasks}
                assert sorted(fresh.rows(), key=_by_id) == sorted(store.rows(), key=_by_id)


async def test_values_that_are_not_ours_end_the_backend_loudly(server: Etcd, prefix: str):
    async with etcd_store(server.url(prefix)) as (store, consensus):
        await store.commit([create(a_task("t1"))])
        server.ctl("put", f"/{prefix}/store/task/t2", "not an object")
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(FailedPrecondition, match=r"store/task/t2.*restore it, or upgrade"):
                await consensus.wait_failed()
        with pytest.raises(Unavailable, match="cannot be followed"):
            await store.commit([create(a_task("t3"))])
    with pytest.raises(FailedPrecondition, match="store/task/t2"):
        async with etcd_store(server.url(prefix)):
            pass
    server.ctl("del", f"/{prefix}/store/task/t2")
    server.ctl("put", f"/{prefix}/store/alien/x", "")
    with pytest.raises(FailedPrecondition, match="store/alien/x is not ours"):
        async with etcd_store(server.url(prefix)):
            pass


async def test_the_leader_drops_old_history(tmp_path: Path):
    with etcd_server(tmp_path) as server:
        async with AsyncExitStack() as stack:
            url = server.url("old", "compact_s=1")
            store, _ = await stack.enter_async_context(etcd_store(url, address="me:1"))
            client = await stack.enter_async_context(etcd_client(server.url("old")))
            first = (await store.commit([create(a_task("t0"))])).version
            async with asyncio.timeout(DEADLINE_S):
                for number in count(1):
                    await store.commit([create(a_task(f"t{number}"))])
                    try:
                        await client.range(pb.RangeRequest(key=b"x", revision=first))
                    except Compacted:
                        break
                    await asyncio.sleep(0.05)
            assert len(store.view.tasks) == number + 1


async def test_conflicts_of_many_writers_are_all_decided(server: Etcd, prefix: str):
    url = server.url(prefix)
    async with etcd_store(url) as (one, _), etcd_store(url) as (two, _):
        await one.commit([create(a_service("web", replicas=0))])
        await two._proposer.barrier()

        async def add(store) -> int:
            while True:
                web = store.view.services.resolve("web")
                replicas = web.spec.mode.replicas + 1
                try:
                    await store.commit(
                        [update(web.replaced(spec=a_service(replicas=replicas).spec))]
                    )
                except SequenceConflict:
                    continue
                return replicas

        seen = await asyncio.gather(*(add(store) for _ in range(15) for store in (one, two)))
        assert sorted(seen) == list(range(1, 31))
        await one._proposer.barrier()
        assert one.view.services.resolve("web").spec.mode.replicas == 30


async def test_stopping_answers_those_who_wait(server: Etcd, prefix: str):
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(server.port))
        opened = etcd_store(through(wire, prefix))
        async with opened as (store, _):
            await store.commit([create(a_task("t1"))])
            wire.requests.clear()
            waiting = asyncio.create_task(store.commit([create(a_task("t2"))]))
            await asyncio.sleep(0.1)
        with pytest.raises(Unavailable):
            await waiting
