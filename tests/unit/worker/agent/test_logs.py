"""What a reader of logs gets: merged or followed, whole lines, bounded."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.api.v1 import logs_pb2 as pb
from shoal.errors import NotFound, Unavailable
from shoal.model.enums import TaskState as S
from tests.unit.worker.agent.support import a_task, task_id, until
from worker.agent import logs
from worker.agent.logs import LogPublisher, Publication, whole_lines
from worker.logs.model import LogLine

SECOND_NS = 1_000_000_000
BASE_NS = 1_700_000_000 * SECOND_NS


class Logs:
    """Log files as the logger writes them; times are seconds after a fixed moment."""

    def __init__(self, root):
        self.root = root
        self.tasks = {}

    def container_dir(self, task):
        return str(self.root / task)

    def write(self, task, *entries, end=True):
        directory = self.root / task / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "000001.json", "a") as file:
            for second, text, *stream in entries:
                moment = BASE_NS + int(second * SECOND_NS)
                clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment // SECOND_NS))
                entry = {
                    "log": text,
                    "stream": stream[0] if stream else "stdout",
                    "time": f"{clock}.{moment % SECOND_NS:09d}Z",
                }
                file.write(json.dumps(entry) + "\n")
        if end:
            (self.root / task / "log.end").touch()

    def publication(self, *tasks, **options):
        ask = pb.SubscriptionMessage(id="s", task_ids=tasks, options=pb.LogOptions(**options))
        return Publication(ask, self.container_dir, self.tasks.get)


@pytest.fixture
def files(tmp_path):
    return Logs(tmp_path)


async def collect(publication):
    """(task, second, text) of every line, and the messages."""
    messages = [message async for message in publication.messages()]
    await publication.close()
    lines = [
        (line.context.task_id, (line.timestamp_ns - BASE_NS) / SECOND_NS, line.data.decode())
        for message in messages
        for line in message.messages
    ]
    return lines, messages


async def test_lines_of_all_tasks_are_merged_by_time(files):
    files.write("a", (1, "a1\n"), (4, "a4\n"), (5, "a5\n"))
    files.write("b", (2, "b2\n"), (3, "b3\n"), (9, "b9\n"))
    files.write("c")
    lines, messages = await collect(files.publication("a", "b", "c", "never-made"))
    assert [second for _, second, _ in lines] == [1, 2, 3, 4, 5, 9]
    assert [task for task, *_ in lines] == ["a", "b", "b", "a", "a", "b"]
    assert not messages[0].messages, "the first says only that we are here"
    assert messages[-1].close
    assert messages[-1].error == ""
    assert {message.subscription_id for message in messages} == {"s"}


@pytest.mark.parametrize("asked", [True, False])
async def test_what_the_log_driver_names_is_told_where_it_is_asked_for(files, asked):
    files.write("a", (1, "a1\n"))
    files.write("b", (2, "b2\n"))
    conf = {"files": True, "attrs": {"zone": "a b", "A": "1"}}
    (files.root / "a" / "log.conf").write_text(json.dumps(conf))
    _, messages = await collect(files.publication("a", "b", details=asked))
    told = [line.details for message in messages for line in message.messages]
    assert told == (["A=1,zone=a+b", ""] if asked else ["", ""])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 10_000), unique=True, max_size=150), max_size=5))
def test_any_interleaving_is_merged_completely(tmp_path_factory, times):
    files = Logs(tmp_path_factory.mktemp("logs"))
    for number, seconds in enumerate(times):
        files.write(f"t{number}", *((second, f"{second}\n") for second in sorted(seconds)))

    async def read_all():
        return await collect(files.publication(*(f"t{n}" for n in range(len(times)))))

    lines, _ = asyncio.run(read_all())
    assert [second for _, second, _ in lines] == sorted(s for seconds in times for s in seconds)


async def test_tail_is_per_task_and_filters_come_first(files):
    files.write("a", (1, "1\n"), (2, "e\n", "stderr"), (3, "3\n"), (4, "4\n"))
    files.write("b", (5, "5\n"), (6, "6\n"))
    lines, _ = await collect(files.publication("a", "b", tail=1))
    assert [text for *_, text in lines] == ["4\n", "6\n"]
    lines, _ = await collect(files.publication("a", tail=1, streams=[pb.LOG_STREAM_STDERR]))
    assert [text for *_, text in lines] == ["e\n"]
    lines, _ = await collect(files.publication("a", tail=0))
    assert lines == []
    lines, _ = await collect(files.publication("a", tail=-1))
    assert len(lines) == 4


async def test_since_and_until(files):
    files.write("a", *((n, f"{n}\n") for n in range(1, 9)))
    window = {"since_ns": BASE_NS + 3 * SECOND_NS, "until_ns": BASE_NS + 5 * SECOND_NS}
    lines, _ = await collect(files.publication("a", **window))
    assert [second for _, second, _ in lines] == [4, 5]


async def test_pieces_of_long_lines_are_put_together_per_stream(files):
    piece = "x" * 16384
    files.write(
        "a",
        (1, piece), (2, "err\n", "stderr"), (3, piece), (4, "end\n"),
        (5, "no newline at the end"),
    )  # fmt: skip
    lines, _ = await collect(files.publication("a"))
    assert [(second, text) for _, second, text in lines] == [
        (2, "err\n"), (4, piece * 2 + "end\n"), (5, "no newline at the end"),
    ]  # fmt: skip


async def test_a_line_without_end_is_passed_on_in_bounded_pieces():
    async def endless():
        for number in range(100):
            yield LogLine(time_ns=number, stream="stdout", text="x" * 16384)

    found = [line async for line in whole_lines(endless())]
    assert sum(len(line.text) for line in found) == 100 * 16384
    assert max(len(line.text) for line in found) == logs.LINE_BYTES_MAX
    assert [line.time_ns for line in found] == sorted(line.time_ns for line in found)


async def test_messages_are_bounded_in_lines_and_bytes(files):
    files.write("a", *((n / 1000, f"{n}\n") for n in range(1000)))
    files.write("b", *((n / 1000, "y" * 16000 + "\n") for n in range(300)))
    _, messages = await collect(files.publication("a"))
    assert max(len(message.messages) for message in messages) <= logs.LINES_PER_MESSAGE
    _, messages = await collect(files.publication("b"))
    assert sum(len(message.messages) for message in messages) == 300
    assert max(message.ByteSize() for message in messages) < 2 * logs.BYTES_PER_MESSAGE


async def test_a_slow_reader_stops_the_reading(files):
    files.write("a", *((n / 1000, f"{n}\n") for n in range(5000)))
    publication = files.publication("a")
    (queue,) = publication._queues
    await until(queue.full)
    assert queue.qsize() == logs.LINES_AHEAD
    await publication.close()


async def test_following_goes_on_with_tasks_that_come_later(files):
    files.write("a", (1, "old\n"), end=False)
    publication = files.publication("a", follow=True)
    seen = []

    async def follow():
        async with aclosing(publication.messages()) as messages:
            async for message in messages:
                seen.extend(line.data for line in message.messages)

    work = asyncio.create_task(follow())
    await until(lambda: seen == [b"old\n"])
    files.write("a", (2, "new\n"))
    await until(lambda: seen == [b"old\n", b"new\n"])
    files.write("b", (3, "other\n"))
    publication.add(["a", "b"])
    await until(lambda: seen == [b"old\n", b"new\n", b"other\n"])
    assert not work.done()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await publication.close()


async def test_following_waits_for_a_container_that_is_still_to_be_made(files, monkeypatch):
    monkeypatch.setattr(logs, "CONTAINER_POLL_S", 0.002)
    monkeypatch.setattr(logs, "UNKNOWN_TASK_WAIT_S", 0.0)
    files.tasks = {"soon": a_task(state=S.PREPARING), "dead": a_task(state=S.REJECTED)}
    publication = files.publication("soon", "dead", "unknown", follow=True)
    await until(lambda: publication._readers["dead"].done())
    await until(lambda: publication._readers["unknown"].done())
    assert not publication._readers["soon"].done()
    files.write("soon", (1, "first words\n"))
    async with aclosing(publication.messages()) as messages:
        await anext(messages)
        message = await anext(messages)
    assert message.messages[0].data == b"first words\n"
    await publication.close()


async def test_a_log_that_cannot_be_read_is_said_and_does_not_stop_the_others(files, monkeypatch):
    files.write("a", (1, "fine\n"))
    real = logs.read

    def read(directory, **options):
        if directory.endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return real(directory, **options)

    monkeypatch.setattr(logs, "read", read)
    lines, messages = await collect(files.publication("a", "b"))
    assert [text for *_, text in lines] == ["fine\n"]
    assert "log of task b cannot be read" in messages[-1].error


class Broker:
    """A manager's side of the publishing."""

    def __init__(self):
        self.asks = asyncio.Queue()
        self.received = {}
        self.error = None
        self.hold = False

    async def log_subscriptions(self):
        while True:
            yield await self.asks.get()

    async def publish_logs(self, messages):
        async for message in messages:
            self.received.setdefault(message.subscription_id, []).append(message)
            if self.error:
                raise self.error
        if self.hold:
            await asyncio.Event().wait()

    def ask(self, name, *tasks, **options):
        self.asks.put_nowait(
            pb.SubscriptionMessage(id=name, task_ids=tasks, options=pb.LogOptions(**options))
        )


