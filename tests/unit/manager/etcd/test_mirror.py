"""A watch that does not continue what we hold is not believed: everything is read anew."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager

import pytest

from manager.etcd.client import Page
from manager.etcd.errors import Compacted
from manager.etcd.keys import Keys
from manager.etcd.mirror import LOADS_MAX, Mirror
from manager.etcd.watching import Revision
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.clock import SystemClock
from shoal.errors import DeadlineExceeded, FailedPrecondition, SwarmError, Unavailable
from shoal.etcd.v1 import rpc_pb2 as pb
from shoal.wire.objects import object_to_bytes
from tests.support.managing import running, until
from tests.support.planning import a_task

KEYS = Keys("p")


def a_kv(task_id: str, revision: int, *, created: int = 0, slot: int = 1) -> pb.KeyValue:
    return pb.KeyValue(
        key=KEYS.object("task", task_id),
        value=object_to_bytes(a_task(task_id, slot=slot)),
        create_revision=created or revision,
        mod_revision=revision,
    )


def a_put(kv: pb.KeyValue, previous: pb.KeyValue | None = None) -> pb.Event:
    return pb.Event(kv=kv, prev_kv=previous)


def a_delete(task_id: str, revision: int, previous: pb.KeyValue | None = None) -> pb.Event:
    key = KEYS.object("task", task_id)
    return pb.Event(
        type=pb.Event.DELETE, kv=pb.KeyValue(key=key, mod_revision=revision), prev_kv=previous
    )


class ScriptedClient:
    """Answers reads and watches by hand; a read waits until there is something to answer."""

    def __init__(self) -> None:
        self.reads: deque[list[Page] | SwarmError] = deque()
        self.starts: list[int] = []
        self._watch: asyncio.Queue[list[Revision] | SwarmError] = asyncio.Queue()

    async def pages(self, key: bytes, range_end: bytes):
        assert (key, range_end) == (b"/p/store/", b"/p/store0")
        answer = self.reads.popleft()
        if isinstance(answer, SwarmError):
            raise answer
        for page in answer:
            yield page

    @asynccontextmanager
    async def watch(self, key: bytes, range_end: bytes, *, start_revision: int, prev_kv: bool):
        assert prev_kv
        self.starts.append(start_revision)
        yield self

    async def read(self) -> list[Revision]:
        answer = await self._watch.get()
        if isinstance(answer, SwarmError):
            raise answer
        return answer

    def show(self, revision: int, *events: pb.Event) -> None:
        self._watch.put_nowait([Revision(revision, events)])

    def fail(self, error: SwarmError) -> None:
        self._watch.put_nowait(error)


@pytest.fixture
async def parts():
    client, store = ScriptedClient(), Store(Tables(), SystemClock())
    mirror = Mirror(client, KEYS, store)
    client.reads.append([Page(10, (a_kv("a", 4), a_kv("b", 5)))])
    await mirror.load()
    return client, store, mirror


async def test_revisions_are_applied_whole_and_in_order(parts):
    client, store, mirror = parts
    assert store.view.version == 10
    barrier = pb.Event(kv=pb.KeyValue(key=KEYS.barrier, mod_revision=11))
    with store.watch() as watcher:
        async with running(mirror.follow):
            client.show(11, barrier)
            client.show(12, a_delete("a", 12, a_kv("a", 4)), a_put(a_kv("c", 12)))
            client.show(20)
            client.show(13, a_put(a_kv("b", 13, created=5, slot=9), a_kv("b", 5)))
            await mirror.wait_applied(13, 10)
        versions = [commit.version for commit in watcher.take_ready()]
    assert versions == [12, 13], "a barrier is no commit, progress moves nothing"
    assert {task.id: task.meta.version.index for task in store.view.tasks} == {"c": 12, "b": 13}
    assert client.starts == [11]


@pytest.mark.parametrize(
    "events",
    [
        [a_put(a_kv("b", 11, created=11))],
        [a_put(a_kv("new", 11, created=7))],
        [a_put(a_kv("b", 11, created=5), a_kv("b", 6, created=5))],
        [a_put(a_kv("c", 11)), a_delete("gone", 11)],
        [a_delete("a", 11, a_kv("a", 9, created=4))],
    ],
    ids=["created twice", "changed unseen", "changed from another", "removed unseen", "other gone"],
)
async def test_a_gap_is_noticed_nothing_of_it_applied_and_all_read_anew(parts, events):
    client, store, mirror = parts
    client.reads.append([Page(30, (a_kv("x", 25),)), Page(30, (a_kv("y", 26),))])
    with store.watch() as watcher:
        async with running(mirror.follow):
            client.show(11, *events)
            await mirror.wait_applied(30, 10)
            await until(lambda: client.starts == [11, 31])
        with pytest.raises(FailedPrecondition, match="read the state again"):
            await watcher.next()
    assert {task.id for task in store.view.tasks} == {"x", "y"}


async def test_compacted_history_is_read_anew_and_a_broken_watch_goes_on(parts):
    client, store, mirror = parts
    client.reads.extend([Unavailable("later"), [Page(30, (a_kv("x", 25),))]])
    with store.watch() as watcher:
        async with running(mirror.follow):
            client.show(11, a_put(a_kv("c", 11)))
            await mirror.wait_applied(11, 10)
            client.fail(Unavailable("gone"))
            client.show(12, a_put(a_kv("d", 12)))
            await mirror.wait_applied(12, 10)
            assert client.starts == [11, 12], "where it was"
            client.fail(Compacted("too late"))
            await mirror.wait_applied(30, 10)
        assert [commit.version for commit in watcher.take_ready()] == [11, 12]
    assert {task.id for task in store.view.tasks} == {"x"}


async def test_who_waits_is_told_when_it_comes_too_late_or_never(parts):
    _, _, mirror = parts
    await mirror.wait_applied(10, 10)
    with pytest.raises(DeadlineExceeded, match=r"revision 11 was not seen .* manager is at 10"):
        await mirror.wait_applied(11, 0.01)
    waiting = asyncio.create_task(mirror.wait_applied(11, 10))
    await asyncio.sleep(0)
    mirror.fail("it is over")
    with pytest.raises(Unavailable, match="it is over"):
        await waiting


async def test_reading_begins_again_when_history_ends_under_it():
    client, store = ScriptedClient(), Store(Tables(), SystemClock())
    mirror = Mirror(client, KEYS, store)
    client.reads.extend([Compacted("too slow"), [Page(7, (a_kv("a", 4),))]])
    await mirror.load()
    assert store.view.version == 7
    client.reads.extend([Compacted("too slow")] * LOADS_MAX)
    with pytest.raises(Compacted):
        await mirror.load()
    assert len(client.reads) == 0
    assert len(store.view.tasks) == 1
