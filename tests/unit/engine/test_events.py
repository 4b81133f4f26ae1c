from __future__ import annotations

import asyncio
import itertools

import pytest

from engine.events import HISTORY_MAX, QUEUE_MAX, EventBus
from engine.http.filters import parse_filters
from engine.ports import Event
from engine.resources.events import is_wished, worded
from shoal.clock import NS_PER_S, SystemClock


def an_event(action: str = "start", **fields) -> Event:
    fields = {"type": "container", "actor": "c" * 64, "attributes": {"name": "web"}} | fields
    return Event(action=action, **fields)


async def collect(stream, count: int) -> list[str]:
    found = []
    async with asyncio.timeout(10):
        async for event in stream:
            found.append(event.action)
            if len(found) == count:
                break
    return found


class Standing:
    """A clock that does not move."""

    def now_ns(self) -> int:
        return 5 * NS_PER_S

    def monotonic_s(self) -> float:
        return 0.0


async def test_what_happens_reaches_every_reader_and_times_increase():
    bus = EventBus(Standing())
    async with bus.subscribe() as one, bus.subscribe() as two:
        assert bus.readers == 2
        for action in ("create", "start", "die"):
            bus.publish(an_event(action))
        assert await collect(one, 3) == await collect(two, 3) == ["create", "start", "die"]
    assert bus.readers == 0
    async with bus.subscribe(since_ns=0) as again:
        times = [event.time_ns async for event in _first(again, 3)]
    assert times == [5 * NS_PER_S, 5 * NS_PER_S + 1, 5 * NS_PER_S + 2]


async def _first(stream, count: int):
    for _ in range(count):
        yield await anext(stream)


async def test_tasks_are_told_to_those_who_ask_and_not_kept():
    bus = EventBus(Standing())
    async with bus.subscribe() as one, bus.subscribe(tasks=True) as other:
        for kind in ("task", "node"):
            bus.publish(Event(kind, "update", kind))
        assert (await anext(one)).type == "node"
        assert [event.type async for event in _first(other, 2)] == ["task", "node"]
    async with bus.subscribe(since_ns=0, tasks=True) as again:
        assert (await anext(again)).type == "node"


async def test_history_is_bounded_and_read_from_a_time_on():
    bus = EventBus(Standing())
    for number in range(HISTORY_MAX + 10):
        bus.publish(an_event(str(number), time_ns=(number + 10) * NS_PER_S))
    last = HISTORY_MAX + 9
    async with bus.subscribe(since_ns=(last + 9) * NS_PER_S) as stream:
        assert await collect(stream, 2) == [str(last - 1), str(last)]
    async with bus.subscribe(since_ns=0) as stream:
        assert await collect(stream, 1) == ["10"]


async def test_a_stream_ends_at_its_time_also_without_events():
    bus, clock = EventBus(SystemClock()), SystemClock()
    bus.publish(an_event("early"))
    until_ns = clock.now_ns() + NS_PER_S // 20
    async with bus.subscribe(since_ns=0, until_ns=until_ns) as stream:
        assert [event.action async for event in stream] == ["early"]
    bus.publish(an_event("late"))
    async with bus.subscribe(since_ns=0, until_ns=until_ns) as stream:
        assert [event.action async for event in stream] == ["early"]


async def test_a_reader_that_is_too_slow_gets_what_fits_and_then_the_end():
    bus = EventBus(Standing())
    async with bus.subscribe() as stream:
        for number in range(QUEUE_MAX + 1):
            bus.publish(an_event(str(number)))
        assert len([event async for event in stream]) == QUEUE_MAX


@pytest.mark.parametrize(
    ("filters", "wished"),
    [
        ("{}", True),
        ('{"type": ["container"]}', True),
        ('{"type": ["image"]}', False),
        ('{"event": ["exec_create"]}', True),
        ('{"event": ["exec_create: ls"]}', True),
        ('{"event": ["exec"]}', False),
        ('{"container": ["we"]}', True),
        ('{"container": ["cccc"]}', True),
        ('{"container": ["other"]}', False),
        ('{"image": ["box"]}', True),
        ('{"image": ["box:1"]}', True),
        ('{"image": ["bo"]}', False),
        ('{"label": ["k=v"]}', True),
        ('{"label": ["k=w"]}', False),
        ('{"scope": ["swarm"]}', False),
        ('{"nobody-knows": ["x"]}', True),
    ],
)
def test_filters(filters, wished):
    event = an_event("exec_create: ls", attributes={"name": "web", "image": "box:1", "k": "v"})
    assert is_wished(event, parse_filters(filters)) is wished


def test_an_event_in_dockers_words():
    event = an_event("die", attributes={"name": "web", "image": "box"}, time_ns=1_500_000_000)
    assert list(itertools.islice(worded(event), 3)) == ["status", "id", "from"]
    assert worded(event) == {
        "status": "die", "id": "c" * 64, "from": "box",
        "Type": "container", "Action": "die",
        "Actor": {"ID": "c" * 64, "Attributes": {"name": "web", "image": "box"}},
        "scope": "local", "time": 1, "timeNano": 1_500_000_000,
    }  # fmt: skip
    assert "status" not in worded(an_event(type="network"))