@pytest.fixture
async def published(files):
    broker = Broker()
    publisher = LogPublisher(broker, files.container_dir, files.tasks.get)
    work = asyncio.create_task(publisher.run())
    yield broker, publisher
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert not publisher._works
    assert not publisher._publications
    left = [t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith("log")]
    assert left == []


async def test_serves_several_readers_and_forgets_them(files, published):
    broker, publisher = published
    files.write(task_id(1), (1, "one\n"))
    broker.ask("first", task_id(1))
    broker.ask("second", task_id(1))
    await until(lambda: len(broker.received) == 2 and not publisher._works)
    assert [m.close for m in broker.received["first"]][-1]


async def test_a_reader_that_leaves_ends_its_publication(files, published):
    broker, publisher = published
    files.write("a", (1, "one\n"), end=False)
    broker.ask("s", "a", follow=True)
    await until(lambda: len(broker.received.get("s", [])) == 2)
    broker.asks.put_nowait(pb.SubscriptionMessage(id="s", close=True))
    await until(lambda: not publisher._works)


@pytest.mark.parametrize("error", [NotFound("nobody reads"), Unavailable("gone"), KeyError("bug")])
async def test_a_publication_that_fails_does_not_end_the_others(files, published, error):
    broker, publisher = published
    files.write("a", (1, "one\n"))
    broker.error = error
    broker.ask("s", "a")
    await until(lambda: "s" in broker.received and not publisher._works)
    broker.error = None
    broker.ask("t", "a")
    await until(lambda: "t" in broker.received and broker.received["t"][-1].close)


async def test_more_tasks_join_a_followed_subscription(files, published):
    broker, _ = published
    broker.ask("s", "a", follow=True)
    await until(lambda: "s" in broker.received)
    files.write("b", (1, "late\n"))
    broker.ask("s", "b", follow=True)
    await until(lambda: [m for m in broker.received["s"] if m.messages])


async def test_readers_are_bounded(files, published, monkeypatch):
    monkeypatch.setattr(logs, "PUBLICATIONS_MAX", 2)
    broker, publisher = published
    broker.hold = True
    for number in range(3):
        broker.ask(f"s{number}", "a")
    await until(lambda: broker.asks.empty() and len(broker.received) == 2)
    assert set(publisher._works) == {"s0", "s1"}
