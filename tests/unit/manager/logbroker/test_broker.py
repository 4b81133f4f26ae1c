"""Readers and publishers: order, what is missing, memory, and how either side leaves."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager

import pytest

from manager.logbroker import broker as broker_module
from manager.logbroker.broker import LogBroker, Selector
from manager.logbroker.subscription import (
    LINES_MAX,
    QUEUED_BYTES_MAX,
    Ask,
    Listener,
    LogLine,
    LogOptions,
)
from shoal.errors import InvalidArgument, NotFound, ResourceExhausted
from shoal.model.enums import TaskState
from shoal.model.plan import remove
from tests.support.managing import a_store, put_now, until
from tests.support.planning import a_node, a_service, a_task

TIMEOUT_S = 20.0
WEB = Selector(services=("web",))
FOLLOW = LogOptions(follow=True)


class Rig:
    def __init__(self, *rows) -> None:
        nodes = (a_node(f"n{number}") for number in (1, 2, 3))
        self.store, self.proposer = a_store([a_service("web"), *nodes, *rows])
        self.broker = LogBroker(self.store)

    def put(self, *rows) -> None:
        for row in rows:
            put_now(self.store, self.proposer, row)


class Reading:
    """A reader in the background and what it has got."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self.missing: list[str] = []
        self.error: Exception | None = None
        self.ended = False

    @property
    def data(self) -> list[str]:
        return [line.data.decode() for line in self.lines]


@asynccontextmanager
async def reading(rig: Rig, selector: Selector = WEB, options: LogOptions = LogOptions()):  # noqa: B008
    reading = Reading()

    async def read() -> None:
        try:
            async with aclosing(rig.broker.subscribe(selector, options)) as news:
                async for item in news:
                    if isinstance(item, str):
                        reading.missing.append(item)
                    else:
                        reading.lines += item
        except (NotFound, InvalidArgument, ResourceExhausted) as error:
            reading.error = error
        reading.ended = True

    task = asyncio.create_task(read())
    try:
        await asyncio.sleep(0)
        yield reading
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def line(text: str, at_ns: int, task_id: str = "t1") -> LogLine:
    return LogLine("web", "n1", task_id, at_ns, 1, text.encode())


async def asked(listener: Listener) -> Ask:
    async with asyncio.timeout(TIMEOUT_S):
        ask = await listener.next()
    assert ask is not None
    return ask


async def publish(rig: Rig, ask: Ask, node: str, *lines: LogLine, end: bool = True) -> None:
    subscription, publisher = rig.broker.publisher(ask.subscription_id, node)
    await subscription.put(publisher, lines)
    if end:
        await subscription.end(publisher, "")


async def test_lines_of_all_nodes_come_in_the_order_of_time():
    rig = Rig(*(a_task(f"t{n}", node_id=f"n{n}", slot=n) for n in (1, 2, 3)))
    with (
        rig.broker.listen("n1") as one,
        rig.broker.listen("n2") as two,
        rig.broker.listen("n3") as three,
    ):
        async with reading(rig) as reader:
            asks = [await asked(listener) for listener in (one, two, three)]
            assert [ask.task_ids for ask in asks] == [("t1",), ("t2",), ("t3",)]
            await publish(rig, asks[0], "n1", line("a", 1), line("d", 4), line("g", 7))
            await publish(rig, asks[1], "n2", line("b", 2), line("e", 5), end=False)
            await asyncio.sleep(0.01)
            assert reader.lines == [], "the third node may have an earlier line"
            await publish(rig, asks[2], "n3", line("c", 3))
            await until(lambda: reader.data == list("abcde"))
            await publish(rig, asks[1], "n2", line("f", 6))
            await until(lambda: reader.ended)
    assert reader.data == list("abcdefg")
    assert reader.missing == []


async def test_a_selector_names_services_nodes_and_tasks():
    rig = Rig(
        a_task("t1"), a_task("t2", node_id="n2"), a_task("t3", node_id="n2", service_id="db"),
        a_task("t4", node_id="n1", state=TaskState.PENDING),
        a_task("t5", node_id="n1", service_id="db", state=TaskState.COMPLETE),
    )  # fmt: skip

    async def ask_of(selector: Selector) -> dict[str, tuple[str, ...]]:
        with rig.broker.listen("n1") as one, rig.broker.listen("n2") as two:
            async with reading(rig, selector):
                found = {}
                for node, listener in (("n1", one), ("n2", two)):
                    if not listener._queue.empty():
                        found[node] = (await asked(listener)).task_ids
                return found

    assert await ask_of(WEB) == {"n1": ("t1",), "n2": ("t2",)}
    assert await ask_of(Selector(nodes=("host-n2",))) == {"n2": ("t2", "t3")}
    assert await ask_of(Selector(tasks=("t5", "t2"))) == {"n1": ("t5",), "n2": ("t2",)}
    assert await ask_of(Selector(services=("web",), tasks=("t3",))) == {
        "n1": ("t1",), "n2": ("t2", "t3"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("selector", "error", "text"),
    [
        (Selector(), InvalidArgument, "logs: name a service, a node or a task"),
        (Selector(services=("gone",)), NotFound, "service gone not found"),
        (Selector(nodes=("gone",)), NotFound, "node gone not found"),
        (Selector(tasks=("gone",)), NotFound, "task gone not found"),
        (Selector(tasks=("t",) * 257), InvalidArgument, "logs: 257 names, at most 256"),
    ],
)
async def test_a_selector_that_names_nothing_is_refused(selector, error, text):
    rig = Rig()
    async with reading(rig, selector) as reader:
        await until(lambda: reader.ended)
    assert type(reader.error) is error
    assert text in str(reader.error)


async def test_readers_are_bounded(monkeypatch):
    monkeypatch.setattr(broker_module, "SUBSCRIPTIONS_MAX", 1)
    rig = Rig(a_task("t1"))
    with rig.broker.listen("n1"):
        async with reading(rig), reading(rig) as second:
            await until(lambda: second.ended)
            assert isinstance(second.error, ResourceExhausted)
        async with reading(rig) as third:
            await asyncio.sleep(0.01)
            assert not third.ended


async def test_nodes_that_are_away_or_silent_are_named_and_the_rest_is_read(monkeypatch):
    monkeypatch.setattr(broker_module, "PUBLISHER_WAIT_S", 0.05)
    rig = Rig(*(a_task(f"t{n}", node_id=f"n{n}", slot=n) for n in (1, 2, 3)))
    with rig.broker.listen("n1") as one, rig.broker.listen("n2"):
        async with reading(rig) as reader:
            await publish(rig, await asked(one), "n1", line("a", 1), end=False)
            await until(lambda: len(reader.missing) == 2)
            await publish(rig, Ask(next(iter(rig.broker._subscriptions))), "n1", line("b", 2))
            await until(lambda: reader.ended)
    assert reader.data == ["a", "b"]
    assert reader.missing == [
        "node host-n3 is not available", "node host-n2 did not answer in time",
    ]  # fmt: skip


async def test_no_tasks_means_no_lines():
    rig = Rig()
    async with reading(rig) as reader:
        await until(lambda: reader.ended)
    assert (reader.lines, reader.missing, reader.error) == ([], [], None)


async def test_following_passes_lines_on_at_once_and_picks_up_new_tasks():
    rig = Rig(a_task("t1"), a_task("t2", node_id="n2"))
    with rig.broker.listen("n1") as one, rig.broker.listen("n2") as two:
        async with reading(rig, options=FOLLOW) as reader:
            first = await asked(one)
            await asked(two)
            await publish(rig, first, "n1", line("late", 9), end=False)
            await until(lambda: reader.data == ["late"])
            rig.put(a_task("t3", node_id="n1", slot=3), a_task("x", node_id="n2", service_id="db"))
            again = await asked(one)
            assert (again.subscription_id, again.task_ids) == (first.subscription_id, ("t3",))
            await publish(rig, again, "n1", line("early", 1, "t3"), end=False)
            await until(lambda: reader.data == ["late", "early"])
            assert two._queue.empty()
            rig.put(a_task("t4", node_id="n3", slot=4))
            await until(lambda: reader.missing == ["node host-n3 is not available"])
            await rig.store.commit([remove(rig.store.view.services.resolve("web"))])
            await publish(rig, again, "n1", line("last", 10, "t3"), end=False)
            await until(lambda: reader.data[-1] == "last")
            assert not reader.ended


async def test_following_goes_on_with_a_node_that_comes_back_without_repeating():
    rig = Rig(a_task("t1"))
    options = LogOptions(follow=True, tail=5, since_ns=3)
    async with reading(rig, options=options) as reader:
        await until(lambda: reader.missing == ["node host-n1 is not available"])
        with rig.broker.listen("n1") as listener:
            ask = await asked(listener)
            assert ask.options == options, "nothing of it has arrived yet"
            await publish(rig, ask, "n1", line("a", 7), line("b", 8), end=False)
            await until(lambda: reader.data == ["a", "b"])
            old = rig.broker.publisher(ask.subscription_id, "n1")
        with rig.broker.listen("n1") as listener:
            ask = await asked(listener)
            assert (ask.options.since_ns, ask.options.tail) == (9, None)
            await old[0].end(old[1], "node n1: the node stopped sending")
            await publish(rig, ask, "n1", line("c", 9), end=False)
            await until(lambda: reader.data == ["a", "b", "c"])
            with pytest.raises(NotFound):
                await old[0].put(old[1], [line("ghost", 10)])
    assert "ghost" not in reader.data


@pytest.mark.parametrize("follow", [True, False])
async def test_a_slow_reader_bounds_what_publishers_may_queue(follow):
    rig = Rig(a_task("t1"), a_task("t2", node_id="n2"))
    big, count = b"x" * 10_000, 2_000
    sent = 0

    async def flood(ask: Ask) -> None:
        nonlocal sent
        for number in range(count):
            await publish(rig, ask, "n1", line("", number).replaced(data=big), end=False)
            sent += 1
        await publish(rig, ask, "n1")

    with rig.broker.listen("n1") as one, rig.broker.listen("n2") as two:
        news = rig.broker.subscribe(WEB, LogOptions(follow=follow))
        first = asyncio.ensure_future(anext(news))
        ask = await asked(one)
        await publish(rig, await asked(two), "n2", line("", 0), end=follow is False)
        flooding = asyncio.create_task(flood(ask))
        got = len(await first)
        _, publisher = rig.broker.publisher(ask.subscription_id, "n1")
        await until(lambda: publisher.is_full)
        await asyncio.sleep(0.02)
        assert publisher.queued_bytes <= QUEUED_BYTES_MAX + len(big)
        assert len(publisher.lines) <= LINES_MAX
        assert sent < count
        async with asyncio.timeout(TIMEOUT_S):
            while got < count + 1:
                got += len(await anext(news))
            await flooding
        assert (publisher.queued_bytes, len(publisher.lines)) == (0, 0)
        await news.aclose()


async def test_a_reader_that_leaves_lets_its_publishers_go_and_tells_the_nodes():
    rig = Rig(a_task("t1"), a_task("t2", node_id="n2"))
    with rig.broker.listen("n1") as one, rig.broker.listen("n2") as two:
        before = asyncio.all_tasks()
        async with reading(rig, options=LogOptions(follow=True)):
            ask = await asked(one)
            await asked(two)
            subscription, publisher = rig.broker.publisher(ask.subscription_id, "n1")
            publisher.add([line("x", number) for number in range(LINES_MAX)])
            waiting = asyncio.create_task(subscription.put(publisher, [line("y", 1)]))
            await asyncio.sleep(0)
        with pytest.raises(NotFound, match="nobody reads these logs any more"):
            await waiting
        assert [(await asked(listener)).close for listener in (one, two)] == [True, True]
        with pytest.raises(NotFound):
            rig.broker.publisher(ask.subscription_id, "n1")
        assert rig.broker._subscriptions == {}
        assert asyncio.all_tasks() == before, "no task is left behind"
    assert rig.broker._listeners == {}


async def test_a_node_has_one_listener_and_none_when_it_is_removed():
    rig = Rig(a_task("t1"))
    with rig.broker.listen("n1") as old, rig.broker.listen("n1") as new:
        assert await old.next() is None
        async with reading(rig):
            assert (await asked(new)).task_ids == ("t1",)
        rig.broker.forget("n1")
        assert not new.offer(Ask("s"))
        assert await new.next() is None
        async with reading(rig) as reader:
            await until(lambda: reader.missing == ["node host-n1 is not available"])


async def test_a_node_too_far_behind_with_its_asks_is_not_available():
    rig = Rig(a_task("t1"))
    with rig.broker.listen("n1") as listener:
        while listener.offer(Ask("filler")):
            pass
        async with reading(rig) as reader:
            await until(lambda: reader.ended)
        assert reader.missing == ["node host-n1 is not available"]
        listener.end()
        assert await listener.next() is None


async def test_only_tasks_of_the_node_are_its_business():
    rig = Rig(a_task("t1"), a_task("t2", node_id="n2"))
    assert rig.broker.service_of("t1", "n1") == "web"
    assert rig.broker.service_of("t2", "n1") == ""
    assert rig.broker.service_of("gone", "n1") == ""
